"""A leaf's weights in another format, a bounded piece at a time: loading and writing never need the model twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, quantize, row_bytes
from gemmary.quantize.leaves import FLOATS, Leaf, slices

NAMES: dict[str, str] = {
    "float32": "F32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int8": "Q8_0",
    "int4": "Q4_0",
    **{name: name for name in (*FLOATS, *BLOCK_SIZES)},
}
"""What a user may call a format -> its name."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


def stored_bytes(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises GemmaryError where its rows do not divide into the format's blocks."""
    if format in FLOATS:
        return int(np.prod(shape, dtype=np.int64)) * FLOATS[format].itemsize
    return shape[0] * row_bytes(format, shape[1])


def pieces(leaf: Leaf, format: str) -> Iterator[npt.NDArray[np.uint8]]:
    """The leaf's bytes in `format`, in order. As stored, they are passed on unchanged.

    Raises GemmaryError for a weight that float16 cannot hold, or that cannot be quantized.
    """
    for start, stop in slices(leaf):
        yield piece(leaf, start, stop, format)
        leaf.release(start, stop)


def piece(leaf: Leaf, start: int, stop: int, format: str) -> npt.NDArray[np.uint8]:
    """Rows [start, stop) as `pieces` gives them."""
    if leaf.format == format:
        return leaf.stored(start, stop)
    values = leaf.rows(np.arange(start, stop))
    return (_cast(values, format).view(np.uint8) if format in FLOATS else quantize(format, values)).reshape(-1)


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


def _cast(values: npt.NDArray[np.float32], format: str) -> npt.NDArray[Any]:
    if format == "F16" and np.abs(values).max(initial=0.0) > 65504.0:
        raise GemmaryError("a weight is larger than float16 holds: choose bfloat16 or float32")
    return values.astype(FLOATS[format])
