"""The oracle: every op in plain numpy, one obvious line after another, in float32 (or float64 for the op tests).

It is slow and keeps every key of every layer. Nothing is tuned here; when an engine disagrees, this file is right or
the specification is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.quantize.leaves import Affine, Leaf
from gemmary.quantize.lora import LoRA

Array = npt.NDArray[Any]


@dataclass
class SequenceCache:
    """Keys and values of one sequence: for each layer two arrays [tokens so far, K, H]."""

    layers: dict[int, tuple[Array, Array]] = field(default_factory=dict)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on."""
        self.layers = {layer: (keys[:length], values[:length]) for layer, (keys, values) in self.layers.items()}


@dataclass
class StepCache:
    """The caches of the sequences of one step, and for each the rows of the step that are its tokens."""

    caches: Sequence[SequenceCache]
    rows: Sequence[slice]


class ReferenceOps:
    """`gemmary.ops.spec.Ops` in numpy. Taps land in `taps` when a dictionary is given. adapted: as `Batch.adapted`."""

    def __init__(
        self,
        dtype: type[np.floating[Any]] = np.float32,
        taps: dict[str, Array] | None = None,
        adapted: Sequence[tuple[int, slice]] = (),
    ) -> None:
        self.dtype = dtype
        self.taps = taps
        self.adapted = adapted

    def _dense(self, leaf: Leaf) -> Array:
        return leaf.dequantize().astype(self.dtype)

    def embed(self, table: Leaf, tokens: Array, scale: float) -> Array:
        result: Array = table.rows(tokens).astype(self.dtype) * self.dtype(scale)
        return result

    def linear(self, x: Array, weight: Leaf) -> Array:
        if isinstance(weight, Affine):
            return self.linear(x, weight.weight) + weight.bias.astype(self.dtype)
        y: Array = x @ self._dense(weight).T
        if isinstance(weight, LoRA):
            for number, rows in self.adapted:
                lora, gain = weight.adapters[number - 1], weight.gains[number - 1]
                if lora is not None:
                    a, b = lora.a.astype(self.dtype), lora.b.astype(self.dtype)
                    y[rows] += self.dtype(lora.scale) * (x[rows] @ a.T @ b.T)
                if gain is not None:
                    y[rows] *= gain
        return y

    def rms_norm(self, x: Array, weight: Leaf, eps: float) -> Array:
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        result: Array = x / np.sqrt(mean_square + self.dtype(eps)) * (1 + self._dense(weight))
        return result

    def layer_norm(self, x: Array, weight: Affine, eps: float) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        result: Array = centred / np.sqrt(variance + self.dtype(eps)) * self._dense(weight)
        return result + weight.bias.astype(self.dtype)

    def split_heads(self, x: Array, heads: int) -> Array:
        return x.reshape(x.shape[0], heads, -1)

    def rope_angles(self, positions: Array, frequencies: tuple[float, ...]) -> tuple[Array, Array]:
        angles = positions.astype(np.float32)[:, None] * np.asarray(frequencies, dtype=np.float32)
        angles = angles.astype(self.dtype)  # the product is a float32 one by the specification, in the oracle too
        return np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]

    def rope(self, x: Array, angles: tuple[Array, Array]) -> Array:
        cos, sin = angles
        first, second = np.split(x, 2, axis=-1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    def attention(
        self,
        q: Array,
        k: Array,
        v: Array,
        cache: StepCache,
        layer: int,
        visible: Array,
        scale: float,
        softcap: float | None,
    ) -> tuple[Array, StepCache]:
        out = np.empty_like(q)
        group = q.shape[1] // k.shape[1]
        for sequence, rows in zip(cache.caches, cache.rows, strict=True):
            past = sequence.layers.get(layer)
            keys_SKH = k[rows] if past is None else np.concatenate([past[0], k[rows]])
            values_SKH = v[rows] if past is None else np.concatenate([past[1], v[rows]])
            sequence.layers[layer] = keys_SKH, values_SKH
            first, last = visible[rows, 0], visible[rows, 1]
            key = np.arange(len(keys_SKH))
            seen_TS = (key >= first[:, None]) & (key <= last[:, None])
            for head in range(q.shape[1]):
                scores_TS = q[rows, head] @ keys_SKH[:, head // group].T * self.dtype(scale)
                if softcap:
                    scores_TS = self.softcap(scores_TS, softcap)
                scores_TS = np.where(seen_TS, scores_TS, -np.inf)
                weights_TS = np.exp(scores_TS - scores_TS.max(axis=-1, keepdims=True))
                weights_TS /= weights_TS.sum(axis=-1, keepdims=True)
                out[rows, head] = weights_TS @ values_SKH[:, head // group]
        return out.reshape(out.shape[0], -1), cache

    def geglu(self, gate: Array, up: Array) -> Array:
        return self.gelu(gate) * up

    def gelu(self, x: Array) -> Array:
        inner = self.dtype(np.sqrt(2 / np.pi)) * (x + self.dtype(0.044715) * x**3)
        result: Array = self.dtype(0.5) * x * (1 + np.tanh(inner))
        return result

    def place(self, x: Array, rows: Array, values: Array) -> Array:
        result = x.copy()
        result[rows] = values
        return result

    def pool(self, x: Array, count: int) -> Array:
        result: Array = x.reshape(-1, count, x.shape[-1]).mean(axis=1)
        return result

    def add(self, x: Array, y: Array) -> Array:
        return x + y

    def take(self, x: Array, rows: Array) -> Array:
        return x[rows]

    def softcap(self, x: Array, cap: float) -> Array:
        result: Array = self.dtype(cap) * np.tanh(x / self.dtype(cap))
        return result

    def mean_pool(self, x: Array, sequences: Sequence[slice]) -> Array:
        return np.stack([x[rows].mean(axis=0) for rows in sequences])

    def l2_normalize(self, x: Array) -> Array:
        result: Array = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), self.dtype(1e-12))
        return result

    def tap(self, name: str, x: Array) -> Array:
        if self.taps is not None:
            self.taps[name] = x.reshape(x.shape[0], -1).astype(np.float32)
        return x
