"""A leaf's weights in another format, a bounded piece at a time: loading and writing never need the model twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, quantize, row_bytes
from gemmary.quantize.leaves import Blocks, Dense, Leaf

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
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

_CHUNK = 1 << 22
"""Weights converted at once (16 MiB of float32)."""


def stored_bytes(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor. Raises GemmaryError where its rows do not divide into the format's blocks."""
    if format in FLOATS:
        return int(np.prod(shape, dtype=np.int64)) * FLOATS[format].itemsize
    return shape[0] * row_bytes(format, shape[1])


def pieces(leaf: Leaf, format: str) -> Iterator[npt.NDArray[np.uint8]]:
    """The leaf's bytes in `format`, in order. As stored, they are passed on unchanged.

    Raises GemmaryError for a weight that float16 cannot hold, or that cannot be quantized.
    """
    if leaf.format == format:
        array = leaf.data if isinstance(leaf, Blocks) else leaf.array if isinstance(leaf, Dense) else leaf.dequantize()
        rows = max(1, _CHUNK * len(array) // max(1, array.size))
        for start in range(0, len(array), rows):
            yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8)
        return
    rows = max(1, _CHUNK // max(1, leaf.shape[-1])) if len(leaf.shape) == 2 else leaf.shape[0]
    for start in range(0, leaf.shape[0], rows):
        values = leaf.rows(np.arange(start, min(start + rows, leaf.shape[0])))
        if format in FLOATS:
            yield _cast(values, format).reshape(-1).view(np.uint8)
        else:
            yield quantize(format, values).reshape(-1)


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
