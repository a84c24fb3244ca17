"""The native engine's tower and prefixes: beside the oracle, to the bit in any batch, at the widths of the real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemmary import _core
from gemmary.adapters import wrapped
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints.peft import Adapter
from gemmary.checkpoints.tensors import tensors
from gemmary.config import VisionConfig
from gemmary.engines import native, open_engine
from gemmary.engines.native import NativeEngine
from gemmary.engines.native_weights import pack
from gemmary.engines.reference import ReferenceEngine
from gemmary.engines.trace import Weight
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Dense, Leaf, quantized
from tests.checkpoints.adapters import merged, mixed_adapter, random_adapter
from tests.engines.helpers import Array, same_bits
from tests.ops.cases import AttentionCase, Part, normal
from tests.ops.harness import ReferenceHarness
from tests.ops.native_ops import NativeHarness, NativeOps
from tests.runs import why_absent
from tests.tiny import TINY

CONFIG = replace(
    TINY["gemma2-q32"],
    layer_types=("global",) * 3,
    sliding_window=None,
    prefix_lm=True,
    vision=VisionConfig(image_size=20, num_layers=2, hidden_size=144, num_heads=2, intermediate_size=84, patch_size=4),
)
"""A tower with heads of 72 and an MLP that no group of 32 divides; 25 patches a picture."""
PATCHES = 25


def leaves(format: str = "F32") -> Callable[[str], Leaf]:
    """Random leaves; those that a quantized model has in blocks, in those of `format`."""
    table = {tensor.name: tensor for tensor in tensors(CONFIG)}

    def lookup(name: str) -> Leaf:
        tensor = table[name]
        rng = np.random.default_rng(list(name.encode()))
        shift = float(tensor.bias and tensor.is_norm)
        spread = 0.3 if tensor.is_norm else 1.5 * tensor.shape[-1] ** -0.5
        leaf: Leaf = Dense(shift + normal(rng, *tensor.shape, scale=spread))
        if tensor.bias:
            leaf = Affine(leaf, normal(rng, tensor.shape[0], scale=0.3))
        blocks = None if format == "F32" else tensor.blocks(format)
        return quantized(leaf, blocks) if blocks else leaf

    return lookup


def pixels(count: int) -> Array:
    return np.random.default_rng(count).uniform(-1, 1, (count, 20, 20, 3)).astype(np.float32)


def prompt(pictures: int, words: int) -> list[int]:
    ids = np.random.default_rng(words).integers(1, CONFIG.vocab_size, words)
    return [CONFIG.image_token_id] * (PATCHES * pictures) + ids.tolist()


def error(actual: Array, expected: Array) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def rms(actual: Array, expected: Array) -> float:
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


def test_every_intermediate_in_float32() -> None:
    reference, engine = ReferenceEngine(CONFIG, leaves()), NativeEngine(CONFIG, leaves(), threads=2)
    expected: dict[str, Array] = {}
    taps: dict[str, Array] = {}
    reference.see(pixels(3), expected)
    seen = engine.see(pixels(3), taps)
    assert set(taps) == set(expected)
    for tap, values in expected.items():
        assert error(taps[tap], values) < 2e-5, tap
    assert same_bits(seen, taps["vision.embeddings"])
    assert same_bits(engine.see(pixels(3)), seen)
    assert engine.see(pixels(3)[:0]).shape == (0, CONFIG.hidden_size)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
def test_blocks(format: str) -> None:
    """The oracle has the same weights; activations are int8 here. The tower is Q8_0 in a Q4_0 model too."""
    reference, engine = ReferenceEngine(CONFIG, leaves(format)), NativeEngine(CONFIG, leaves(format), threads=2)
    assert 0 < rms(engine.see(pixels(2)), reference.see(pixels(2))) < 0.02
    assert set(engine.info.formats) == {"F32", "Q8_0", format}


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_a_picture_has_the_same_bits_in_any_batch(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = NativeEngine(CONFIG, leaves(format), threads=1, isa="scalar")
    seen = pixels(5)
    whole = engine.see(seen)
    for number in range(5):
        alone = engine.see(seen[number : number + 1])
        assert same_bits(alone, whole[PATCHES * number : PATCHES * (number + 1)]), number
    for isa in _core.available_isas():
        for threads in (1, 2, 3):
            other = NativeEngine(CONFIG, leaves(format), threads=threads, isa=isa)
            assert same_bits(other.see(seen), whole), (isa, threads)
    monkeypatch.setattr(native, "PATCHES_AT_ONCE", 2 * PATCHES)  # two runs of two, one of one
    taps: dict[str, Array] = {}
    assert same_bits(NativeEngine(CONFIG, leaves(format), threads=2).see(seen, taps), whole)
    assert all(len(values) == 5 * PATCHES for values in taps.values())


def adapters_of_the_tower() -> list[Adapter]:
    """Plain LoRA of two ranks, DoRA, and one that leaves the tower alone."""
    of_text = random_adapter(CONFIG, targets=("gate_proj",))
    return [mixed_adapter(CONFIG), random_adapter(CONFIG, seed=2, rank=4, dora=True), of_text]


@pytest.mark.parametrize("name", ["reference", "torch", "native"])
def test_an_adapter_of_the_tower_is_its_merged_weights(name: str) -> None:
    """A bias is no part of what an adapter stretches."""
    if reason := why_absent(name):
        pytest.skip(reason)
    adapters, seen = adapters_of_the_tower(), pixels(2)
    engine = open_engine(name, CONFIG, wrapped(leaves(), CONFIG, adapters), dtype="float32")
    plain = ReferenceEngine(CONFIG, leaves()).see(seen)
    for number in (0, 3):
        assert error(engine.see(seen, adapter=number), plain) < 2e-5
    for number in (1, 2):
        expected = ReferenceEngine(CONFIG, merged(leaves(), adapters[number - 1])).see(seen)
        assert error(engine.see(seen, adapter=number), expected) < 3e-5
        assert error(plain, expected) > 0.05


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_an_adapter_of_the_tower_has_the_same_bits_in_any_batch(format: str) -> None:
    lookup, seen = wrapped(leaves(format), CONFIG, adapters_of_the_tower()), pixels(3)
    engine = NativeEngine(CONFIG, lookup, threads=1, isa="scalar")
    assert same_bits(engine.see(seen), NativeEngine(CONFIG, leaves(format), threads=2).see(seen))
    for number in (1, 2):
        whole = engine.see(seen, adapter=number)
        assert rms(whole, ReferenceEngine(CONFIG, lookup).see(seen, adapter=number)) < 0.02
        assert same_bits(engine.see(seen[1:2], adapter=number), whole[PATCHES : 2 * PATCHES])
        for isa in _core.available_isas():
            other = NativeEngine(CONFIG, lookup, threads=3, isa=isa)
            assert same_bits(other.see(seen, adapter=number), whole), (isa, number)


@pytest.mark.parametrize("format", ["F32", "Q8_0"])
def test_prompts_with_pictures_beside_others(format: str) -> None:
    """A step of pictures, text and a decode: each row as alone. A prefix passes max_chunk: only rings bound a chunk."""
    engine = NativeEngine(CONFIG, leaves(format), threads=2, max_chunk=16)
    reference = ReferenceEngine(CONFIG, leaves(format))
    seen = engine.see(pixels(3))
    many, one, text = prompt(2, 9), prompt(1, 4), prompt(0, 11)
    chunks = [
        Chunk(many, prefix=len(many), outputs="all", pictures=seen[: 2 * PATCHES]),
        Chunk(text, outputs="all"),
        Chunk(one, prefix=len(one), outputs="all", pictures=seen[2 * PATCHES :]),
    ]
    alone, held = [], []
    for chunk in chunks:
        held.append(engine.new_cache(80))
        alone.append(engine.step(Batch.of(CONFIG, [chunk]), held[-1:]))
    caches = [engine.new_cache(80) for _ in chunks]
    together = engine.step(Batch.of(CONFIG, chunks), caches)
    assert same_bits(together, np.concatenate(alone))
    after = [Chunk([7], start=len(chunk.tokens), prefix=chunk.prefix) for chunk in chunks]
    expected = [engine.step(Batch.of(CONFIG, [chunk]), [cache]) for chunk, cache in zip(after, held, strict=True)]
    mixed = [after[2], Chunk(many, prefix=len(many), pictures=seen[: 2 * PATCHES]), after[1]]
    logits = engine.step(Batch.of(CONFIG, mixed), [caches[2], engine.new_cache(80), caches[1]])
    assert same_bits(logits[[0, 2]], np.concatenate([expected[2], expected[1]]))
    oracle = reference.step(Batch.of(CONFIG, chunks), [reference.new_cache(80) for _ in chunks])
    assert rms(together, oracle) < (2e-5 if format == "F32" else 0.05)


def test_what_does_not_fit() -> None:
    engine = NativeEngine(CONFIG, leaves(), threads=1)
    cache, ids = engine.new_cache(80), prompt(1, 2)
    chunk = Chunk(ids, prefix=len(ids), pictures=engine.see(pixels(1)))
    batch = Batch.of(CONFIG, [chunk])
    assert batch.pictures is not None
    rows, values = batch.pictures
    for places, message in ((rows[::-1].copy(), "not ascending"), (rows + len(ids), "not ascending rows of the step")):
        with pytest.raises(GemmaryError, match=message):
            engine.step(replace(batch, pictures=(places, values)), [cache])
    for wrong in (values[1:], values[:, 1:]):
        with pytest.raises(GemmaryError, match="an array has the wrong shape"):
            engine.step(replace(batch, pictures=(rows, wrong)), [cache])
    assert cache.length == 0
    with pytest.raises(ValueError, match="do not fit"):
        engine.see(np.zeros((1, 24, 20, 3), np.float32))


# The real tower's widths ---------------------------------------------------------------------------------------------


def product(x: Array, weights: Sequence[Affine], isa: str | None = None) -> list[Array]:
    """Each weight's product with x, all in one instruction."""
    ops = NativeOps(isa=isa)
    trace = ops.trace.TraceOps()
    fed = trace.value("T", x.shape[1])
    packed = [Weight("w", pack(ops.runtime, w.weight, w.format), bias=w.bias) for w in weights]
    outs = [trace.linear(fed, each) for each in packed]
    assert len(trace.instructions) == 1
    arrays = [np.full((len(x), out.width), np.nan, np.float32) for out in outs]
    program = ops.trace.compile_trace(ops.core, ops.runtime, trace, [fed, *outs], 0)
    nothing = np.zeros(0, np.int32)
    rows = np.arange(len(x), dtype=np.int32)
    program.run(rows, rows, [], nothing, np.array([[0, len(x)]], np.int32), [], [x, *arrays])
    return arrays


