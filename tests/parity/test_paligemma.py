"""PaliGemma 1 and 2 against transformers: folders that it saved, pictures, ragged prompts, decoding after a prefix.

The weights are bfloat16 already, so that what is left of a bfloat16 engine's error is the rounding of activations.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.api import as_run_by
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import Config, VisionConfig
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Leaf, quantized
from tests.parity.peers import randomize, torch, transformers
from tests.runs import ENGINES, Array, Lookup, Precision, relative_error, relative_rms, why_absent

SIZE = 12
"""Of the pictures: 3 x 3 patches of 4 x 4 pixels."""
PATCHES = 9
VOCABULARY = 120
WIDE = VisionConfig(SIZE, 2, 32, 2, 41, 4)
"""A tower whose second matrix has rows that do not divide into blocks."""

each_engine = pytest.mark.parametrize("precision", ENGINES, ids=lambda p: p.name)
each_generation = pytest.mark.parametrize("generation", ["gemma", "gemma2"])


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """A tiny model of each generation, and the folder that it was saved in."""
    made = {}
    for generation in ("gemma", "gemma2"):
        text: dict[str, Any] = {
            "model_type": generation,
            "vocab_size": VOCABULARY,
            "hidden_size": 36,
            "intermediate_size": 50,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "default", "rope_theta": 60.0},
        }
        if generation == "gemma2":
            text |= {"query_pre_attn_scalar": 7, "sliding_window": 64, "attn_logit_softcapping": 1.5}
            text |= {"final_logit_softcapping": None, "layer_types": ["sliding_attention", "full_attention"] * 2}
            text["layer_types"] = text["layer_types"][:3]
        seen = {
            "model_type": "siglip_vision_model",
            "hidden_size": 30,
            "intermediate_size": 41,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "image_size": SIZE,
            "patch_size": 4,
            "vision_use_head": False,
        }
        config = transformers.PaliGemmaConfig(
            text_config=text, vision_config=seen, projection_dim=36, image_token_index=VOCABULARY
        )
        config._attn_implementation = "eager"
        model = randomize(transformers.PaliGemmaForConditionalGeneration(config))
        folder = tmp_path_factory.mktemp("paligemma") / generation
        model.save_pretrained(folder)
        model.model.language_model.embed_tokens.embed_scale.fill_(6.0)  # as bfloat16 has the root of 36
        made[generation] = model, folder
    return made


def opened(folder: Path) -> tuple[Checkpoint, Config]:
    """The checkpoint, and its config, which has no window (transformers' is wider than the texts of these tests)."""
    checkpoint = open_checkpoint(folder)
    config = checkpoint.config
    assert config.prefix_lm
    assert config.sliding_window is None
    return checkpoint, config


def pixels(count: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, count]).uniform(-1, 1, (count, SIZE, SIZE, 3)).astype(np.float32)


def prompt(pictures: int, words: int, seed: int = 0) -> list[int]:
    """Places for pictures, then some words."""
    ids = np.random.default_rng([seed, words]).integers(1, VOCABULARY, words)
    return [VOCABULARY] * (pictures * PATCHES) + ids.tolist()


def theirs(model: Any, ids: list[int], seen: Array, prefix: int) -> Array:
    """Logits of every position [T, V]: the first `prefix` tokens see each other."""
    kinds = [[0] * prefix + [1] * (len(ids) - prefix)]
    with torch.inference_mode():
        out = model(
            input_ids=torch.tensor([ids]),
            pixel_values=torch.from_numpy(seen.transpose(0, 3, 1, 2).copy()),
            token_type_ids=torch.tensor(kinds),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        )
    logits: Array = out.logits[0].float().numpy()
    return logits


@each_engine
@each_generation
def test_tower(peers: Any, generation: str, precision: Precision) -> None:
    model, folder = peers[generation]
    checkpoint, config = opened(folder)
    engine = precision.open(config, checkpoint.lookup)
    seen = pixels(3)
    with torch.inference_mode():
        out = model.get_image_features(torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())).pooler_output
    assert relative_error(engine.see(seen), out.numpy().reshape(-1, 36)) < precision.worst


