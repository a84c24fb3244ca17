"""What converting a checkpoint needs of formats: their names, their bytes, and a count of those that were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.mixes import Q4_K_M
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import FLOATS

NAMES: dict[str, str] = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int8": "Q8_0",
    "int4": "Q4_0",
    **{name: name for name in (*FLOATS, *BLOCK_SIZES, Q4_K_M)},
}
"""What a user may call a format, or a mix of them -> its name."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


def stored_bytes(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises GemmaryError where its rows do not divide into the format's blocks."""
    if format in FLOATS:
        return int(np.prod(shape, dtype=np.int64)) * FLOATS[format].itemsize
    return shape[0] * row_bytes(format, shape[1])


class Meter:
    """Tells how many of `total` bytes were written."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress

    def watch(self, pieces: Iterator[npt.NDArray[np.uint8]]) -> Iterator[npt.NDArray[np.uint8]]:
        """The same pieces, each counted once it was taken and the next is asked for."""
        for piece in pieces:
            yield piece
            self._done += piece.nbytes
            if self._progress:
                self._progress("writing weights", self._done, self._total)
