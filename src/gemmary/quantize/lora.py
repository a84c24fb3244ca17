"""A linear weight with low-rank adapters, as a leaf: the base's weights are never changed, `linear` adds what a row's
adapter says.

    y = (W x + scale · B (A x)) · gain      gain: DoRA's magnitude / ‖W + scale · B A‖ of each output, else 1

Where there is a bias, too, it is added last: the leaf is an `Affine` one around this.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.quantize.leaves import Leaf, slices

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class LoraWeights:
    """What is added to one linear weight [O, I]. Arrays are float32."""

    a: Floats
    """[r, I]"""
    b: Floats
    """[O, r]"""
    scale: float
    magnitude: Floats | None = None
    """[O] of DoRA, else None."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class LoRA:
    """A linear weight with adapters. As a leaf it is its base; `linear` adds an adapter to the rows that have it."""

    base: Leaf
    adapters: tuple[LoraWeights | None, ...]
    """What each adapter of the model, in its order, adds to this weight."""

    @cached_property
    def gains(self) -> tuple[Floats | None, ...]:
        """For each adapter DoRA's factor of every output, [O] float32; None for plain LoRA."""
        return tuple(None if w is None else _gains(self.base, w) for w in self.adapters)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def format(self) -> str:
        return self.base.format

    @property
    def nbytes(self) -> int:
        return self.base.nbytes

    def dequantize(self) -> Floats:
        return self.base.dequantize()

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> Floats:
        return self.base.rows(index)

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self.base.stored(start, stop)

    def release(self, start: int, stop: int) -> None:
        self.base.release(start, stop)


def merged_rows(base: Leaf, weights: LoraWeights, index: npt.NDArray[np.integer[Any]]) -> Floats:
    """Rows of the weight with the adapter in it, float32 [len(index), I]."""
    rows: Floats = base.rows(index) + np.float32(weights.scale) * (weights.b[index] @ weights.a)
    if weights.magnitude is not None:
        rows *= _gain(rows, weights.magnitude[index])[:, None]
    return rows


def _gains(base: Leaf, weights: LoraWeights) -> Floats | None:
    if weights.magnitude is None:
        return None
    plain = replace(weights, magnitude=None)
    pieces = [np.arange(start, stop) for start, stop in slices(base)]
    return np.concatenate([_gain(merged_rows(base, plain, index), weights.magnitude[index]) for index in pieces])


def _gain(rows: Floats, magnitude: Floats) -> Floats:
    norms = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1))
    gain: Floats = (magnitude / norms).astype(np.float32)
    return gain
