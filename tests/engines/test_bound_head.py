"""The head that computes only what may be among the k largest: those rows are there, and have the full head's bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary import _core
from gemmary.batch import Batch, Chunk
from gemmary.engines.native import NativeEngine
from gemmary.engines.native_weights import pack
from gemmary.engines.trace import TraceOps, Weight, compile_trace
from gemmary.generate.params import SamplingParams
from gemmary.quantize.leaves import Blocks
from tests.engines.helpers import same_bits, stored
from tests.tiny import TINY, random_tokens

Array = npt.NDArray[Any]
INPUTS = 96


def q8_0(codes: Array, scales: Array) -> Blocks:
    """codes int8 [rows, inputs], scales float16 [rows, inputs / 32]."""
    rows, groups = scales.shape
    parts = [scales[:, :, None].view(np.uint8), codes.reshape(rows, groups, 32).view(np.uint8)]
    return Blocks("Q8_0", codes.shape, np.concatenate(parts, axis=2).reshape(rows, -1))


class Head:
    """A head alone, as a program of one linear instruction."""

    def __init__(self, leaf: Blocks, threads: int = 2, isa: str | None = None) -> None:
        runtime = _core.Runtime(threads, isa)
        self.weight = pack(runtime, leaf, leaf.format)
        self.bounded = self.weight.add_high_halves(runtime)
        ops = TraceOps()
        x = ops.value("T", leaf.shape[1])
        out = ops.linear(x, Weight("head", self.weight))
        self.program = compile_trace(_core, runtime, ops, [x, out], 0)

    def __call__(self, x: Array, candidates: int = 0) -> Array:
        x = np.ascontiguousarray(np.atleast_2d(x), dtype=np.float32)
        y = np.full((len(x), self.weight.rows), np.nan, np.float32)
        steps = np.arange(len(x), dtype=np.int32)
        whole = np.array([[0, len(x)]], np.int32)
        self.program.run(steps, steps, [], np.zeros(0, np.int32), whole, [], [x, y], candidates=candidates)
        return y


def random_head(kind: str, rows: int, seed: int = 0) -> Blocks:
    rng = np.random.default_rng(seed)
    codes = np.clip(rng.normal(0, 45, (rows, INPUTS)), -128, 127).astype(np.int8)
    scales = rng.uniform(0.5, 2, (rows, INPUTS // 32)).astype(np.float16) / np.float16(1000)
    if kind == "ties":
        codes[:], scales[:] = codes[rng.integers(0, 7, rows)], scales[0]
    if kind == "alike":  # rows that only their low halves tell apart
        codes[:] = (codes[0] & ~0xF) | rng.integers(0, 16, codes.shape).astype(np.int8)
        scales[:] = scales[0]
    if kind == "extremes":
        codes[:] = rng.choice(np.array([-128, -113, -1, 0, 15, 127], np.int8), codes.shape)
        scales[rng.random(scales.shape) < 0.2] = 0
        scales[rng.random(scales.shape) < 0.02] = 60000
    return q8_0(codes, scales)


def random_row(kind: str, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 1, INPUTS)
    if kind == "outliers":
        x[rng.integers(0, INPUTS, 3)] *= 1e5
    if kind == "sparse":
        x[rng.random(INPUTS) < 0.9] = 0
    return np.asarray(
        x * {"huge": 1e30, "large": 1e27, "small": 1e-12, "tiny": 1e-36, "zero": 0}.get(kind, 1), np.float32
    )


def check(full: Array, bounded: Array, k: int) -> int:
    """Nothing of the k largest, with ties, is missing, and what is there is right. How many are left out."""
    (full,), (bounded,) = full, bounded
    there = bounded != -np.inf
    wanted = full >= np.partition(full, -k)[-k]
    assert there[wanted].all()
    assert same_bits(full[there], bounded[there])
    return int((~there).sum())


@pytest.mark.parametrize("kind", ["normal", "ties", "alike", "extremes"])
def test_the_largest_rows_are_exact(kind: str) -> None:
    head = Head(random_head(kind, 2048))
    assert head.bounded
    for seed, row in enumerate(["normal", "outliers", "sparse", "huge", "large", "small", "tiny", "zero"] * 12):
        x = random_row(row, seed)
        full = head(x)
        for k in (1, 2, 8):
            left_out = check(full, head(x, k), k)
            if kind == "normal" and row in ("normal", "outliers", "sparse", "small"):
                assert left_out > 0
            if row in ("tiny", "zero", "huge"):
                assert left_out == 0  # no bound is promised


def test_a_row_that_wins_by_its_low_halves_alone() -> None:
    codes, scales = np.zeros((512, INPUTS), np.int8), np.ones((512, INPUTS // 32), np.float16)
    codes[300, 70] = 1
    head = Head(q8_0(codes, scales))
    y = head(np.ones(INPUTS), 1)
    assert np.argmax(y) == 300
    check(head(np.ones(INPUTS)), y, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_a_number_is_seen(value: float) -> None:
    head = Head(random_head("normal", 512))
    x = random_row("normal", 0)
    x[40] = value
    np.testing.assert_array_equal(head(x, 1), head(x))
    assert not np.isfinite(head(x, 1)).all()


@pytest.mark.parametrize("scale", [-0.5, np.nan, np.inf, -np.inf])
def test_scales_that_no_bound_holds_for(scale: float) -> None:
    codes, scales = np.ones((512, INPUTS), np.int8), np.ones((512, INPUTS // 32), np.float16)
    scales[200, 1] = scale
    head = Head(q8_0(codes, scales))
    assert not head.bounded
    assert same_bits(head(np.ones(INPUTS), 1), head(np.ones(INPUTS)))


def test_several_rows_and_many_candidates_take_the_full_head() -> None:
    head = Head(random_head("normal", 2048))
    x = np.stack([random_row("normal", seed) for seed in range(3)])
    assert same_bits(head(x, 1), head(x))
    assert same_bits(head(x[:1], 9), head(x[:1]))


def test_what_is_left_out_does_not_depend_on_threads_or_instructions() -> None:
    leaf = random_head("normal", 2048)
    first = Head(leaf, 1)
    others = [Head(leaf, threads, isa) for isa in _core.available_isas() for threads in (1, 3)]
    for seed in range(8):
        x = random_row("outliers" if seed % 2 else "normal", seed)
        for k in (1, 4):
            expected = first(x, k)
            assert all(same_bits(other(x, k), expected) for other in others)


def test_a_large_head_pauses_where_bounding_does_not_pay() -> None:
    leaf, other = random_head("alike", 4096 * 16), random_head("normal", 16)
    leaf.data[0] = other.data[0]
    head = Head(leaf)
    # One row stands out; or none does, and only their low halves tell the rows apart.
    steep, flat = np.asarray(leaf.dequantize()[0], np.float32), random_row("normal", 1)
    pruned = [check(head(x), head(x, 1), 1) > 0 for x in (steep, flat, steep, steep)]
    assert pruned == [True, False, False, True]  # after a try that left most panels one step does not try


def test_an_engine_with_it() -> None:
    config = replace(TINY["gemma3-q32"], vocab_size=512)
    engine = NativeEngine(config, stored(config, "Q8_0"), threads=2)
    assert engine.bound_head() == engine.info.formats["Q8_0 high halves"] > 0
    chunk = Chunk(random_tokens(config, 9))
    full, bounded = (engine.step(Batch.of(config, [chunk], k), [engine.new_cache(9)]) for k in (0, 1))
    check(full, bounded, 1)


def test_it_comes_by_itself_after_greedy_steps() -> None:
    config = replace(TINY["gemma3-q32"], vocab_size=512)
    engine = NativeEngine(config, stored(config, "Q8_0"), threads=2)
    token = Chunk(random_tokens(config, 1))
    engine.bound_head_after = 3
    for candidates, tokens, left in ((1, 1, 2), (0, 1, 2), (1, 2, 2), (1, 1, 1), (1, 1, None)):
        assert "Q8_0 high halves" not in engine.info.formats
        chunks = [token] * tokens
        engine.step(Batch.of(config, chunks, candidates), [engine.new_cache(1) for _ in chunks])
        assert engine.bound_head_after == left
    assert "Q8_0 high halves" in engine.info.formats


@pytest.mark.parametrize(("name", "format"), [("gemma2-q32", "Q8_0"), ("gemma3-q32", "Q4_0")])
def test_heads_that_are_not_bounded(name: str, format: str) -> None:
    config = replace(TINY[name], vocab_size=512)  # Gemma 2 caps its logits
    engine = NativeEngine(config, stored(config, format), threads=2)
    assert engine.bound_head() == 0
    assert "Q8_0 high halves" not in engine.info.formats


def test_what_sampling_needs() -> None:
    assert SamplingParams(temperature=0.0).candidates == 1
    assert SamplingParams(top_k=5).candidates == 5
    assert SamplingParams(top_k=0).candidates == 0
    assert SamplingParams(temperature=0.0, logprobs=0).candidates == 0
    assert SamplingParams(temperature=0.0, repetition_penalty=1.1).candidates == 0
