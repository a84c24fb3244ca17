"""What one step of an engine is asked to do: tokens of several sequences, flattened, no padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from gemmary.config import Config, LayerType
from gemmary.model.masks import visible
from gemmary.model.vision import Pictures

Int32 = npt.NDArray[np.int32]
Pixels = npt.NDArray[np.float32]
"""[pictures, rows, columns, 3] in [-1, 1] (`vision/preprocess.py`)."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive tokens of one sequence: a piece of its prompt, or one token to decode.

    tokens: ids. start: position of the first of them; the sequence's cache holds exactly `start` tokens before this.
    prefix: how many tokens at the start of the sequence see each other (0: causal). A prefix must lie in one chunk.
    outputs: rows of this chunk whose logits are wanted ("last", "all" or "none"). adapter: number of the sequence's
    adapter among the model's, from 1, in all its chunks: its keys depend on it. 0: none.
    pictures: [M, D] what stands in the place of those of its tokens that are `config.image_token_id`, in their order.
    Where text is causal around pictures, a chunk cuts through none (`uncut`).
    """

    tokens: Sequence[int]
    start: int = 0
    prefix: int = 0
    outputs: str = "last"
    adapter: int = 0
    pictures: npt.NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Batch:
    """Chunks, flattened: T tokens, S sequences, R rows of logits. Arrays are int32."""

    tokens: Int32
    positions: Int32
    visible: dict[LayerType, Int32]
    """[T, 2] for each kind of layer: first and last key position seen."""
    outputs: Int32
    sequences: tuple[slice, ...]
    """Rows of each sequence, in the order of the caches that go with this batch."""
    pictures: tuple[Int32, npt.NDArray[np.float32]] | None = None
    """([M] rows in which pictures stand, whose tokens are 0; [M, D] what stands there: `Engine.see`)."""
    candidates: int = 0
    """0: every logit is wanted. k: of each row only the k largest (and those tied with the last of them) are; an engine
    may put -inf in place of any other."""
    adapters: tuple[int, ...] = ()
    """Number of each sequence's adapter, 0: none. Empty: none for all."""

    def adapted(self) -> list[tuple[int, slice]]:
        """The sequences that have an adapter: its number, and their rows."""
        return adapted_rows(self.adapters or [0] * len(self.sequences), self.sequences)

    @classmethod
    def of(cls, config: Config, chunks: Sequence[Chunk], candidates: int = 0) -> Batch:
        tokens: list[int] = []
        positions: list[int] = []
        outputs: list[int] = []
        sequences: list[slice] = []
        for chunk in chunks:
            if chunk.prefix > chunk.start and (chunk.start or chunk.prefix > len(chunk.tokens)):
                raise ValueError(f"the prefix of {chunk.prefix} tokens does not lie in the chunk at {chunk.start}")
            if config.bidirectional and chunk.start:
                raise ValueError("a bidirectional sequence is one chunk")
            begin, end = len(tokens), len(tokens) + len(chunk.tokens)
            tokens.extend(chunk.tokens)
            positions.extend(range(chunk.start, chunk.start + len(chunk.tokens)))
            outputs.extend({"last": range(end - 1, end), "all": range(begin, end), "none": range(0)}[chunk.outputs])
            sequences.append(slice(begin, end))
        seen: dict[LayerType, Int32] = {}
        for kind in config.kinds:
            window = config.window(kind)
            seen[kind] = np.concatenate([_NONE, *(_spans(config, chunk, window) for chunk in chunks)])
        ids = np.array(tokens, dtype=np.int32)
        pictures = [chunk.pictures for chunk in chunks if chunk.pictures is not None]
        places = np.flatnonzero(ids == config.image_token_id).astype(np.int32) if config.vision else ids[:0]
        ids[places] = 0
        if len(places) != sum(map(len, pictures)):
            raise ValueError(f"{len(places)} places for pictures' tokens, {sum(map(len, pictures))} such tokens")
        return cls(
            ids,
            np.array(positions, dtype=np.int32),
            seen,
            np.array(outputs, dtype=np.int32),
            tuple(sequences),
            (places, np.concatenate(pictures)) if pictures else None,
            candidates,
            tuple(chunk.adapter for chunk in chunks),
        )