def affine(rng: np.random.Generator, rows: int, columns: int) -> Affine:
    return Affine(Dense(normal(rng, rows, columns, scale=columns**-0.5)), normal(rng, rows))


@pytest.mark.parametrize(("columns", "rows"), [(588, 1152), (1152, 72), (4304, 40)])
def test_products_in_float32(columns: int, rows: int) -> None:
    rng = np.random.default_rng(columns)
    x = normal(rng, 9, columns)
    first, second = affine(rng, rows, columns), affine(rng, 3, columns)
    for weight, y in zip((first, second), product(x, [first, second]), strict=True):
        expected = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T + weight.bias
        assert error(y, expected) < 3e-6
        (scalar,) = product(x, [weight], isa="scalar")
        assert same_bits(scalar, y)


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("rows", [1, 3, 17])
def test_rows_that_are_filled_up(format: str, rows: int) -> None:
    """134 groups and a half: as if x and the weight had zeros there, to the bit."""
    rng = np.random.default_rng(rows)
    x, weight = normal(rng, rows, 4304), affine(rng, 40, 4304)
    wide = Affine(Dense(np.pad(weight.dequantize(), ((0, 0), (0, 16)))), weight.bias)
    (y,) = product(x, [quantized(weight, format)])
    (expected,) = product(np.pad(x, ((0, 0), (0, 16))), [quantized(wide, format)])
    assert same_bits(y, expected)
    exact = x @ quantized(weight, format).dequantize().T + weight.bias
    assert rms(y, exact) < 0.01


def test_heads_of_72() -> None:
    case = AttentionCase("", 2, 2, 72, ((Part(0, 300, prefix=300), Part(1, 300, prefix=300)),), two_sided=True)
    outs: list[Any] = [NativeHarness(isa=isa).attention(case) for isa in _core.available_isas()]
    assert error(outs[0], ReferenceHarness(np.float64).attention(case)) < 3e-6
    assert all(same_bits(out, outs[0]) for out in outs)
