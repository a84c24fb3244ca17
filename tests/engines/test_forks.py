"""Caches that begin with what another holds, on every engine: they go on as if they had read it themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.engines import open_engine
from tests.runs import why_absent
from tests.tiny import TINY, random_leaves, random_tokens

CONFIG = TINY["gemma3"]
MAX_CHUNK = 16
"""Rings of its windowed layers hold 48 tokens then."""


@pytest.mark.parametrize("engine", ["reference", "torch", "native"])
def test_a_fork_goes_on_like_the_cache_that_it_was_made_of(engine: str) -> None:
    if reason := why_absent(engine):
        pytest.skip(reason)
    config = CONFIG
    tokens, other = random_tokens(config, 40, 1), random_tokens(config, 6, 2)
    built = open_engine(engine, config, random_leaves(config, 3))

    def last(cache: Any, piece: list[int], start: int) -> Any:
        return built.step(Batch.of(config, [Chunk(piece, start)]), [cache])

    cache = built.new_cache(40)
    last(cache, tokens[:30], 0)
    assert built.can_truncate(cache, 20)
    fork = built.fork(cache, 20, 26)
    forked = last(fork, other, 20)
    went_on = last(cache, tokens[30:], 30)
    for found, said in ((forked, tokens[:20] + other), (went_on, tokens)):
        whole = last(built.new_cache(40), said, 0)
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-5 * float(np.abs(whole).max()))


def test_forks_of_any_size_have_the_same_bits() -> None:
    """From a cache without rings into one with, from rings into less than one, across blocks of sixteen."""
    if reason := why_absent("native"):
        pytest.skip(reason)
    from gemmary.engines.native import NativeEngine

    config, said = CONFIG, random_tokens(CONFIG, 90)
    engine = NativeEngine(config, random_leaves(config, 3), threads=2, max_chunk=MAX_CHUNK)

    def read(cache: Any, start: int, stop: int) -> Any:
        for at in range(start, stop, MAX_CHUNK):
            row = engine.step(Batch.of(config, [Chunk(said[at : min(at + MAX_CHUNK, stop)], at)]), [cache])
        return row

    whole = {stop: read(engine.new_cache(200), 0, stop) for stop in (30, 64, 75, 90)}
    for capacity, held, length, larger, stop in (
        (18, 18, 17, 300, 30),
        (20, 20, 18, 90, 64),
        (300, 80, 64, 75, 75),
        (300, 90, 75, 90, 90),
        (300, 49, 33, 35, 64),
    ):
        cache = engine.new_cache(capacity)
        read(cache, 0, held)
        assert engine.can_truncate(cache, length)
        fork = engine.fork(cache, length, max(larger, stop))
        np.testing.assert_array_equal(read(fork, length, stop), whole[stop])
        assert engine.can_truncate(cache, 5) == (held < 50)


def test_a_cache_takes_over_from_its_like_only() -> None:
    core = pytest.importorskip("gemmary._core", reason="the native core is not built")

    def cache(heads: int = 1, capacity: int = 32, kv_dtype: str = "float32") -> Any:
        return core.KvCache([64, 64], heads, 8, capacity, kv_dtype, False)

    for other in (cache(heads=2), cache(kv_dtype="int8")):
        with pytest.raises(ValueError, match="made for another model"):
            cache().copy(other, 0)
    with pytest.raises(ValueError, match="no more tokens than the other holds"):
        cache().copy(cache(), 1)