def adapted_rows(adapters: Sequence[int], sequences: Sequence[slice]) -> list[tuple[int, slice]]:
    """The sequences that have an adapter: its number, and their rows. adapters: the number of each, 0 for none."""
    return [(number, rows) for number, rows in zip(adapters, sequences, strict=True) if number]


_NONE: Int32 = np.empty((0, 2), dtype=np.int32)


def _spans(config: Config, chunk: Chunk, window: int | None) -> Int32:
    """First and last key position that each token of a chunk sees, [T, 2]."""
    end = chunk.start + len(chunk.tokens)
    two_sided = config.bidirectional
    prefix = end if two_sided else chunk.prefix
    whole = [prefix] * len(chunk.tokens)
    if config.picture_blocks and config.image_token_id in chunk.tokens:
        whole = [max(prefix, last) for last in _pictures_ends(config, chunk)]
    elif not prefix:
        return _causal(1 << (end - 1).bit_length(), window)[chunk.start : end]
    places = enumerate(whole, start=chunk.start)
    pairs = [visible(i, each, window, two_sided, in_prefix=i < chunk.prefix) for i, each in places]
    return np.array(pairs, dtype=np.int32).reshape(-1, 2)


def _pictures_ends(config: Config, chunk: Chunk) -> list[int]:
    """For each token of a picture one past the last position of the picture (or of those that follow it directly); 0
    for text."""
    assert config.vision is not None
    ends: list[int] = []
    for is_place, run in groupby(chunk.tokens, lambda token: token == config.image_token_id):
        count = len(list(run))
        if is_place and count % config.vision.num_tokens:
            raise ValueError(f"the chunk at {chunk.start} cuts through a picture's {config.vision.num_tokens} tokens")
        ends += [chunk.start + len(ends) + count if is_place else 0] * count
    return ends


def uncut(config: Config, prompt: Sequence[int], start: int, size: int) -> int:
    """How many of the next `size` tokens of a prompt, from `start` on, make a chunk that cuts through no picture. More
    than `size` where the first of them is a picture that has more."""
    place, end = config.image_token_id, start + size
    if not config.picture_blocks or end >= len(prompt) or prompt[end - 1] != place or prompt[end] != place:
        return size
    first = end
    while first > start and prompt[first - 1] == place:
        first -= 1
    if first > start:
        return first - start
    while end < len(prompt) and prompt[end] == place:
        end += 1
    return end - start


@lru_cache
def _causal(length: int, window: int | None) -> Int32:
    """The spans of a causal sequence, which are the same in all of them."""
    return np.array([visible(position, 0, window, False) for position in range(length)], dtype=np.int32)


def patches(config: Config, pixels: Pixels) -> tuple[Pictures, tuple[slice, ...]]:
    """Pictures cut into what the tower is fed, and the rows of each picture's patches: line by line, or where patches
    are pooled group by group.

    Raises ValueError where the pictures are not of the tower's size.
    """
    vision = config.vision
    if vision is None or pixels.shape[1:] != (vision.image_size, vision.image_size, 3):
        raise ValueError(f"pixels of shape {pixels.shape} do not fit {vision}")
    count, edge, pool = len(pixels), vision.patch_size, vision.pool
    side = vision.side // pool
    cut = pixels.reshape(count, side, pool, edge, side, pool, edge, 3).transpose(0, 1, 4, 2, 5, 7, 3, 6)
    places = np.arange(vision.num_patches, dtype=np.int32).reshape(side, pool, side, pool).transpose(0, 2, 1, 3)
    rows = tuple(slice(i * vision.num_patches, (i + 1) * vision.num_patches) for i in range(count))
    positions = np.tile(places.reshape(-1), count)
    # The tower keeps keys and values of each picture apart, so positions of keys begin at 0 in each.
    seen = np.tile(np.array([0, vision.num_patches - 1], dtype=np.int32), (len(positions), 1))
    return Pictures(cut.reshape(-1, vision.patch_values), positions, seen), rows
