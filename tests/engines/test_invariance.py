"""A row's bits are the same in any batch, in chunks of any size, on any number of threads and instruction set."""

from __future__ import annotations

from typing import Any

import pytest

from gemmary import _core
from gemmary.batch import Batch, Chunk
from gemmary.engines.native import NativeEngine
from tests.engines.helpers import in_steps, same_bits, stored, together
from tests.tiny import TINY, random_tokens

CASES = [
    ("gemma", "F32", None, "auto"),
    ("gemma2", "BF16", None, "auto"),
    ("gemma3-mqa", "F16", None, "auto"),
    ("gemma3-mqa", "BF16", None, "int8"),
    ("gemma2-q32", "Q8_0", None, "int8"),
    ("gemma3-q32", "Q4_0", None, "auto"),
    ("gemma3-q32", "Q8_0", "bfloat16", "auto"),
]
each_case = pytest.mark.parametrize(("name", "format", "dtype", "kv_dtype"), CASES, ids=lambda value: str(value))
LENGTH = 100


def open_case(name: str, format: str, dtype: str | None, kv_dtype: str, **options: Any) -> NativeEngine:
    return NativeEngine(
        TINY[name], stored(TINY[name], format), dtype=dtype, kv_dtype=kv_dtype, **{"threads": 2, **options}
    )


@each_case
def test_chunks(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    engine = open_case(name, format, dtype, kv_dtype)
    tokens = random_tokens(engine.config, LENGTH)
    whole = in_steps(engine, tokens, [LENGTH])
    for sizes in ([1], [7], [64], [50, 1], [3, 17, 16, 15]):
        assert same_bits(in_steps(engine, tokens, sizes), whole), sizes


@each_case
def test_rings(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    """A layer's cache that wraps gives the bits of one that keeps everything."""
    engine = open_case(name, format, dtype, kv_dtype)
    ringed = open_case(name, format, dtype, kv_dtype, max_chunk=7)
    tokens = random_tokens(engine.config, LENGTH)
    whole = in_steps(engine, tokens, [LENGTH])
    for sizes in ([7], [1], [5, 2]):
        assert same_bits(in_steps(ringed, tokens, sizes, capacity=200), whole), sizes


@each_case
def test_keys_cut_into_spans(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    """A few tokens of a long text share its keys among the threads; many do not."""
    tokens = random_tokens(TINY[name], 600)
    whole = in_steps(open_case(name, format, dtype, kv_dtype, threads=1, max_chunk=600), tokens, [600])
    for threads in (1, 3):
        engine = open_case(name, format, dtype, kv_dtype, threads=threads)
        assert same_bits(in_steps(engine, tokens, [500, 1, 1, 3, 8]), whole), threads


@each_case
def test_batches_of_up_to_64(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    engine = open_case(name, format, dtype, kv_dtype)
    sequences = [random_tokens(engine.config, 1 + 5 * n % 23, seed=n) for n in range(64)]
    alone = [together(engine, [tokens])[0] for tokens in sequences]
    for count in (2, 3, 64):
        for n, logits in enumerate(together(engine, sequences[:count])):
            assert same_bits(logits, alone[n]), (count, n)


@each_case
def test_a_decode_beside_a_prompt(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    engine = open_case(name, format, dtype, kv_dtype)
    tokens, other = random_tokens(engine.config, 30), random_tokens(engine.config, 41)
    whole = in_steps(engine, tokens, [30])
    cache, rest = engine.new_cache(30), engine.new_cache(41)
    engine.step(Batch.of(engine.config, [Chunk(tokens[:29])]), [cache])
    mixed = Batch.of(engine.config, [Chunk(other), Chunk(tokens[29:], start=29)])
    assert same_bits(engine.step(mixed, [rest, cache])[1:], whole[29:])


@each_case
def test_threads_and_instruction_sets(name: str, format: str, dtype: str | None, kv_dtype: str) -> None:
    first = open_case(name, format, dtype, kv_dtype, threads=1, isa="scalar")
    tokens = random_tokens(first.config, LENGTH)
    whole = in_steps(first, tokens, [LENGTH])
    for isa in _core.available_isas():
        for threads in (1, 2, 3, 4):
            engine = open_case(name, format, dtype, kv_dtype, threads=threads, isa=isa)
            assert engine.info.device == f"cpu ({isa})"
            assert engine.info.threads == threads
            assert same_bits(in_steps(engine, tokens, [64, 1]), whole), (isa, threads)