@each_engine
@each_generation
def test_ragged_prompts_with_pictures(peers: Any, generation: str, precision: Precision) -> None:
    model, folder = peers[generation]
    checkpoint, config = opened(folder)
    engine = precision.open(config, checkpoint.lookup)
    prompts = [prompt(1, 5), prompt(2, 9), prompt(1, 2)]
    seen = pixels(4)
    shares = [seen[:1], seen[1:3], seen[3:]]
    chunks = [
        Chunk(ids, prefix=len(ids), outputs="all", pictures=engine.see(share))
        for ids, share in zip(prompts, shares, strict=True)
    ]
    logits = engine.step(Batch.of(config, chunks), [engine.new_cache(64) for _ in prompts])
    expected = [theirs(model, ids, share, len(ids)) for ids, share in zip(prompts, shares, strict=True)]
    assert relative_error(logits, np.concatenate(expected)) < precision.worst
    blind = engine.step(Batch.of(config, [replace(chunks[0], pictures=engine.see(seen[3:]))]), [engine.new_cache(64)])
    assert relative_error(blind, expected[0]) > 0.01


@each_engine
@each_generation
def test_decoding_after_a_prefix(peers: Any, generation: str, precision: Precision) -> None:
    model, folder = peers[generation]
    checkpoint, config = opened(folder)
    engine = precision.open(config, checkpoint.lookup)
    start, seen = prompt(1, 4), pixels(1)
    ids = start + prompt(0, 8, seed=3)
    cache = engine.new_cache(len(ids))
    first = Chunk(start, prefix=len(start), outputs="all", pictures=engine.see(seen))
    rows = [engine.step(Batch.of(config, [first]), [cache])]
    for place in range(len(start), len(ids)):
        chunk = Chunk(ids[place : place + 1], start=place, prefix=len(start))
        rows.append(engine.step(Batch.of(config, [chunk]), [cache]))
    assert relative_error(np.concatenate(rows), theirs(model, ids, seen, len(start))) < precision.worst


def test_by_the_conventions_of_transformers(peers: Any, tmp_path: Path) -> None:
    """With a window and a cap of the logits in config.json, which bite."""
    model, folder = peers["gemma2"]
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    data = json.loads((copied / "config.json").read_text())
    data["text_config"] |= {"sliding_window": 7, "final_logit_softcapping": 2.0}
    (copied / "config.json").write_text(json.dumps(data))
    other = transformers.PaliGemmaForConditionalGeneration.from_pretrained(copied, attn_implementation="eager").eval()
    other.model.language_model.embed_tokens.embed_scale.fill_(6.0)
    start, seen = prompt(1, 4), pixels(1)
    ids = start + prompt(0, 9, seed=3)
    expected = theirs(other, ids, seen, len(start))
    found = {}
    for conventions in ("big_vision", "transformers"):
        checkpoint = as_run_by(open_checkpoint(copied), conventions)
        assert any("conventions=" in notice for notice in checkpoint.notices) == (conventions == "big_vision")
        engine = open_engine("reference", checkpoint.config, checkpoint.lookup)
        chunk = Chunk(ids, prefix=len(start), outputs="all", pictures=engine.see(seen))
        found[conventions] = engine.step(Batch.of(checkpoint.config, [chunk]), [engine.new_cache(64)])
    assert relative_error(found["transformers"], expected) < 2e-5
    assert relative_error(found["big_vision"], theirs(model, ids, seen, len(start))) < 2e-5
    with pytest.raises(GemmaryError, match="conventions must be big_vision or transformers"):
        as_run_by(open_checkpoint(copied), "kerashub")
    with pytest.raises(GemmaryError, match="has no conventions to choose from"):
        as_run_by(open_checkpoint("random:gemma-3-270m"), "transformers")


