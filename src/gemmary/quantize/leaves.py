"""A weight is a typed leaf: a dense array, rows of quantized blocks, or the native kernels' panels of either. Every
engine's `linear` dispatches on it.

Quantized leaves are GGUF block types throughout: our own int8 is Q8_0 (groups of 32, one float16 scale) and our own
int4 is Q4_0 (groups of 32, one float16 scale, zero point 8), so one set of kernels serves both and nothing is lost
between a file and an engine.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary.quantize import blocks

FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
"""The formats of dense weights."""

_PANEL_ROWS = 16
_SLICE = 1 << 22
"""Weights that are handled at once (16 MiB of float32)."""


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

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """The bytes of rows [start, stop) in this format, row after row as GGUF has them: uint8 [bytes]."""
        ...

    def release(self, start: int, stop: int) -> None:
        """Lets the memory go that a mapped file takes for rows [start, stop). They can still be read, from the file."""
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

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self.array[start:stop]).reshape(-1).view(np.uint8)

    def release(self, start: int, stop: int) -> None:
        let_go(self.array[start:stop])


@dataclass(frozen=True)
class Blocks:
    """Rows of GGUF blocks: `data` is uint8 [rows, bytes a row].

    Where the columns do not divide into blocks (the tower's 4,304), the last block is filled up with zeros. No file
    format has that: it is what `quantized` makes, and what the kernels read as `padded_columns`.
    """

    format: str
    shape: tuple[int, int]
    data: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return int(self.data.nbytes)

    def dequantize(self) -> npt.NDArray[np.float32]:
        return blocks.dequantize(self.format, self.data)[:, : self.shape[1]]

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        return blocks.dequantize(self.format, self.data[index])[..., : self.shape[1]]

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self.data[start:stop]).reshape(-1)

    def release(self, start: int, stop: int) -> None:
        let_go(self.data[start:stop])


@dataclass(frozen=True)
class Packed:
    """The native kernels' panels (csrc/packed.h) of a weight in one of the other leaves' formats: `panels` is uint8
    [bytes], 64-byte aligned. Nothing of the weight is lost in them, nor of the columns that fill up its last blocks."""

    format: str
    shape: tuple[int, int]
    panels: npt.NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return int(self.panels.nbytes)

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self.rows(np.arange(self.shape[0]))

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        data = self._unpacked(index.reshape(-1).astype(np.int64))
        if self.format in blocks.BLOCK_SIZES:
            found = blocks.dequantize(self.format, data)[:, : self.shape[1]]
        else:
            found = data.view(FLOATS[self.format]).astype(np.float32)
        return found.reshape(*index.shape, -1)

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._unpacked(np.arange(start, stop)).reshape(-1)

    def release(self, start: int, stop: int) -> None:
        """Nothing: the panels are what is computed with."""

    def _unpacked(self, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        from gemmary import _core

        rows, columns = self.shape
        return _core.unpack(self.format, rows, padded_columns(self.format, columns), self.panels, index)


@dataclass(frozen=True)
class Affine:
    """A weight with a bias [rows], or a LayerNorm's scale [n] with its shift. As a leaf it is the weight."""

    weight: Leaf
    bias: npt.NDArray[np.float32]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def format(self) -> str:
        return self.weight.format

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self.weight.dequantize()

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        return self.weight.rows(index)

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self.weight.stored(start, stop)

    def release(self, start: int, stop: int) -> None:
        self.weight.release(start, stop)


def with_weight(leaf: Leaf, change: Callable[[Leaf], Leaf]) -> Leaf:
    """What `change` makes of a weight; an `Affine` leaf keeps its bias beside it."""
    return Affine(change(leaf.weight), leaf.bias) if isinstance(leaf, Affine) else change(leaf)


def transposed(leaf: Leaf) -> Dense:
    """A matrix the other way round; one in blocks in float32."""
    return Dense((leaf.array if isinstance(leaf, Dense) else leaf.dequantize()).T)


def padded_columns(format: str, columns: int) -> int:
    """Columns of a matrix with those that fill up its last blocks."""
    size, _ = blocks.BLOCK_SIZES.get(format, (1, 0))
    return -(-columns // size) * size


def quantized(leaf: Leaf, block_type: str) -> Leaf:
    """A matrix in blocks of 32 weights, filled up with zero columns where its rows do not divide into them; an
    `Affine` leaf keeps its bias. What a mapped file took of memory for it is let go.

    Raises GemmaryError as `blocks.quantize`.
    """
    if isinstance(leaf, Affine):
        return Affine(quantized(leaf.weight, block_type), leaf.bias)
    rows, columns = leaf.shape
    whole = padded_columns(block_type, columns)
    data = np.empty((rows, blocks.row_bytes(block_type, whole)), dtype=np.uint8)
    for start, stop in slices(leaf):
        filled = np.zeros((stop - start, whole), dtype=np.float32)
        filled[:, :columns] = leaf.rows(np.arange(start, stop))
        data[start:stop] = blocks.quantize(block_type, filled)
        leaf.release(start, stop)
    return Blocks(block_type, (rows, columns), data)


def slices(leaf: Leaf) -> Iterator[tuple[int, int]]:
    """First and last (exclusive) of consecutive rows that together are the weight: whole panels, a bounded number of
    weights at a time, so that loading and writing never need the model twice."""
    rows = leaf.shape[0]
    step = max(_PANEL_ROWS, _SLICE // leaf.shape[1] // _PANEL_ROWS * _PANEL_ROWS) if len(leaf.shape) == 2 else rows
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


_WINDOW = 1 << 16
"""Linux maps this much of a file around a byte that is touched: letting go begins at such a border, or what was let go
before would come back."""


def let_go(view: npt.NDArray[Any]) -> None:
    """Tells the system that the memory of a view of a mapped file is not needed; of any other array, nothing."""
    base: Any = view
    while isinstance(base, np.ndarray):
        base = base.base
    # Read-only: the pages of any other mapping may be the only place where its contents are.
    if not (isinstance(base, memoryview) and base.readonly and isinstance(base.obj, mmap.mmap)):
        return
    if not view.flags.c_contiguous or not hasattr(mmap, "MADV_DONTNEED"):
        return
    begin = _address(view) - _address(np.frombuffer(base, np.uint8))
    start, stop = begin // _WINDOW * _WINDOW, (begin + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        base.obj.madvise(mmap.MADV_DONTNEED, start, stop - start)


def _address(array: npt.NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])
