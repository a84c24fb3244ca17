"""Pictures of requests as tokens of the decoder: seen once, and remembered by what they show."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gemmary.engines import Engine, Logits

REMEMBERED_BYTES = 64 << 20
"""Of pictures' tokens: 27 pictures of 224 pixels for a decoder as wide as 2304, 1 of 896."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the tower is fed it."""

    pixels: npt.NDArray[np.float32]
    """[rows, columns, 3] in [-1, 1] (`vision/preprocess.py`)."""
    width: int
    """Of the picture that it was made from, in its own pixels: boxes are given in them."""
    height: int

    @cached_property
    def digest(self) -> bytes:
        """What it shows: two pictures with the same digest have the same pixels."""
        return hashlib.sha256(self.pixels.tobytes()).digest()


class Sight:
    """The tower of an engine, behind the memory of the pictures that it saw last. For one thread at a time."""

    def __init__(
        self, engine: Engine, most_bytes: int = REMEMBERED_BYTES, tower_adapters: Container[int] | None = None
    ) -> None:
        """tower_adapters: numbers of the adapters that change the tower (None: all may); others see as the base."""
        self._engine = engine
        self._tower_adapters = tower_adapters
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._seen: OrderedDict[tuple[bytes, int], Logits] = OrderedDict()

    def see(self, pictures: Sequence[Picture], adapter: int = 0) -> Logits:
        """[pictures * num_tokens, D]. Each picture goes through the tower alone, so nothing depends on the others.
        adapter: of the tower, as in `Engine.see`; what one saw is not used for another."""
        if self._tower_adapters is not None and adapter not in self._tower_adapters:
            adapter = 0
        return np.concatenate([self._see(picture, adapter) for picture in pictures])

    def _see(self, picture: Picture, adapter: int) -> Logits:
        key = picture.digest, adapter
        if key in self._seen:
            self._seen.move_to_end(key)
            return self._seen[key]
        tokens = self._engine.see(picture.pixels[None], adapter=adapter)
        self._seen[key] = tokens
        self._held_bytes += tokens.nbytes
        while self._held_bytes > self._most_bytes:
            self._held_bytes -= self._seen.popitem(last=False)[1].nbytes
        return tokens