@each_generation
def test_what_is_written_is_read_the_same(peers: Any, generation: str, tmp_path: Path) -> None:
    model, folder = peers[generation]
    ours, _ = opened(folder)
    save_checkpoint(Named(ours), tmp_path / "written", shard_bytes=20_000)
    again, config = opened(tmp_path / "written")
    assert config == ours.config
    assert again.notices == []
    for name in ours.names():
        assert np.array_equal(again.lookup(name).dequantize(), ours.lookup(name).dequantize())
    theirs_again = transformers.PaliGemmaForConditionalGeneration.from_pretrained(tmp_path / "written")
    held = dict(model.named_parameters())
    for name, weight in theirs_again.named_parameters():
        assert torch.equal(weight, held[name])


@each_generation
@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_panels_hold_the_same(peers: Any, generation: str, dtype: str | None, tmp_path: Path) -> None:
    config = opened(peers[generation][1])[1]
    wide = replace(config, hidden_size=64, head_dim=16, query_pre_attn_scalar=16, intermediate_size=96, vision=WIDE)
    source = Named(random_checkpoint(wide if dtype == "int8" else config, "random:tiny", None, 0))
    save_checkpoint(source, tmp_path / "p", format="packed", dtype=dtype)
    packed = open_checkpoint(tmp_path / "p")
    assert packed.config == source.config
    assert packed.names() == source.checkpoint.names()
    for name in packed.names():
        mine, theirs = packed.lookup(name), source.lookup(name)
        assert isinstance(mine, Affine) == isinstance(theirs, Affine)
        if isinstance(mine, Affine) and isinstance(theirs, Affine):
            assert np.array_equal(mine.bias, theirs.bias)
        assert relative_error(mine.dequantize(), theirs.dequantize()) < (0.01 if dtype == "int8" else 1e-9)


@each_generation
def test_gguf_is_refused(peers: Any, generation: str, tmp_path: Path) -> None:
    ours, _ = opened(peers[generation][1])
    with pytest.raises(GemmaryError, match="sees pictures"):
        save_checkpoint(Named(ours), tmp_path / "x.gguf", format="gguf")


@dataclass
class Named:
    """A checkpoint without a tokenizer, as a source."""

    checkpoint: Checkpoint
    tokenizer: None = None
    mask_codec_file: Path | None = None
    chat_template: None = None
    name: str = "tiny"

    @property
    def config(self) -> Config:
        return self.checkpoint.config

    def lookup(self, name: str) -> Leaf:
        return self.checkpoint.lookup(name)


def test_pictures_must_fill_their_places(peers: Any) -> None:
    _, config = opened(peers["gemma"][1])
    with pytest.raises(ValueError, match="9 places for pictures' tokens, 0 such tokens"):
        Batch.of(config, [Chunk(prompt(1, 3))])


def in_blocks(checkpoint: Checkpoint, format: str) -> Lookup:
    """Its matrices in blocks, filled up where they do not divide; tables and the patches' projection as they are."""
    kept = ("embed", "vision.patch", "vision.position")

    def lookup(name: str) -> Leaf:
        leaf = checkpoint.lookup(name)
        return leaf if len(leaf.shape) == 1 or name in kept else quantized(leaf, format)

    return lookup


@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
@each_generation
def test_blocks(peers: Any, generation: str, format: str) -> None:
    """The native engine's two halves against the oracle on the same blocks. What differs: activations in int8, keys and
    values in bfloat16. In float32 nothing does."""
    if reason := why_absent("native"):
        pytest.skip(reason)
    checkpoint, config = opened(peers[generation][1])
    lookup = in_blocks(checkpoint, format)
    seen, ids = pixels(1), prompt(1, 7)
    reference = open_engine("reference", config, lookup)
    pictures = reference.see(seen)
    batch = Batch.of(config, [Chunk(ids, prefix=len(ids), outputs="all", pictures=pictures)])
    expected = reference.step(batch, [reference.new_cache(len(ids))])
    for dtype, most in ((None, 0.04), ("float32", 1e-5)):
        engine = open_engine("native", config, lookup, dtype=dtype)
        assert 0 < relative_rms(engine.see(seen), pictures) < most
        assert 0 < relative_rms(engine.step(batch, [engine.new_cache(len(ids))]), expected) < most
