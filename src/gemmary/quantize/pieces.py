"""A leaf's weights in another format, a bounded piece at a time: loading and writing never need the model twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import quantize
from gemmary.quantize.leaves import FLOATS, Leaf, slices


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


def _cast(values: npt.NDArray[np.float32], format: str) -> npt.NDArray[Any]:
    if format == "F16" and np.abs(values).max(initial=0.0) > 65504.0:
        raise GemmaryError("a weight is larger than float16 holds: choose bfloat16 or float32")
    return values.astype(FLOATS[format])
