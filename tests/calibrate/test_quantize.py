"""Quantizing models that are more than a decoder, and what is kept of memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.calibrate import quantize as module
from gemmary.calibrate.quantize import quantize
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.errors import GemmaryError
from gemmary.quantize import gptq
from gemmary.quantize.leaves import Affine
from tests.cli.small_models import write_small
from tests.tiny import TINY
from tests.vision import tiny_paligemma

TEXT = "the bath tab, 日 a fact each. " * 20


def seer(folder: Path) -> Path:
    """A small PaliGemma whose decoder's rows divide into blocks, and its tower's do not."""
    small = tiny_paligemma.CONFIG
    config = replace(
        TINY["gemma-q32"],
        family="paligemma",
        vocab_size=small.vocab_size,
        context_length=768,
        vision=small.vision,
        prefix_lm=True,
    )
    lookup = tiny_paligemma.leaves(config)
    found = {tensor.name: (lambda name=tensor.name: lookup(name)) for tensor in tensors(config)}
    save_checkpoint(
        Checkpoint(folder, "safetensors", config, "seer", found, tiny_paligemma.tokenizer, lambda: None), folder
    )
    return folder


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_tower_is_int8_and_keeps_its_biases(tmp_path: Path, method: str) -> None:
    source = open_checkpoint(seer(tmp_path / "seer"))
    done = quantize(tmp_path / "seer", tmp_path / "out", method=method, text=TEXT if method == "gptq" else None)
    made = open_checkpoint(tmp_path / "out")
    tower, original = made.lookup("vision.layers.1.down"), source.lookup("vision.layers.1.down")
    assert isinstance(tower, Affine)
    assert isinstance(original, Affine)
    assert (tower.format, made.lookup("layers.1.down").format) == ("Q8_0", "Q4_0")
    assert made.lookup("vision.patch").format == "F32"
    assert np.array_equal(tower.bias, original.bias)
    assert np.allclose(tower.dequantize(), original.dequantize(), atol=0.02)
    assert done.quality.measured is not None
    assert done.quality.formats["vision.layers.down"] == "Q8_0"


def test_an_embedding_model_is_measured_by_its_vectors(tmp_path: Path) -> None:
    write_small(tmp_path / "source", "embeddinggemma-q32")
    done = quantize(tmp_path / "source", tmp_path / "out", to="int8", method="gptq", text=TEXT)
    measured = done.quality.measured
    assert measured is not None
    assert measured.mean_kl is None
    assert measured.cosine is not None
    assert measured.cosine > 0.98
    with pytest.raises(GemmaryError, match="predicts no tokens"):
        quantize(tmp_path / "source", tmp_path / "mix", bits=5, text=TEXT)


def test_rounding_holds_a_slice_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No leaf is ever dequantized whole, and none is rounded twice."""
    write_small(tmp_path / "source", "gemma2-q32")
    monkeypatch.setattr("gemmary.quantize.leaves._SLICE", 96 * 16)
    rows: list[int] = []
    pieces = module.pieces

    def counting(*given: Any) -> Any:
        for piece in pieces(*given):
            rows.append(piece.nbytes)
            yield piece

    monkeypatch.setattr(module, "pieces", counting)
    done = quantize(tmp_path / "source", tmp_path / "out")
    size = sum(
        t.shape[0] * t.shape[1] // 32 * 18 for t in tensors(TINY["gemma2-q32"]) if t.name != "embed" and not t.is_norm
    )
    table = open_checkpoint(tmp_path / "out").lookup("embed").shape
    assert sum(rows) == size + table[0] * table[1] // 32 * 18
    assert max(rows) <= 16 * 160 // 32 * 18
    assert done.quality.bits_per_weight["all"] == 4.5


def test_the_built_in_text_is_read_where_none_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path / "source", "gemma-q32")
    monkeypatch.setattr(module, "calibration_text", lambda: TEXT)
    calls: list[int] = []
    original = gptq.pieces
    monkeypatch.setattr(gptq, "pieces", lambda *given: calls.append(1) or original(*given))
    done = quantize(tmp_path / "source", tmp_path / "out", method="gptq")
    assert done.quality.calibration is not None
    assert done.quality.calibration["text"] == "built-in"
    assert len(calls) == 1 + 2 * 7
