"""The native engine against the oracle: every family, every stored format, taps, caches that wrap, embeddings."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.engines.native import NativeEngine
from gemmary.engines.reference import ReferenceEngine
from tests.engines.helpers import Array, in_steps, stored, together
from tests.tiny import ODD, TINY, random_leaves, random_tokens


def error(actual: Array, expected: Array) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def rms(actual: Array, expected: Array) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("name", TINY)
def test_every_intermediate_in_float32(name: str) -> None:
    config = TINY[name]
    lookup = random_leaves(config)
    reference, native = ReferenceEngine(config, lookup), NativeEngine(config, lookup, threads=2)
    batch = Batch.of(config, [Chunk(random_tokens(config, n), outputs="all") for n in (17, 1, 30)])
    expected: dict[str, Array] = {}
    taps: dict[str, Array] = {}
    reference.step(batch, [reference.new_cache(30) for _ in batch.sequences], expected)
    logits = native.step(batch, [native.new_cache(30) for _ in batch.sequences], taps)
    assert set(taps) == set(expected)
    for tap, values in expected.items():
        assert error(taps[tap], values) < 2e-5, tap
    plain = native.step(batch, [native.new_cache(30) for _ in batch.sequences])
    assert np.array_equal(plain, logits)
    assert np.array_equal(taps["logits"], logits)


@pytest.mark.parametrize(
    ("format", "bound"), [("F32", 1e-5), ("BF16", 0.01), ("F16", 0.01), ("Q8_0", 0.05), ("Q4_0", 0.05)]
)
@pytest.mark.parametrize("name", ["gemma-q32", "gemma2-q32", "gemma3-q32"])
def test_stored_formats(name: str, format: str, bound: float) -> None:
    """Against the oracle on the same weights. What differs: keys and values in bfloat16, activations in int8."""
    config = TINY[name]
    lookup = stored(config, format)
    reference, native = ReferenceEngine(config, lookup), NativeEngine(config, lookup, threads=2)
    tokens = random_tokens(config, 40)
    (expected,) = together(reference, [tokens])
    (logits,) = together(native, [tokens])
    assert rms(logits, expected) < bound
    assert native.info.formats[format] > 0
    exact = NativeEngine(config, lookup, dtype="float32", threads=2)
    assert error(together(exact, [tokens])[0], expected) < 2e-5
    assert set(exact.info.formats) == {"F32"}


def test_bfloat16_holds_every_matrix_in_bfloat16() -> None:
    config = TINY["gemma3-q32"]
    native = NativeEngine(config, stored(config, "Q8_0"), dtype="bfloat16", threads=1)
    matrices = native.info.formats["BF16"]
    assert set(native.info.formats) == {"BF16", "F32"}
    assert matrices > native.info.formats["F32"]
    tokens = random_tokens(config, 20)
    (expected,) = together(ReferenceEngine(config, stored(config, "Q8_0")), [tokens])
    assert rms(together(native, [tokens])[0], expected) < 0.02


@pytest.mark.parametrize("name", [name for name in ODD if not TINY[name].bidirectional])
def test_decoding_far_past_a_ring(name: str) -> None:
    """Windowed layers keep rings of a few blocks here, which wrap several times."""
    config = TINY[name]
    lookup = random_leaves(config)
    tokens = random_tokens(config, 130)
    (expected,) = together(ReferenceEngine(config, lookup), [tokens])
    native = NativeEngine(config, lookup, threads=2, max_chunk=9)
    for sizes in ([9], [1], [9, 9, 4, 1]):
        assert error(in_steps(native, tokens, sizes, capacity=300), expected) < 2e-5
    if config.sliding_window:
        small, large = native.new_cache(300), NativeEngine(config, lookup, threads=1).new_cache(300)
        assert small.nbytes < large.nbytes


def test_prefixes_and_decodes_in_one_step() -> None:
    config = TINY["gemma2"]
    lookup = random_leaves(config)
    engines = [ReferenceEngine(config, lookup), NativeEngine(config, lookup, threads=2)]
    a, b = random_tokens(config, 20), random_tokens(config, 31)
    results = []
    for engine in engines:
        caches = [engine.new_cache(64), engine.new_cache(64)]
        engine.step(Batch.of(config, [Chunk(a[:12], prefix=8)]), caches[:1])
        mixed = [Chunk(b, prefix=31, outputs="all"), Chunk(a[12:13], start=12, prefix=8)]
        results.append(engine.step(Batch.of(config, mixed), caches[::-1]))
    assert error(results[1], results[0]) < 2e-5


@pytest.mark.parametrize("name", ["embeddinggemma", "embeddinggemma-q32"])
def test_sentence_embeddings(name: str) -> None:
    config = TINY[name]
    lookup = random_leaves(config)
    reference, native = ReferenceEngine(config, lookup), NativeEngine(config, lookup, threads=2)
    for lengths in ((9,), (23, 1, 64), (5, 40)):
        batch = Batch.of(config, [Chunk(random_tokens(config, n), outputs="none") for n in lengths])
        expected: dict[str, Array] = {}
        taps: dict[str, Array] = {}
        vectors = native.embed(batch, taps)
        assert error(vectors, reference.embed(batch, expected)) < 2e-5
        assert error(taps["pooled"], expected["pooled"]) < 2e-5
        assert np.array_equal(native.embed(batch), vectors)


def test_no_outputs_asked_for() -> None:
    config = TINY["gemma3"]
    native = NativeEngine(config, random_leaves(config), threads=2)
    cache = native.new_cache(10)
    logits = native.step(Batch.of(config, [Chunk([1, 2, 3], outputs="none")]), [cache])
    assert logits.shape == (0, config.vocab_size)
    assert cache.length == 3


@pytest.mark.parametrize("name", ["gemma2-q32", "gemma3-q32", "embeddinggemma-q32"])
@pytest.mark.parametrize("capacity", [1, 40, 4000])
@pytest.mark.parametrize(("kv_dtype", "element"), [("auto", 4), ("float32", 4), ("bfloat16", 2), ("int8", 1)])
def test_cache_bytes_are_what_a_cache_takes(name: str, capacity: int, kv_dtype: str, element: int) -> None:
    """4,000 tokens make rings of the windowed layers. int8 has scales: for each value, and 32 elements of a key."""
    config = TINY[name]
    engine = NativeEngine(config, random_leaves(config), kv_dtype=kv_dtype, max_chunk=32)
    told = engine.cache_bytes(capacity)
    assert told == engine.new_cache(capacity).nbytes
    each = config.kv_bytes_per_token(element) + (
        8 * config.num_kv_heads * config.num_layers if kv_dtype == "int8" else 0
    )
    assert told >= (each if config.bidirectional or capacity < 4000 else each * 40)
    if capacity == 4000 and not config.bidirectional:
        assert told < 0.7 * each * capacity
