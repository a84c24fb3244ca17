"""A weight is a typed leaf: a dense array, or rows of quantized blocks. Every engine's `linear` dispatches on it.

Quantized leaves are GGUF block types throughout: our own int8 is Q8_0 (groups of 32, one float16 scale) and our own
int4 is Q4_0 (groups of 32, one float16 scale, zero point 8), so one set of kernels serves both and nothing is lost
between a file and an engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gemmary.quantize import blocks


class Leaf(Protocol):
    """A weight [rows, columns], or a vector [n]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str:
        """`F32`, `BF16`, `F16` or a GGUF block type such as `Q4_K`."""
        ...

    @property
    def nbytes(self) -> int: ...

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The whole weight in float32, exactly."""
        ...

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Some rows in float32, exactly."""
        ...


@dataclass(frozen=True)
class Dense:
    """A float32, bfloat16 (ml_dtypes) or float16 array, possibly mapped from a file."""

    array: npt.NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def format(self) -> str:
        return {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[self.array.dtype.name]

    @property
    def nbytes(self) -> int:
        return int(self.array.nbytes)

    def dequantize(self) -> npt.NDArray[np.float32]:
        return np.asarray(self.array, dtype=np.float32)

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        return np.asarray(self.array[index], dtype=np.float32)


@dataclass(frozen=True)
class Blocks:
    """Rows of GGUF blocks: `data` is uint8 [rows, bytes a row]."""

    format: str
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def dequantize(self) -> npt.NDArray[np.float32]:
        return blocks.dequantize(self.format, self.data)

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        return blocks.dequantize(self.format, self.data[index])
