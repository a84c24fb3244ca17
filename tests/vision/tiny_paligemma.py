"""A tiny PaliGemma of random weights with location and code tokens: in memory, or as a Hugging Face folder."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from gemmary.api import Model
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config, VisionConfig
from gemmary.engines.reference import ReferenceEngine
from gemmary.quantize.leaves import Affine, Dense, Leaf
from gemmary.tokenizer import PieceType, Tokenizer
from tests.runs import Array
from tests.tiny import TINY
from tests.tokenizer import small

SIZE = 12
"""Of the pictures: 3 x 3 patches of 4 x 4 pixels."""
PATCHES = 9
MARKS = [f"<loc{number:04}>" for number in range(1024)] + [f"<seg{number:03}>" for number in range(128)]


@lru_cache
def tokenizer() -> Tokenizer:
    pieces, types = [*small.PIECES, *MARKS], [*small.TYPES, *[PieceType.USER_DEFINED] * len(MARKS)]
    return Tokenizer.from_pieces(pieces, [*small.SCORES, *[0.0] * len(MARKS)], types)


CONFIG = replace(
    TINY["gemma"],
    family="paligemma",
    vocab_size=len(small.PIECES) + len(MARKS),
    context_length=768,
    vision=VisionConfig(SIZE, num_layers=2, hidden_size=12, num_heads=2, intermediate_size=20, patch_size=4),
    prefix_lm=True,
)


def leaves(config: Config = CONFIG) -> Callable[[str], Leaf]:
    shapes = {tensor.name: tensor for tensor in tensors(config)}

    def lookup(name: str) -> Leaf:
        tensor, rng = shapes[name], np.random.default_rng(zlib.crc32(name.encode()))
        spread = 0.3 if len(tensor.shape) == 1 else 2 / tensor.shape[-1] ** 0.5
        weight = Dense(
            (rng.standard_normal(tensor.shape) * spread + (tensor.bias and tensor.is_norm)).astype(np.float32)
        )
        return (
            Affine(weight, (rng.standard_normal(tensor.shape[0]) * 0.3).astype(np.float32)) if tensor.bias else weight
        )

    return lookup


def checkpoint(path: Path = Path("tiny-sight")) -> Checkpoint:
    found = {tensor.name: (lambda name=tensor.name: leaves()(name)) for tensor in tensors(CONFIG)}
    return Checkpoint(path, "safetensors", CONFIG, "tiny-sight", found, tokenizer, lambda: None)


class CountingEngine(ReferenceEngine):
    """The reference engine, and what it was asked. It says of itself that it is batch-invariant where `exact` is set,
    so that what only such engines allow can be seen."""

    def __init__(self, exact: bool = False, lookup: Callable[[str], Leaf] | None = None) -> None:
        super().__init__(CONFIG, lookup or leaves())
        self.info = replace(self.info, batch_invariant=exact)
        self.pictures_seen = 0
        self.computed: list[int] = []

    def see(self, pixels: Array, taps: Any = None, adapter: int = 0) -> Array:
        self.pictures_seen += len(pixels)
        return super().see(pixels, taps, adapter)

    def step(self, batch: Any, caches: Any, taps: Any = None) -> Array:
        self.computed.append(len(batch.tokens))
        return super().step(batch, caches, taps)


def model(engine: ReferenceEngine | None = None, path: Path = Path("tiny-sight")) -> Model:
    return Model(checkpoint(path), engine or CountingEngine())


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Array:
    """An array of colours, uint8 [height, width, 3]."""
    return np.random.default_rng([seed, width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_folder(folder: Path) -> Path:
    """As transformers lays it out."""
    from safetensors.numpy import save_file

    vision, lookup = CONFIG.vision, leaves()
    assert vision is not None
    stored: dict[str, Array] = {}
    for tensor in tensors(CONFIG):
        leaf = lookup(tensor.name)
        prefix = (
            "vision_tower.vision_model." if tensor.is_tower else "" if tensor.is_projector else "language_model.model."
        )
        array = leaf.dequantize()
        if tensor.name == "vision.patch":
            array = array.reshape(vision.hidden_size, 3, vision.patch_size, vision.patch_size)
        stored[prefix + tensor.hugging_face] = array
        if isinstance(leaf, Affine):
            stored[(prefix + tensor.hugging_face).removesuffix("weight") + "bias"] = leaf.bias
    folder.mkdir(parents=True)
    save_file(stored, folder / "model.safetensors")
    text = {
        "model_type": "gemma",
        "vocab_size": CONFIG.vocab_size,
        "hidden_size": CONFIG.hidden_size,
        "intermediate_size": CONFIG.intermediate_size,
        "num_hidden_layers": CONFIG.num_layers,
        "num_attention_heads": CONFIG.num_heads,
        "num_key_value_heads": CONFIG.num_kv_heads,
        "head_dim": CONFIG.head_dim,
        "max_position_embeddings": CONFIG.context_length,
        "rope_theta": CONFIG.rope_theta,
    }
    tower = {
        "model_type": "siglip_vision_model",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
    }
    data = {"model_type": "paligemma", "image_token_index": CONFIG.vocab_size, "projection_dim": CONFIG.hidden_size}
    (folder / "config.json").write_text(json.dumps({**data, "text_config": text, "vision_config": tower}))
    tokenizer().save(folder)
    return folder
