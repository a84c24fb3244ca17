"""What is planned for the native engine is what it allocates: counted beside tiny models that were loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemmary import _core, api
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import Config
from gemmary.engines import native_memory as planned
from gemmary.engines.native import NativeEngine
from gemmary.engines.native_programs import LOGITS, PICTURES, SENTENCES
from gemmary.plan.make import held_formats
from gemmary.plan.subject import of_checkpoint
from gemmary.zoo import GEMMA2_2B
from tests.tiny import TINY
from tests.vision import tiny_gemma3, tiny_paligemma

SHAPES: dict[str, Config] = {
    **{name: TINY[name] for name in ("gemma", "gemma2-q256", "gemma3-q32", "embeddinggemma-q32")},
    "paligemma": tiny_paligemma.CONFIG,
    "gemma3-sees": tiny_gemma3.CONFIG,
}
each_shape = pytest.mark.parametrize("name", SHAPES)


def loaded(config: Config, quant: str | None = None, dtype: str | None = None, threads: int = 2) -> NativeEngine:
    checkpoint = random_checkpoint(config, "random:tiny", None, 0)
    lookup = api.quantized(checkpoint, quant, []) if quant else checkpoint.lookup
    return NativeEngine(config, lookup, dtype=dtype, threads=threads)


def formats(config: Config, quant: str | None = None) -> dict[str, str]:
    return held_formats(of_checkpoint(random_checkpoint(config, "random:tiny", None, 0)), quant)


def bytes_of(config: Config, held: dict[str, str]) -> int:
    return sum(planned.packed_bytes(tensor, held[tensor.name]) for tensor in planned.tensors(config))


@each_shape
@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_dense_weights_are_counted_to_the_byte(name: str, dtype: str | None) -> None:
    config = SHAPES[name]
    assert bytes_of(config, formats(config, dtype)) == sum(loaded(config, dtype=dtype).info.formats.values())


@pytest.mark.parametrize("name", [name for name in SHAPES if "-q" in name])
@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_quantized_weights_are_counted_to_the_byte(name: str, quant: str) -> None:
    config = SHAPES[name]
    assert bytes_of(config, formats(config, quant)) == sum(loaded(config, quant).info.formats.values())


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_made_weights_are_counted_to_the_byte(quant: str) -> None:
    config = SHAPES["gemma2-q256"]
    checkpoint = random_checkpoint(config, "random:tiny", quant, 0)
    assert checkpoint.formats() == {name: checkpoint.lookup(name).format for name in checkpoint.names()}
    engine = NativeEngine(config, checkpoint.lookup, threads=1)
    assert bytes_of(config, checkpoint.formats()) == sum(engine.info.formats.values())


def grown(count: int) -> int:
    """What a workspace reserves for so many bytes (csrc/runtime.cc): a quarter more, in whole lines."""
    return (count + count // 4 + 63) // 64 * 64


@each_shape
@pytest.mark.parametrize("quant", [None, "int4"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_step_takes_what_was_planned(name: str, quant: str | None, threads: int) -> None:
    config = SHAPES[name]
    if quant and "-q" not in name:
        pytest.skip("its rows do not divide into blocks")
    engine, held = loaded(config, quant, threads=threads), formats(config, quant)
    ids = list(range(2, 42))
    batch = Batch.of(config, [Chunk(ids)])
    if config.pooled_dense:
        engine.embed(batch)
    else:
        engine.step(batch, [engine.new_cache(60)])
    result = SENTENCES if config.pooled_dense else LOGITS
    told = planned.working_bytes(config, held, planned.Rows(len(ids)), threads, result=result)
    assert abs(grown(told) - engine._runtime.working_bytes) <= 3 * 64  # three areas, each rounded on its own
    assert planned.step_bytes(config, held, planned.Rows(len(ids)), threads) > told


@pytest.mark.parametrize("name", ["paligemma", "gemma3-sees"])
def test_the_tower_takes_what_was_planned(name: str) -> None:
    config, threads = SHAPES[name], 2
    engine, vision = loaded(config, threads=threads), SHAPES[name].vision
    assert vision is not None
    engine.see(np.zeros((1, vision.image_size, vision.image_size, 3), np.float32))
    rows = planned.Rows(vision.num_patches, outputs=0, groups=vision.num_tokens)
    told = planned.working_bytes(config, formats(config), rows, threads, result=PICTURES)
    assert abs(grown(told) - engine._runtime.working_bytes) <= 3 * 64
    assert planned.tower_bytes(config, formats(config), threads) > told
    assert planned.tower_bytes(TINY["gemma"], {}, threads) == 0


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float32", "int8"])
def test_windowed_layers_keep_a_ring(kv_dtype: Any) -> None:
    heads = (GEMMA2_2B.num_kv_heads, GEMMA2_2B.head_dim)
    short, long = (planned.cache_bytes(GEMMA2_2B, tokens, kv_dtype) for tokens in (4608, 8192))
    assert short == _core.KvCache.bytes_of([4608] * 26, *heads, 4608, kv_dtype)
    assert long == _core.KvCache.bytes_of([4096 + 512 + 16, 8192] * 13, *heads, 8192, kv_dtype)
    assert planned.shared_cache_bytes(GEMMA2_2B, 4608, kv_dtype) * 26 == short


def test_weights_lie_on_pages_of_2_mib() -> None:
    page = 2 << 20
    assert planned.page_bytes([]) == 0
    assert planned.page_bytes([1, 70]) == page  # in one block
    assert planned.page_bytes([8 * page + 1]) == 9 * page  # large enough to lie alone
    assert planned.page_bytes([7 * page, 7 * page, 3 * page]) == 17 * page  # the third begins another block
    assert planned.page_bytes([7 * page + 1, 7 * page, 3 * page]) == (15 + 3) * page
