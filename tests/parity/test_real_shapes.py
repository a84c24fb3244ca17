"""One layer of every size of the series at its real widths, random weights, the native engine beside the torch one.

Tiny models cannot show what depends on size: head counts, a query scale unlike the head size, heads * head_dim unlike
the width, rows of 36,864 numbers. Vocabularies are cut to a few rows, so that a layer is all that a case costs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import Config, VisionConfig
from gemmary.engines import open_engine
from gemmary.quantize.leaves import Leaf
from gemmary.zoo import ZOO, get
from tests.runs import Array, relative_rms, why_absent
from tests.tiny import random_tokens

if reason := why_absent("torch") or why_absent("native"):
    pytest.skip(reason, allow_module_level=True)

LAYERS = {
    "gemma-2b": "global",
    "gemma-7b": "global",
    "gemma-2-2b": "global",
    "gemma-2-9b": "local",
    "gemma-2-27b": "local",
    "gemma-3-270m": "local",
    "gemma-3-1b-pt": "global",
    "gemma-3-4b-pt": "global",
    "gemma-3-12b-pt": "local",
    "gemma-3-27b-pt": "global",
    "embeddinggemma-300m": "global",
}
"""A row of the zoo for each shape of a layer, and the kind of the one that is run."""
INT4, FLOATS = 0.015, 1e-5
"""Bounds of the root mean square of the differences over that of the values. Activations of 8 bits in every product;
bfloat16 weights and float32 keys, where the order of float32 sums is all that is left."""
WHOLE = ("gemma-2-9b", "gemma-2-27b")
"""Layers run in 4 bits at all of their widths: the torch engine's float32 of the last takes 2.3 GB. The others have a
quarter of the MLP's width there."""
PROMPT, DECODED = 5, 1


def shape(config: Config) -> tuple[object, ...]:
    """What a layer's kernels and scales are made for."""
    widths = (config.hidden_size, config.num_heads, config.num_kv_heads, config.head_dim, config.intermediate_size)
    return (*widths, config.query_pre_attn_scalar, config.post_norms, config.qk_norm, config.attn_logit_softcap)


def test_every_released_shape_is_here() -> None:
    assert {shape(row.config) for row in ZOO} == {shape(get(name).config) for name in LAYERS}


def one_layer(name: str) -> Config:
    """A window of four, so that a local layer's cuts something off."""
    config, kind = get(name).config, LAYERS.get(name, "global")
    window = config.sliding_window and 4
    return replace(
        config, num_layers=1, layer_types=(kind,), vocab_size=64, context_length=64, sliding_window=window, vision=None
    )


def outputs(engine: str, config: Config, lookup: Callable[[str], Leaf]) -> Array:
    """Scores behind each token of a prompt and behind decoded ones; of an embedding model the vector of a text."""
    precise = {"kv_dtype": "float32"} if engine == "native" else {"dtype": "float32"}
    built = open_engine(engine, config, lookup, threads=1, **precise)  # type: ignore[arg-type]
    tokens = random_tokens(config, PROMPT + DECODED)
    if config.bidirectional:
        return built.embed(Batch.of(config, [Chunk(tokens, outputs="none")]))
    held = built.new_cache(len(tokens))
    rows = [built.step(Batch.of(config, [Chunk(tokens[:PROMPT], outputs="all")]), [held])]
    for place in range(PROMPT, len(tokens)):
        rows.append(built.step(Batch.of(config, [Chunk(tokens[place : place + 1], start=place)]), [held]))
    return np.concatenate(rows)


def apart(config: Config, quant: str | None, name: str, ours: Config | None = None) -> float:
    """The native engine, on `ours` where that is given, from the torch engine."""
    lookup = cache(random_checkpoint(config, name, quant, 0).lookup)
    theirs = outputs("torch", config, lookup)
    assert np.isfinite(theirs).all()
    gc.collect()  # gigabytes of float32
    return relative_rms(outputs("native", ours or config, lookup), theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_four_bits(name: str) -> None:
    config = one_layer(name)
    if name not in WHOLE:
        config = replace(config, intermediate_size=config.intermediate_size // 4)
    assert apart(config, "int4", name) < INT4


@pytest.mark.parametrize("narrowed", ["intermediate_size", "hidden_size"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_to_the_last_bits(name: str, narrowed: str) -> None:
    """Attention at its full width with an eighth of the MLP's, and both with an eighth of the stream's."""
    config = one_layer(name)
    changes = {narrowed: getattr(config, narrowed) // 8}
    assert apart(replace(config, **changes), None, name) < FLOATS  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"query_pre_attn_scalar": 128.0}, {"num_heads": 16, "num_kv_heads": 8, "head_dim": 256}]
)
def test_a_wrong_scale_or_head_would_show(wrong: dict[str, float]) -> None:
    """The 27B with its head size for a query scale, and with half as many heads of twice the size."""
    config = replace(one_layer("gemma-2-27b"), intermediate_size=64)
    assert apart(config, None, "gemma-2-27b", replace(config, **wrong)) > 100 * FLOATS  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["paligemma-3b-pt-224", "paligemma2-28b-pt-448", "gemma-3-27b-pt"])
@pytest.mark.parametrize(("quant", "bound"), [("int4", INT4), (None, FLOATS)])
def test_a_layer_of_the_tower(name: str, quant: str | None, bound: float) -> None:
    """With the projection to its decoder, on a small picture. Its rows of 4,304 numbers fill no whole blocks."""
    config = one_layer(name)
    vision = replace(get(name).config.vision or VisionConfig(224), num_layers=1, image_size=112)
    config = replace(config, vision=vision, intermediate_size=64, num_heads=1, num_kv_heads=1)
    lookup = cache(random_checkpoint(config, name, quant, 0).lookup)
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, 112, 112, 3)).astype(np.float32)
    theirs = open_engine("torch", config, lookup, dtype="float32", threads=1).see(pixels)
    assert relative_rms(open_engine("native", config, lookup, threads=1).see(pixels), theirs) < bound
