"""Gemma 3 with pictures against transformers: folders that it saved, pictures anywhere in a text, batches, chunks.

The weights are bfloat16 already, so that what is left of a bfloat16 engine's error is the rounding of activations.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk, uncut
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.config import Config, VisionConfig
from gemmary.engines import Engine
from tests.checkpoints.sources import TinySource
from tests.parity.peers import randomize, torch, transformers
from tests.runs import ENGINES, FLOAT32, Array, Precision, relative_error

SIZE = 16
"""Of the pictures: 4 x 4 patches of 4 x 4 pixels."""
VOCABULARY = 120
TOKENS = {"pooled": 4, "whole": 16}
"""Of a picture. The window, 5, is longer than the one and shorter than the other."""

each_engine = pytest.mark.parametrize("precision", ENGINES, ids=lambda p: p.name)
each_model = pytest.mark.parametrize("name", TOKENS)

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "query_pre_attn_scalar": 7,
    "sliding_window": 5,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 400.0, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
    },
}
TOWER: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 30,
    "intermediate_size": 41,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": SIZE,
    "patch_size": 4,
    "vision_use_head": False,
}


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """A tiny model of each number of tokens, and the folder that it was saved in."""
    made = {}
    for name, tokens in TOKENS.items():
        config = transformers.Gemma3Config(
            text_config=TEXT, vision_config=TOWER, mm_tokens_per_image=tokens, image_token_index=VOCABULARY
        )
        config._attn_implementation = "eager"
        model = randomize(transformers.Gemma3ForConditionalGeneration(config))
        folder = tmp_path_factory.mktemp("gemma3") / name
        model.save_pretrained(folder)
        made[name] = model, folder
    return made


def opened(folder: Path, name: str) -> tuple[Checkpoint, Config]:
    checkpoint = open_checkpoint(folder)
    assert checkpoint.notices == []
    vision = checkpoint.config.vision
    assert vision == VisionConfig(SIZE, 3, 30, 3, 41, 4, pool={4: 2, 16: 1}[TOKENS[name]], soft_norm=True)
    assert vision.num_tokens == TOKENS[name]
    return checkpoint, checkpoint.config


def pixels(count: int) -> Array:
    return np.random.default_rng(count).uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32)


def prompt(name: str, *parts: int) -> list[int]:
    """So many words, or a picture where a part is 0."""
    rng, ids = np.random.default_rng(parts), list[int]()
    for count in parts:
        ids += rng.integers(1, VOCABULARY, count).tolist() if count else [VOCABULARY] * TOKENS[name]
    return ids


def theirs(model: Any, ids: list[int], seen: Array) -> Array:
    """Logits of every position [T, V]."""
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        out = model(
            input_ids=tokens,
            pixel_values=torch.from_numpy(seen.transpose(0, 3, 1, 2).copy()),
            token_type_ids=(tokens == VOCABULARY).long(),
            attention_mask=torch.ones_like(tokens),
        )
    logits: Array = out.logits[0].float().numpy()
    return logits


def in_chunks(engine: Engine, ids: list[int], seen: Array, size: int) -> Array:
    """Logits of every position, about `size` tokens at a time."""
    cache, rows, start, place = engine.new_cache(len(ids)), [], 0, engine.config.image_token_id
    while start < len(ids):
        count = uncut(engine.config, ids, start, min(size, len(ids) - start))
        part = ids[start : start + count]
        before, places = ids[:start].count(place), part.count(place)
        shown = seen[before : before + places] if places else None
        chunk = Chunk(part, start, outputs="all", pictures=shown)
        rows.append(engine.step(Batch.of(engine.config, [chunk]), [cache]))
        start += count
    return np.concatenate(rows)


@each_engine
@each_model
def test_tower(peers: Any, name: str, precision: Precision) -> None:
    model, folder = peers[name]
    checkpoint, config = opened(folder, name)
    seen = pixels(3)
    with torch.inference_mode():
        out = model.get_image_features(torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())).pooler_output
    engine = precision.open(config, checkpoint.lookup)
    ours = engine.see(seen)
    if engine.info.batch_invariant:
        np.testing.assert_array_equal(ours, np.concatenate([engine.see(each[None]) for each in seen]))
    assert relative_error(ours, out.numpy().reshape(-1, 36)) < precision.worst


@each_engine
@each_model
def test_ragged_prompts_with_pictures(peers: Any, name: str, precision: Precision) -> None:
    model, folder = peers[name]
    checkpoint, config = opened(folder, name)
    engine = precision.open(config, checkpoint.lookup)
    prompts = [prompt(name, 3, 0, 9), prompt(name, 0, 2, 0, 0, 7), prompt(name, 11, 0)]
    seen = pixels(5)
    shares = [seen[:1], seen[1:4], seen[4:]]
    chunks = [Chunk(ids, outputs="all", pictures=engine.see(share)) for ids, share in zip(prompts, shares, strict=True)]
    logits = engine.step(Batch.of(config, chunks), [engine.new_cache(64) for _ in prompts])
    expected = [theirs(model, ids, share) for ids, share in zip(prompts, shares, strict=True)]
    assert relative_error(logits, np.concatenate(expected)) < precision.worst
    blind = engine.step(Batch.of(config, [replace(chunks[0], pictures=engine.see(seen[4:]))]), [engine.new_cache(64)])
    assert relative_error(blind, expected[0]) > 0.01


@each_engine
@each_model
@pytest.mark.parametrize("size", [7, 1])
def test_chunks_and_decoding(peers: Any, name: str, precision: Precision, size: int) -> None:
    model, folder = peers[name]
    checkpoint, config = opened(folder, name)
    engine = precision.open(config, checkpoint.lookup)
    ids, seen = prompt(name, 2, 0, 8, 0, 6), pixels(2)
    pictures = engine.see(seen)
    rows = in_chunks(engine, ids, pictures, size)
    assert relative_error(rows, theirs(model, ids, seen)) < precision.worst
    if precision.engine == "native":
        np.testing.assert_array_equal(rows, in_chunks(engine, ids, pictures, len(ids)))


@pytest.mark.parametrize("precision", FLOAT32, ids=lambda p: p.name)
def test_a_picture_sees_itself(peers: Any, precision: Precision) -> None:
    """What is compared above would be another model's, were the picture's tokens causal."""
    checkpoint, config = opened(peers["whole"][1], "whole")
    engine = precision.open(config, checkpoint.lookup)
    ids, pictures = prompt("whole", 2, 0, 3), engine.see(pixels(1))
    batch = Batch.of(config, [Chunk(ids, outputs="all", pictures=pictures)])
    causal = Batch.of(replace(config, prefix_lm=True), [Chunk(ids, outputs="all", pictures=pictures)])
    whole, part = (engine.step(each, [engine.new_cache(len(ids))]) for each in (batch, causal))
    np.testing.assert_array_equal(whole[:2], part[:2])
    assert relative_error(part, whole) > 0.01


@each_model
def test_what_is_written_is_read_the_same(peers: Any, name: str, tmp_path: Path) -> None:
    model, folder = peers[name]
    ours, _ = opened(folder, name)
    save_checkpoint(TinySource(ours.config, ours.lookup), tmp_path / "written", shard_bytes=20_000)
    again, config = opened(tmp_path / "written", name)
    assert config == ours.config
    for leaf in ours.names():
        assert np.array_equal(again.lookup(leaf).dequantize(), ours.lookup(leaf).dequantize())
    theirs_again = transformers.Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "written")
    held = dict(model.named_parameters())
    for path, weight in theirs_again.named_parameters():
        assert torch.equal(weight, held[path])


@each_model
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_panels_hold_the_same(peers: Any, name: str, dtype: str | None, tmp_path: Path) -> None:
    source, config = opened(peers[name][1], name)
    save_checkpoint(TinySource(config, source.lookup), tmp_path / "p", format="packed", dtype=dtype)
    packed = open_checkpoint(tmp_path / "p")
    assert (packed.config, packed.names()) == (config, source.names())
    for leaf in packed.names():
        assert np.array_equal(packed.lookup(leaf).dequantize(), source.lookup(leaf).dequantize())
