"""Leaves as the native kernels read them: matrices in panels, vectors in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary import _core
from gemmary.engines.trace import Weight
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf, Packed, padded_columns, slices
from gemmary.quantize.lora import LoRA

ADAPTERS = "F32 adapters"
"""What their bytes are counted as."""


@contextlib.contextmanager
def core_errors(what: str = "") -> Iterator[None]:
    """C++'s refusals as the project's exception."""
    try:
        yield
    except ValueError as error:
        raise GemmaryError(str(error)) from error
    except MemoryError as error:
        raise GemmaryError(f"there is not enough memory for {what or 'the native engine'}") from error


class PackedWeights:
    """The weights of a model by name, each packed when it is first asked for.

    dtype: as `NativeEngine`'s. `formats` counts the bytes held, by format.
    """

    def __init__(self, runtime: Any, lookup: Callable[[str], Leaf], dtype: str | None) -> None:
        self.formats: dict[str, int] = {}
        self._runtime = runtime
        self._lookup = lookup
        self._format = {None: None, "float32": "F32", "bfloat16": "BF16"}[dtype]
        self._weights: dict[str, Weight] = {}
        self._packed: dict[str, tuple[str, tuple[int, int]]] = {}

    def __call__(self, name: str) -> Weight:
        if name not in self._weights:
            leaf = self._lookup(name)
            bias = self._vector(leaf.bias) if isinstance(leaf, Affine) else None
            leaf = leaf.weight if isinstance(leaf, Affine) else leaf
            adapters = self._adapters(name, leaf) if isinstance(leaf, LoRA) else []
            self._weights[name] = Weight(name, self._data(name, leaf), adapters, bias)
        return self._weights[name]

    def held(self, name: str) -> Leaf:
        """A weight as it lies here, without adapters: panels, or a vector."""
        weight = self(name)
        found = self._packed.get(name)
        leaf: Leaf = Dense(weight.data) if found is None else Packed(*found, weight.data.panels)
        return leaf if weight.bias is None else Affine(leaf, weight.bias)

    def _data(self, name: str, leaf: Leaf) -> Any:
        if len(leaf.shape) == 1:
            return self._vector(leaf.dequantize())
        if isinstance(leaf, LoRA):
            leaf = leaf.base
        format = self._format or leaf.format
        with core_errors(f"the weight {name}"):
            packed = pack(self._runtime, leaf, format)
        self._packed[name] = format, (leaf.shape[0], leaf.shape[1])
        self._count(format, packed.nbytes)
        return packed

    def _vector(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        vector = np.ascontiguousarray(values, dtype=np.float32)
        self._count("F32", vector.nbytes)
        return vector

    def _adapters(self, name: str, leaf: LoRA) -> list[Any]:
        """What the model's adapters add to a weight."""
        found: list[Any] = []
        for weights, gain in zip(leaf.adapters, leaf.gains, strict=True):
            if weights is None:
                found.append(None)
                continue
            with core_errors(f"the adapter of {name}"):
                a, b = (pack(self._runtime, Dense(matrix), "F32") for matrix in (weights.a, weights.b))
                found.append(_core.Lora(a, b, weights.scale, gain))
            self._count(ADAPTERS, found[-1].nbytes)
        return found

    def _count(self, format: str, nbytes: int) -> None:
        self.formats[format] = self.formats.get(format, 0) + nbytes


def pack(runtime: Any, leaf: Leaf, format: str) -> Any:
    """A matrix as the kernels read it, in its own format or as F32 or BF16. Panels are used where they lie; the rest is
    packed a slice at a time, and what a mapped file took of memory for a slice is let go after it.

    The columns that fill up the last blocks of quantized rows (`quantize.leaves.Blocks`) are packed with the others.
    Raises ValueError for a format that the kernels do not have.
    """
    rows, columns = leaf.shape[0], padded_columns(format, leaf.shape[1])
    if isinstance(leaf, Packed) and leaf.format == format:
        return _core.PackedWeight.borrow(format, rows, columns, leaf.panels)
    packed = _core.PackedWeight(runtime, format, rows, columns)
    for start, stop in slices(leaf):
        if leaf.format == format:
            data = leaf.stored(start, stop)
        else:
            data = leaf.rows(np.arange(start, stop)).astype(FLOATS[format]).reshape(-1).view(np.uint8)
        packed.pack(runtime, start, data)
        leaf.release(start, stop)
    return packed
