"""What the profile counts, exactly: bytes as packed, each operand once; two operations a multiply-add."""

from __future__ import annotations

from math import ceil

import pytest

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.engines.native import NativeEngine, Timing
from tests.engines.helpers import stored
from tests.tiny import TINY, random_tokens


def timings(engine: NativeEngine, lengths: list[int], steps: int = 1, outputs: str = "last") -> dict[str, Timing]:
    """After `steps` steps in which every sequence is given so many more tokens; by label, the first of each."""
    caches = [engine.new_cache(100) for _ in lengths]
    engine.profile(True)
    for step in range(steps):
        chunks = [Chunk(random_tokens(engine.config, n), start=step * n, outputs=outputs) for n in lengths]
        engine.step(Batch.of(engine.config, chunks), caches)
    found: dict[str, Timing] = {}
    for timing in engine.timings():
        found.setdefault(timing.label, timing)
    engine.profile(False)
    return found


def figures(timing: Timing) -> tuple[int, ...]:
    """Bytes of weights, of the caches and of activations; int8 and float operations."""
    costs = (timing.weight_bytes, timing.cache_bytes, timing.activation_bytes)
    return (*costs, timing.int8_operations, timing.float_operations)


def seen(config: Config, layer: int, lengths: list[int]) -> tuple[int, int]:
    """Keys that the rows of whole sequences see in one layer: all of them counted, and each key once."""
    window = config.window(config.layer_types[layer])
    rows = [min(row + 1, window or row + 1) for n in lengths for row in range(n)]
    return sum(rows), sum(lengths)


def test_every_instruction_has_a_line() -> None:
    engine = NativeEngine(TINY["gemma3"], stored(TINY["gemma3"], "F32"), threads=1)
    found = timings(engine, [3])
    assert next(iter(found)) == "embed embed"
    assert "linear layers.0.gate+up" in found
    assert all(timing.seconds >= 0 for timing in found.values())


def test_float_weights_count_as_packed() -> None:
    """Rows of a matrix are packed by sixteen, so that an odd number of them is filled up."""
    config = TINY["gemma2"]
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    found = timings(NativeEngine(config, stored(config, "F32"), threads=2), [5, 2])
    panels = 16 * ceil(f / 16)
    assert figures(found["linear layers.1.gate+up"]) == (
        2 * 4 * panels * d,
        0,
        4 * 7 * (d + 2 * f),
        0,
        2 * 2 * 7 * f * d,
    )
    assert figures(found["linear layers.1.down"]) == (4 * 16 * ceil(d / 16) * f, 0, 4 * 7 * (d + f), 0, 2 * 7 * f * d)
    # Two rows of logits; a token's row of the table stands in a panel of sixteen.
    assert figures(found["linear embed"]) == (4 * 16 * ceil(v / 16) * d, 0, 4 * 2 * (d + v), 0, 2 * 2 * v * d)
    assert figures(found["embed embed"]) == (7 * 4 * 16 * d, 0, 4 * 7 * d, 0, 7 * d)


@pytest.mark.parametrize(("format", "group_bytes"), [("Q8_0", 34), ("Q4_0", 18)])
def test_quantized_weights_meet_int8(format: str, group_bytes: int) -> None:
    config = TINY["gemma3-q32"]
    d, f = config.hidden_size, config.intermediate_size
    found = timings(NativeEngine(config, stored(config, format), threads=2), [6])
    # A panel's sixteen rows have whole groups of 32 and end on a cache line.
    panel = 64 * ceil(16 * group_bytes * (f // 32) / 64)
    expected = (ceil(d / 16) * panel, 0, 4 * 6 * (d + f), 2 * 6 * d * f, 0)
    assert figures(found["linear layers.0.down"]) == expected


@pytest.mark.parametrize("format", ["F32", "BF16"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3-mqa"])
def test_attention_counts_the_keys_that_are_seen(name: str, format: str) -> None:
    config = TINY[name]
    lengths = [17, 1, 9]
    found = timings(NativeEngine(config, stored(config, format), threads=2), lengths)
    element = 4 if format == "F32" else 2
    kv, q, tokens = config.kv_size, config.num_heads * config.head_dim, sum(lengths)
    kinds = set()
    for layer, kind in enumerate(config.layer_types):
        pairs, keys = seen(config, layer, lengths)
        kinds.add((kind, pairs))
        expected = (0, 2 * (keys + tokens) * kv * element, 4 * tokens * 2 * (q + kv), 0, 4 * pairs * q)
        assert figures(found[f"attention layers.{layer}"]) == expected
    assert len(kinds) == 2, "the window bites"


def test_a_decode_reads_the_window_alone_and_steps_add_up() -> None:
    config = TINY["gemma3-mqa"]
    window = config.sliding_window
    assert window is not None
    found = timings(NativeEngine(config, stored(config, "F32"), threads=2), [1], steps=40)
    kv, q = config.kv_size, config.num_heads * config.head_dim
    for layer, kind in enumerate(config.layer_types):
        keys = sum(min(length, window) if kind == "local" else length for length in range(1, 41))
        expected = (0, 2 * (keys + 40) * kv * 4, 4 * 40 * 2 * (q + kv), 0, 4 * keys * q)
        assert figures(found[f"attention layers.{layer}"]) == expected


def test_elementwise_operations() -> None:
    config = TINY["gemma2"]
    d, f, v = config.hidden_size, config.intermediate_size, config.vocab_size
    q, tokens, rows = config.num_heads * config.head_dim, 7, 2
    found = timings(NativeEngine(config, stored(config, "F32"), threads=2), [5, 2])
    assert figures(found["rms_norm layers.0.attn_norm"]) == (0, 0, 4 * tokens * 2 * d, 0, 4 * tokens * d)
    assert figures(found["rope_angles"]) == (0, 0, 4 * tokens * config.head_dim, 0, 3 * tokens * config.head_dim // 2)
    assert figures(found["rope"]) == (0, 0, 4 * tokens * (2 * q + config.head_dim), 0, 3 * tokens * q)
    assert figures(found["geglu"]) == (0, 0, 4 * tokens * 3 * f, 0, 10 * tokens * f)
    assert figures(found["add"]) == (0, 0, 4 * tokens * 3 * d, 0, tokens * d)
    assert figures(found["take"]) == (0, 0, 4 * rows * 2 * d, 0, 0)
    assert figures(found["softcap"]) == (0, 0, 4 * rows * 2 * v, 0, 3 * rows * v)


def test_no_outputs_cost_no_head() -> None:
    config = TINY["gemma3"]
    found = timings(NativeEngine(config, stored(config, "F32"), threads=1), [4], outputs="none")
    assert figures(found["linear embed"]) == (0, 0, 0, 0, 0)


def test_profiling_changes_no_bit_and_begins_anew() -> None:
    config = TINY["gemma3-q32"]
    engine = NativeEngine(config, stored(config, "Q8_0"), threads=2)
    batch = Batch.of(config, [Chunk(random_tokens(config, 9), outputs="all")])
    plain = engine.step(batch, [engine.new_cache(9)])
    engine.profile(True)
    assert engine.step(batch, [engine.new_cache(9)]).tobytes() == plain.tobytes()
    once = [figures(timing) for timing in engine.timings()]
    engine.profile(True)
    engine.step(batch, [engine.new_cache(9)])
    assert [figures(timing) for timing in engine.timings()] == once
    engine.profile(False)
    assert all(figures(timing) == (0, 0, 0, 0, 0) and timing.seconds == 0 for timing in engine.timings())
