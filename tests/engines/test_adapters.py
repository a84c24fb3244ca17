"""Adapters on every engine: what they compute, and on the native one, that nothing else in a step changes a bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gemmary import _core
from gemmary.adapters import wrapped
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints.peft import Adapter
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.engines.native import NativeEngine
from gemmary.engines.native_weights import pack
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Dense
from tests.checkpoints.adapters import merged, mixed_adapter, random_adapter
from tests.engines.helpers import Array, same_bits, stored
from tests.runs import relative_error, why_absent
from tests.tiny import TINY, random_leaves, random_tokens

FAMILIES = ("gemma", "gemma2", "gemma3", "embeddinggemma")


def adapters_of(config: Config) -> list[Adapter]:
    """Plain LoRA of two ranks, DoRA, and one that leaves most weights alone."""
    some = random_adapter(config, seed=3, rank=17, targets=("q_proj", "down_proj"))
    return [mixed_adapter(config), random_adapter(config, seed=2, rank=4, dora=True), some]


def run(engine: Any, sequences: Sequence[tuple[Sequence[int], int]]) -> list[Array]:
    """Logits of every position (an encoder's vectors) of sequences with the numbers of their adapters, in one step."""
    if engine.config.bidirectional:
        batch = Batch.of(engine.config, [Chunk(tokens, outputs="none", adapter=n) for tokens, n in sequences])
        return list(engine.embed(batch))
    batch = Batch.of(engine.config, [Chunk(tokens, outputs="all", adapter=n) for tokens, n in sequences])
    logits = engine.step(batch, [engine.new_cache(len(tokens)) for tokens, _ in sequences])
    return np.split(logits, np.cumsum([len(tokens) for tokens, _ in sequences])[:-1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["reference", "torch", "native"])
def test_an_adapter_is_its_merged_weights(family: str, name: str) -> None:
    if reason := why_absent(name):
        pytest.skip(reason)
    config = TINY[family]
    lookup, adapters = random_leaves(config), adapters_of(config)
    engine = open_engine(name, config, wrapped(lookup, config, adapters), dtype="float32")
    tokens = random_tokens(config, 14)
    found = run(engine, [(tokens, number) for number in (2, 0, 1, 3)])
    base = run(open_engine("reference", config, lookup), [(tokens, 0)])[0]
    assert relative_error(found[1], base) < 2e-5
    for number, logits in zip((2, 1, 3), (found[0], *found[2:]), strict=True):
        expected = run(open_engine("reference", config, merged(lookup, adapters[number - 1])), [(tokens, 0)])[0]
        assert relative_error(logits, expected) < 3e-5, number
        assert relative_error(base, expected) > 0.05, number


CASES = [("gemma2", "F32"), ("gemma3-q32", "Q4_0"), ("gemma2-q32", "BF16")]
each_case = pytest.mark.parametrize(("name", "format"), CASES)


def open_case(name: str, format: str, **options: Any) -> NativeEngine:
    config = TINY[name]
    return NativeEngine(
        config, wrapped(stored(config, format), config, adapters_of(config)), **{"threads": 2, **options}
    )


@each_case
def test_a_sequence_has_the_same_bits_in_any_batch(name: str, format: str) -> None:
    engine = open_case(name, format)
    plain = NativeEngine(engine.config, stored(engine.config, format), threads=2)
    cases = [(random_tokens(engine.config, 1 + 7 * n % 19, seed=n), (n * n) % 4) for n in range(24)]
    alone = [run(engine if number else plain, [(tokens, number)])[0] for tokens, number in cases]
    for count in (2, 5, 24):
        for n, logits in enumerate(run(engine, cases[:count])):
            assert same_bits(logits, alone[n]), (count, n)


@each_case
def test_and_in_any_chunks_threads_and_instruction_sets(name: str, format: str) -> None:
    tokens = random_tokens(TINY[name], 90)
    for number in (1, 2):
        whole = run(open_case(name, format, threads=1, isa="scalar"), [(tokens, number)])[0]
        for isa in _core.available_isas():
            for threads, size in ((1, 1), (2, 7), (3, 90)):
                engine = open_case(name, format, threads=threads, isa=isa)
                cache, rows = engine.new_cache(90), []
                for start in range(0, 90, size):
                    chunk = Chunk(tokens[start : start + size], start, outputs="all", adapter=number)
                    rows.append(engine.step(Batch.of(engine.config, [chunk]), [cache]))
                assert same_bits(np.concatenate(rows), whole), (number, isa, threads, size)


def test_an_adapter_that_was_not_loaded() -> None:
    engine = open_case("gemma2", "F32")
    for number in (-1, 4):
        with pytest.raises(GemmaryError, match=f"asks for adapter {number} and the model was loaded with 3"):
            run(engine, [([1, 2], number)])
    plain = NativeEngine(engine.config, random_leaves(engine.config))
    with pytest.raises(GemmaryError, match="asks for adapter 1 and the model was loaded with 0"):
        run(plain, [([1, 2], 1)])


def test_what_they_take_and_cost() -> None:
    engine, plain = (
        open_case("gemma2-q32", "Q8_0"),
        NativeEngine(TINY["gemma2-q32"], stored(TINY["gemma2-q32"], "Q8_0")),
    )
    held = sum(adapter.nbytes for adapter in adapters_of(engine.config))
    assert held <= engine.info.formats["F32 adapters"] <= 4 * held  # ranks fill panels of 16
    assert "F32 adapters" not in plain.info.formats
    engine.profile(True)
    bytes_of = []
    for number in (0, 3, 1):
        engine.profile(True)
        run(engine, [([1, 2, 3], number)])
        bytes_of.append(sum(each.weight_bytes for each in engine.timings()))
    plain.profile(True)
    run(plain, [([1, 2, 3], 0)])
    assert bytes_of[0] == sum(each.weight_bytes for each in plain.timings())
    assert bytes_of[0] < bytes_of[1] < bytes_of[2]


@pytest.mark.parametrize(
    ("a", "b", "gain", "format"),
    [((2, 7), (6, 2), None, "F32"), ((2, 8), (5, 2), None, "F32"), ((2, 8), (6, 3), None, "F32"),
     ((2, 8), (6, 2), 5, "F32"), ((2, 8), (6, 2), None, "BF16")],
)  # fmt: skip
def test_matrices_that_do_not_fit(a: tuple[int, int], b: tuple[int, int], gain: int | None, format: str) -> None:
    runtime = _core.Runtime(1, None)

    def packed(shape: tuple[int, int], format: str = "F32") -> Any:
        return pack(runtime, Dense(np.ones(shape, np.float32)), format)

    def build() -> None:
        gains = None if gain is None else np.ones(gain, np.float32)
        lora = _core.Lora(packed(a, format), packed(b), 1.0, gains)
        program = _core.Program(runtime, [], [("T", 8, 0, True), ("T", 6, 1, True)], 0, 2)
        program.linear("", [1], 0, [packed((6, 8))], [[lora]], [None])

    with pytest.raises(ValueError, match="adapter"):
        build()
