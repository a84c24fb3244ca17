"""Adapters of the tower from Python and from the command line, tuned, run and merged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.peft import read_adapter, target_ends, write_adapter
from gemmary.checkpoints.tensors import tensors
from gemmary.errors import GemmaryError
from gemmary.quantize.lora import merged_rows
from gemmary.tune.merge import merge
from tests.checkpoints.adapters import merged, random_adapter
from tests.runs import relative_error
from tests.tiny import TINY
from tests.vision.tiny_paligemma import CONFIG, PATCHES, SIZE, leaves, picture, tokenizer, write_folder

GREEDY: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True}
IDS = [CONFIG.image_token_id] * PATCHES + [2, 60, 61]
TOWER = target_ends(CONFIG, ["vision.layers.0.q", "vision.layers.1.down", "vision.projector"])


WIDE = replace(
    TINY["gemma-q32"],
    family="paligemma",
    vocab_size=CONFIG.vocab_size,
    context_length=768,
    vision=CONFIG.vision,
    prefix_lm=True,
)
"""The decoder's rows divide into blocks, the tower's do not."""


def write_packed(folder: Path) -> Path:
    found = {tensor.name: (lambda name=tensor.name: leaves(WIDE)(name)) for tensor in tensors(WIDE)}
    wide = Checkpoint(Path("wide"), "safetensors", WIDE, "wide", found, tokenizer, lambda: None)
    save_checkpoint(wide, folder, format="packed", dtype="int8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and adapters of all of it and of its tower alone."""
    folder = tmp_path_factory.mktemp("adapted-tower")
    write_folder(folder / "model")
    write_adapter(folder / "all", random_adapter(CONFIG))
    write_adapter(folder / "tower", random_adapter(CONFIG, seed=1, targets=TOWER, dora=True))
    return folder


def test_each_request_sees_with_its_own(folder: Path) -> None:
    with gemmary.load(folder / "model", adapter={name: folder / name for name in ("all", "tower")}) as model:
        seen = np.random.default_rng(0).uniform(-1, 1, (1, SIZE, SIZE, 3)).astype(np.float32)
        logits = {name: model.logits(IDS, pixels=seen, adapter=name) for name in (None, "all", "tower")}
        assert relative_error(logits["tower"], logits[None]) > 0.02
        for name in ("all", "tower"):
            expected = gemmary.load(folder / "model", engine="reference", adapter=folder / name)
            assert relative_error(logits[name], expected.logits(IDS, pixels=seen)) < 3e-5
        names = [None, "tower", "all", "tower", None]
        alone = []
        for name in names[:3]:
            with gemmary.load(folder / "model", adapter=name and folder / name) as single:
                alone.append(single.generate("cab", image=picture(), **GREEDY).tokens)
        assert len(set(alone)) == 3
        together = model.generate(["cab"] * 5, image=picture(), adapter=names, **GREEDY)
        assert [each.tokens for each in together] == [alone[n] for n in (0, 1, 2, 1, 0)]


def test_merged(folder: Path, tmp_path: Path) -> None:
    done = merge(folder / "model", folder / "all", tmp_path / "out")
    assert done.report.cosine == pytest.approx(1, abs=1e-5)
    base, out = open_checkpoint(folder / "model"), open_checkpoint(tmp_path / "out")
    expected = merged(base.lookup, random_adapter(CONFIG))
    for name in ("vision.layers.1.up", "vision.projector", "layers.0.q", "vision.patch"):
        found, wanted = out.lookup(name), expected(name)
        np.testing.assert_allclose(found.dequantize(), wanted.dequantize(), rtol=2e-5, atol=2e-6)
        np.testing.assert_array_equal(getattr(found, "bias", 0), getattr(base.lookup(name), "bias", 0))


def test_a_merge_that_sees_otherwise_is_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text tells that: the tower is held to what it makes of a picture."""

    def wrong(*arguments: Any) -> Any:
        return merged_rows(*arguments)[::-1]

    monkeypatch.setattr("gemmary.tune.merge.merged_rows", wrong)
    with pytest.raises(GemmaryError, match=r"cosine of the picture's tokens down to .* nothing was written"):
        merge(folder / "model", folder / "tower", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_tuned(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from PIL import Image

    from gemmary.tune.loop import tune
    from gemmary.tune.settings import Settings

    rows = []
    for n in range(4):
        Image.fromarray(picture(n)).save(tmp_path / f"{n}.png")
        rows.append({"image": f"{n}.png", "prefix": "abc", "suffix": "ab"[n % 2]})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    common: dict[str, Any] = {"model": str(folder / "model"), "data": str(tmp_path / "rows.jsonl"), "steps": 3}
    common |= {"sequence_length": 64, "batch_size": 1, "dtype": "float32", "device": "cpu", "threads": 1}
    common |= {"lora_rank": 2, "learning_rate": 1e-2, "train_tower": True}
    packed = write_packed(tmp_path / "int8")  # whose tower is quantized, and stays so
    for method, model, config, targets in (
        ("lora", folder / "model", CONFIG, "all"),
        ("qlora", packed, WIDE, "vision.q,vision.down,projector"),
    ):
        settings = {**common, "model": str(model), "out": str(tmp_path / method), "lora_targets": targets}
        made = tune(Settings(**settings, method=method))
        adapter = read_adapter(made.folder, config)
        assert ("layers.0.q" in adapter.weights) == (targets == "all")
        assert "vision.projector" in adapter.weights
        assert any(np.abs(each.b).max() > 0 for name, each in adapter.weights.items() if name.startswith("vision."))
        with gemmary.load(model, adapter=made.folder) as tuned:
            said = [tuned.generate("abc", image=tmp_path / "0.png", adapter=a, **GREEDY) for a in (None, method)]
            assert all(each.tokens for each in said)
