"""Folders laid out otherwise than we write them: read where that is known, refused where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.errors import GemmaryError
from tests.checkpoints.sources import same_leaves, tiny

safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")


Arrays = dict[str, npt.NDArray[Any]]


def rewrite(folder: Path, change: Callable[[Arrays], Arrays], config: dict[str, Any] | None = None) -> Path:
    """Changes the tensors of a one-file folder with the safetensors library, and keys of its config.json."""
    arrays = safetensors_numpy.load_file(folder / "model.safetensors")
    safetensors_numpy.save_file(change(arrays), folder / "model.safetensors")
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **(config or {})}))
    return folder


@pytest.fixture
def gemma3(tmp_path: Path) -> Path:
    save_checkpoint(tiny("gemma3"), tmp_path / "gemma3")
    return tmp_path / "gemma3"


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_text_of_a_multimodal_folder(gemma3: Path, prefix: str) -> None:
    text = json.loads((gemma3 / "config.json").read_text())
    data = {"model_type": "gemma3", "text_config": text}
    rewrite(gemma3, lambda arrays: {k.replace("model.", prefix, 1): v for k, v in arrays.items()}, data)
    checkpoint = open_checkpoint(gemma3)
    assert checkpoint.notices == []
    same_leaves(checkpoint, tiny("gemma3"))


def test_vision_tensors_in_a_text_model_are_refused(gemma3: Path) -> None:
    rewrite(gemma3, lambda arrays: arrays | {"vision_tower.x": np.zeros(5, np.float32)})
    with pytest.raises(GemmaryError, match=r"holds 'vision_tower\.x', which this model does not have"):
        open_checkpoint(gemma3)


def test_a_tied_head_may_stand_twice_but_not_differ(gemma3: Path) -> None:
    rewrite(gemma3, lambda a: a | {"lm_head.weight": a["model.embed_tokens.weight"].copy()})
    same_leaves(open_checkpoint(gemma3), tiny("gemma3"))
    rewrite(gemma3, lambda a: a | {"lm_head.weight": np.nextafter(a["lm_head.weight"], np.float32(9))})
    with pytest.raises(GemmaryError, match=r"lm_head\.weight differs from the embedding table"):
        open_checkpoint(gemma3)
    rewrite(gemma3, lambda a: a | {"lm_head.weight": a["lm_head.weight"][1:]})
    with pytest.raises(GemmaryError, match=r"lm_head\.weight is not the embedding table"):
        open_checkpoint(gemma3)


def test_padded_rows_are_cut(gemma3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tiny("gemma3").config.vocab_size
    monkeypatch.setattr("gemmary.checkpoints.tensors.PADDED_ROWS", padded := {rows + 3: rows})
    monkeypatch.setattr("gemmary.checkpoints.huggingface.PADDED_ROWS", padded)
    monkeypatch.setattr("gemmary.checkpoints.config_json.PADDED_ROWS", padded)
    pad = ((0, 3), (0, 0))
    rewrite(gemma3, lambda a: a | {"model.embed_tokens.weight": np.pad(a["model.embed_tokens.weight"], pad)},
            {"vocab_size": rows + 3})  # fmt: skip
    checkpoint = open_checkpoint(gemma3)
    assert checkpoint.config.vocab_size == rows
    same_leaves(checkpoint, tiny("gemma3"))


def drop(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {k: v for k, v in arrays.items() if k != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop("model.layers.3.mlp.up_proj.weight"), "lacks 'model.layers.3.mlp.up_proj.weight'"),
        (drop("model.embed_tokens.weight"), "no embedding table"),
        (lambda a: a | {"embed_tokens.weight": np.zeros((1, 1), np.float32)}, "more than one embedding table"),
        (lambda a: a | {"model.norm.weight": np.zeros(43, np.float32)}, "has shape (43,)"),
        (lambda a: a | {"model.norm.weight": np.zeros((44, 1), np.float32)}, "has shape (44, 1)"),
        (lambda a: a | {"model.norm.weight": np.zeros(44, np.int8)}, "is I8"),
        (lambda a: a | {"model.layers.8.mlp.up_proj.weight": np.zeros(4, np.float32)}, "does not have"),
        (lambda a: a | {"model.layers.0.self_attn.q_proj.bias": np.zeros(4, np.float32)}, "does not have"),
    ],
)
def test_other_tensors_are_refused(gemma3: Path, change: Callable[[Arrays], Arrays], words: str) -> None:
    rewrite(gemma3, change)
    with pytest.raises(GemmaryError) as caught:
        open_checkpoint(gemma3)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_indexes_that_lie_are_refused(tmp_path: Path) -> None:
    save_checkpoint(tiny("gemma"), folder := tmp_path / "m", shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    good = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(good.values()))[:2]
    norm = "model.norm.weight"
    for places, words in [
        ({**good, norm: "../model.safetensors"}, "weight_map does not map"),
        ({**good, norm: "/etc/passwd"}, "weight_map does not map"),
        ({**good, norm: 3}, "weight_map does not map"),
        ({**good, norm: "absent.safetensors"}, "lacks the shard absent.safetensors"),
        ({**good, norm: first}, "holds 'model.norm.weight', which the index places elsewhere"),
        ({**good, "model.more.weight": second}, "index names 'model.more.weight', which no shard holds"),
        ({k: v for k, v in good.items() if k != norm}, "holds 'model.norm.weight', which the index places elsewhere"),
        ([], "weight_map does not map"),
    ]:
        path.write_text(json.dumps({"weight_map": places}))
        with pytest.raises(GemmaryError) as caught:
            open_checkpoint(folder)
        assert words in str(caught.value)


def test_folders_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match="there is no file or folder"):
        open_checkpoint(tmp_path / "absent")
    with pytest.raises(GemmaryError, match=r"no model folder: it holds neither config\.json"):
        open_checkpoint(tmp_path)
    save_checkpoint(tiny("gemma"), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(GemmaryError, match="pickled weights"):
        open_checkpoint(tmp_path / "m")
