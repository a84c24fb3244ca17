"""The oracle itself, against the formulas written out one scalar at a time in Python's own float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemmary.ops.reference import ReferenceOps, SequenceCache, StepCache
from gemmary.quantize.leaves import Dense
from tests.ops.cases import ATTENTION, AttentionCase

OPS = ReferenceOps(np.float64)


def test_rms_norm() -> None:
    x, w = [0.5, -2.0, 3.0], [0.25, 0.0, -1.0]
    root = math.sqrt((0.25 + 4 + 9) / 3 + 1e-6)
    out = OPS.rms_norm(np.array([x]), Dense(np.array(w, np.float32)), 1e-6)
    np.testing.assert_allclose(out[0], [0.5 / root * 1.25, -2 / root, 0.0], rtol=1e-12)


def test_geglu_is_the_tanh_form() -> None:
    for gate in (-3.0, -0.75, 0.0, 0.5, 2.5):
        gelu = 0.5 * gate * (1 + math.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        assert OPS.geglu(np.array([[gate]]), np.array([[1.5]]))[0, 0] == pytest.approx(gelu * 1.5, rel=1e-12, abs=1e-15)


def test_rope_turns_halves() -> None:
    """Pair (x[i], x[i + H/2]) by position * frequency[i]."""
    head, position, frequency = [1.0, 2.0, -3.0, 0.5], 7, (1.0, 0.125)
    out = OPS.rope(np.array([[head]]), OPS.rope_angles(np.array([position]), frequency))[0, 0]
    for i in range(2):
        angle = position * frequency[i]
        a, b = head[i], head[i + 2]
        assert out[i] == pytest.approx(a * math.cos(angle) - b * math.sin(angle), rel=1e-12)
        assert out[i + 2] == pytest.approx(b * math.cos(angle) + a * math.sin(angle), rel=1e-12)


def test_softcap_and_embedding_and_pooling() -> None:
    assert OPS.softcap(np.array([40.0]), 30.0)[0] == pytest.approx(30 * math.tanh(40 / 30), rel=1e-12)
    table = Dense(np.array([[1, 2], [3, 4]], np.float32))
    np.testing.assert_array_equal(OPS.embed(table, np.array([1, 1, 0]), 1.5), [[4.5, 6], [4.5, 6], [1.5, 3]])
    pooled = OPS.mean_pool(np.array([[1.0, 2], [3, 6], [5, 5]]), [slice(0, 2), slice(2, 3)])
    np.testing.assert_array_equal(pooled, [[2, 4], [5, 5]])
    np.testing.assert_allclose(OPS.l2_normalize(np.array([[3.0, -4.0]])), [[0.6, -0.8]], rtol=1e-12)


@pytest.mark.parametrize("case", [c for c in ATTENTION if "long" not in c.name], ids=lambda case: case.name)
def test_attention(case: AttentionCase) -> None:
    """Each output element from the definition: scores of the keys seen, softcap, softmax, weighted values."""
    caches = {sequence: SequenceCache() for sequence in case.lengths}
    keys: dict[int, list[np.ndarray]] = {sequence: [] for sequence in case.lengths}
    values: dict[int, list[np.ndarray]] = {sequence: [] for sequence in case.lengths}
    for call in case.calls():
        q, k, v = (array.astype(np.float64) for array in (call.q, call.k, call.v))
        step = StepCache([caches[s] for s in call.sequences], call.rows)
        out, _ = OPS.attention(q, k, v, step, 0, call.visible, case.scale, case.softcap)
        for sequence, rows in zip(call.sequences, call.rows, strict=True):
            keys[sequence] += list(k[rows])
            values[sequence] += list(v[rows])
            for t in range(rows.start, rows.stop):
                first, last = call.visible[t]
                for head in range(case.heads):
                    kv = head * case.kv_heads // case.heads
                    scores = [float(q[t, head] @ keys[sequence][s][kv]) * case.scale for s in range(first, last + 1)]
                    if case.softcap:
                        scores = [case.softcap * math.tanh(score / case.softcap) for score in scores]
                    weights = [math.exp(score) for score in scores]
                    seen = [values[sequence][s][kv] for s in range(first, last + 1)]
                    mean = sum(w * value for w, value in zip(weights, seen, strict=True)) / sum(weights)
                    np.testing.assert_allclose(out[t].reshape(case.heads, -1)[head], mean, rtol=1e-9, atol=1e-12)
