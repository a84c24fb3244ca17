"""A Gemma 3 in two GGUF files: the text's, and beside it the tower's, made by hand with the `gguf` package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import VisionConfig
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine
from tests.checkpoints.sources import TinySource
from tests.tiny import TINY

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

VISION = VisionConfig(16, 2, 30, 3, 41, 4, pool=2, soft_norm=True)
CONFIG = replace(TINY["gemma3"], vision=VISION)
SOURCE = TinySource(CONFIG, random_checkpoint(CONFIG, "random:tiny", None, 0).lookup)


def write_tower(path: Path, changes: dict[str, Any] | None = None, *, is_old: bool = False) -> None:
    """As llama.cpp's converter lays it out. changes: tensors by their names in the file, None: without it. is_old: the
    MLP's names as its first converter had them."""
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_vision_image_size(VISION.image_size)
    writer.add_vision_patch_size(VISION.patch_size)
    writer.add_vision_embedding_length(VISION.hidden_size)
    writer.add_vision_feed_forward_length(VISION.intermediate_size)
    writer.add_vision_block_count(VISION.num_layers)
    writer.add_vision_head_count(VISION.num_heads)
    writer.add_vision_attention_layernorm_eps(VISION.layer_norm_eps)
    writer.add_vision_projector_scale_factor(VISION.pool)
    found: dict[str, Any] = {}
    for tensor in tensors(CONFIG):
        if not tensor.name.startswith("vision."):
            continue
        leaf, name = SOURCE.lookup(tensor.name), tensor.gguf
        array = leaf.dequantize()
        if tensor.name == "vision.patch":
            array = array.reshape(VISION.hidden_size, 3, VISION.patch_size, VISION.patch_size)
        if tensor.name == "vision.soft_norm":
            array = array + np.float32(1)
        if is_old and "ffn" in name:
            name = name.replace("up", "?").replace("down", "up").replace("?", "down")
        found[name] = array.T.copy() if tensor.transposed else array
        if isinstance(leaf, Affine):
            found[name.removesuffix("weight") + "bias"] = leaf.bias
    for name, array in (found | (changes or {})).items():
        if array is not None:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    said = save_checkpoint(SOURCE, tmp_path / "text.gguf", format="gguf")
    assert "reads text only" in said[0]
    return tmp_path / "text.gguf"


@pytest.mark.parametrize("is_old", [False, True])
def test_a_tower_beside_the_text(text: Path, is_old: bool) -> None:
    assert open_checkpoint(text).config == replace(CONFIG, vision=None)
    write_tower(text.parent / "mmproj-F32.gguf", is_old=is_old)
    checkpoint = open_checkpoint(text)
    assert checkpoint.config == CONFIG
    assert checkpoint.notices == ["pictures are seen with mmproj-F32.gguf"]
    assert checkpoint.names() == [tensor.name for tensor in tensors(CONFIG)]
    for tensor in tensors(CONFIG):
        ours, made = checkpoint.lookup(tensor.name), SOURCE.lookup(tensor.name)
        most = 1e-7 if tensor.is_norm else 0  # through 1 + w
        np.testing.assert_allclose(ours.dequantize(), made.dequantize(), rtol=0, atol=most)
        assert isinstance(ours, Affine) == isinstance(made, Affine)
        if isinstance(ours, Affine) and isinstance(made, Affine):
            np.testing.assert_array_equal(ours.bias, made.bias)
    both = sum(file.stat().st_size for file in text.parent.glob("*.gguf"))
    assert checkpoint.stored_bytes() == both


def test_of_several_the_first_that_fits(text: Path) -> None:
    write_tower(text.parent / "mmproj-b.gguf")
    write_tower(text.parent / "mmproj-c.gguf")
    write_tower(text.parent / "mmproj-a.gguf", {"mm.input_projection.weight": np.zeros((30, 45), np.float32)})
    assert open_checkpoint(text).notices == [
        "mmproj-a.gguf lies beside the model and is another's: set aside",
        "pictures are seen with mmproj-b.gguf, not mmproj-c.gguf",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"v.post_ln.bias": None}, r"lacks v\.post_ln\.bias"),
        ({"v.head.weight": np.zeros((3, 3), np.float32)}, r"holds v\.head\.weight, which"),
        ({"v.position_embd.weight": np.zeros((9, 30), np.float32)}, r"has shape \(9, 30\)"),
    ],
)
def test_a_tower_that_is_not_sound_is_refused(text: Path, changes: dict[str, Any], line: str) -> None:
    write_tower(text.parent / "mmproj.gguf", changes)
    with pytest.raises(GemmaryError, match=line):
        open_checkpoint(text)
