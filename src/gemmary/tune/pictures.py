"""The pictures of rows: looked at before training, decoded when a micro-batch needs them.

A picture is kept as the square of bytes that the tower's resizing ends in (`vision/preprocess.py`), a quarter of the
memory of its float32 pixels, and from which these follow to the bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemmary.batch import Pixels
from gemmary.vision.preprocess import as_bytes, as_pixels, open_image, pixels, size_of

if TYPE_CHECKING:
    from gemmary.tune.augment import Change

KEPT_BYTES = 1 << 30
"""Of decoded pictures: 21,845 of 128 x 128, 7,132 of 224 x 224."""

Square = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A picture of a row: where it is, and what its header says."""

    path: Path
    width: int
    height: int
    """In pixels, upright."""
    stored_bytes: int
    """Of the file: a resumed run compares them."""
    change: Change | None = None
    """What is done to it before the tower sees it."""


@lru_cache(maxsize=1 << 16)
def look(path: Path) -> Picture:
    """Reads the header. Raises GemmaryError for what is not there, no picture, or too large; not for a file that is
    damaged further on."""
    width, height = size_of(path)
    return Picture(path, width, height, path.stat().st_size)


class Album:
    """Decoded pictures, the ones used last kept."""

    def __init__(self, size: int, kept_bytes: int = KEPT_BYTES) -> None:
        """size: rows and columns of pixels that the tower reads."""
        self.size = size
        self._room = max(1, kept_bytes // (3 * size * size))
        self._kept: OrderedDict[Path, Square] = OrderedDict()

    def pixels(self, pictures: Sequence[Picture]) -> Pixels:
        """[pictures, size, size, 3] in [-1, 1]. Raises GemmaryError for one that cannot be decoded."""
        return as_pixels(np.stack([self._square(picture) for picture in pictures]))

    def _square(self, picture: Picture) -> Square:
        if picture.change is not None:
            changed = picture.change.applied(open_image(picture.path))
            return as_bytes(pixels(changed, self.size))
        square = self._kept.pop(picture.path, None)
        if square is None:
            square = as_bytes(pixels(open_image(picture.path), self.size))
            if len(self._kept) >= self._room:
                self._kept.popitem(last=False)
        self._kept[picture.path] = square
        return square
