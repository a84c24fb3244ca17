"""Attention over each type of cache, held against numpy on keys and values rounded as the type rounds them."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.ops.cases import Array
from tests.ops.native_ops import NativeOps

TYPES = ["float32", "bfloat16", "int8"]
HEADS, KV_HEADS = 4, 2


def rounded(x: Array, kv_dtype: str, group: int | None = None) -> Array:
    """[T, kv_heads, H] as a cache of that type gives it back; int8: with a scale for each `group` elements."""
    if group is not None:
        parts = [rounded(x[..., i : i + group], kv_dtype) for i in range(0, x.shape[-1], group)]
        return np.concatenate(parts, axis=-1)
    if kv_dtype == "bfloat16":
        return x.astype(ml_dtypes.bfloat16).astype(np.float32)
    if kv_dtype == "int8":
        scale = np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)
        return np.rint(x * (np.float32(1) / scale)) * scale
    return x


def expected(q: Array, k: Array, v: Array, visible: Array, scale: float) -> Array:
    """Softmax attention in float64: q [T, heads, H], k and v [all, kv_heads, H]."""
    out = np.zeros(q.shape)
    for t, (first, last) in enumerate(visible):
        for head in range(q.shape[1]):
            key = head * k.shape[1] // q.shape[1]
            scores = scale * k[first : last + 1, key].astype(np.float64) @ q[t, head].astype(np.float64)
            weights = np.exp(scores - scores.max())
            out[t, head] = weights / weights.sum() @ v[first : last + 1, key].astype(np.float64)
    return out


class Sequence:
    """One sequence fed in steps, with every key and value that was stored."""

    def __init__(self, kv_dtype: str, head_dim: int, *, kept: int, capacity: int) -> None:
        self.ops, self.kv_dtype, self.head_dim = NativeOps(threads=3), kv_dtype, head_dim
        self.cache = self.ops.core.KvCache([kept], KV_HEADS, head_dim, capacity, kv_dtype, False)
        self.rng = np.random.default_rng(head_dim)
        self.keys = np.zeros((0, KV_HEADS, head_dim), np.float32)
        self.values = self.keys

    def draw(self, rows: int, heads: int) -> Array:
        return self.rng.standard_normal((rows, heads, self.head_dim)).astype(np.float32)

    def step(self, rows: int, visible: Any) -> None:
        """visible: first and last key for each of the new positions."""
        q, k, v = self.draw(rows, HEADS), self.draw(rows, KV_HEADS), 3 * self.draw(rows, KV_HEADS)
        positions = range(len(self.keys), len(self.keys) + rows)
        seen = np.array([visible(position) for position in positions], np.int32)
        out, _ = self.ops.attention(q, k, v, ([self.cache], (slice(0, rows),)), 0, seen, 0.3, None)
        self.keys = np.concatenate([self.keys, rounded(k, self.kv_dtype, group=32)])
        self.values = np.concatenate([self.values, rounded(v, self.kv_dtype)])
        want = expected(q, self.keys, self.values, seen, 0.3)
        np.testing.assert_allclose(out.reshape(want.shape), want, rtol=2e-4, atol=2e-4)

    def truncate(self, length: int) -> None:
        self.cache.truncate(length)
        self.keys, self.values = self.keys[:length], self.values[:length]


@pytest.mark.parametrize("kv_dtype", TYPES)
@pytest.mark.parametrize("head_dim", [6, 34, 72])
def test_causal_over_several_spans_and_cut_back(kv_dtype: str, head_dim: int) -> None:
    sequence = Sequence(kv_dtype, head_dim, kept=700, capacity=700)
    for rows in (300, 1, 5, 260, 1):
        sequence.step(rows, lambda position: (0, position))
    for length in (560, 301, 250):  # as guesses that were wrong are taken back, within a word and beyond a span
        sequence.truncate(length)
        sequence.step(3, lambda position: (0, position))


@pytest.mark.parametrize("kv_dtype", TYPES)
def test_a_ring_that_wraps(kv_dtype: str) -> None:
    sequence = Sequence(kv_dtype, 34, kept=30 + 9 + 16, capacity=500)
    for rows in (9, 9, 1, 7, 9, 3, 9, 9, 9, 1, 1, 9, 9, 9, 8, 9):
        sequence.step(rows, lambda position: (max(0, position - 29), position))


@pytest.mark.parametrize("kv_dtype", TYPES)
def test_a_prefix_that_sees_itself_whole(kv_dtype: str) -> None:
    sequence = Sequence(kv_dtype, 34, kept=400, capacity=400)
    sequence.step(270, lambda position: (0, max(position, 265)))
    sequence.step(2, lambda position: (0, position))


def test_what_is_zero_stays_zero_in_int8() -> None:
    ops = NativeOps()
    cache = ops.core.KvCache([16], 1, 8, 16, "int8", False)
    zeros, visible = np.zeros((2, 1, 8), np.float32), np.array([[0, 0], [0, 1]], np.int32)
    out, _ = ops.attention(zeros, zeros, zeros, ([cache], (slice(0, 2),)), 0, visible, 1.0, None)
    assert not out.any()


def test_names_of_types() -> None:
    with pytest.raises(ValueError, match="float32, bfloat16 or int8, not int4"):
        NativeOps().core.KvCache([16], 1, 8, 16, "int4", False)
