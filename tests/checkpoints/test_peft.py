"""PEFT's format: what we write we read, hostile files are refused in one line, and nothing is half-written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import safetensors
from gemmary.checkpoints.peft import CONFIG, WEIGHTS, Adapter, read_adapter, target_ends, write_adapter
from gemmary.checkpoints.safetensors import SafetensorsFile
from gemmary.checkpoints.tensors import LAYOUTS, Layout
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile
from tests.checkpoints.adapters import mixed_adapter, random_adapter
from tests.checkpoints.test_hostile import alter, flip, refused
from tests.tiny import TINY
from tests.vision import tiny_gemma3, tiny_paligemma

GEMMA2 = TINY["gemma2"]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def same(found: Adapter, written: Adapter) -> None:
    assert found.weights.keys() == written.weights.keys()
    for name, weights in written.weights.items():
        np.testing.assert_array_equal(found.weights[name].a, weights.a)
        np.testing.assert_array_equal(found.weights[name].b, weights.b)
        np.testing.assert_allclose(found.weights[name].scale, weights.scale, rtol=1e-11)
        if weights.magnitude is not None:
            np.testing.assert_array_equal(found.weights[name].magnitude, weights.magnitude)


FAMILIES = {name: TINY[name] for name in ("gemma", "gemma2", "gemma3", "embeddinggemma")} | {
    "paligemma": tiny_paligemma.CONFIG,
    "gemma3-vision": tiny_gemma3.CONFIG,
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dora", [False, True])
def test_what_was_written_is_read(tmp_path: Path, family: str, dora: bool) -> None:
    adapter = mixed_adapter(FAMILIES[family], dora=dora, rslora=dora, dropout=0.05, base_model="google/gemma")
    assert any(name.startswith("vision.") for name in adapter.weights) == (FAMILIES[family].vision is not None)
    write_adapter(tmp_path / "new" / "adapter", adapter)
    found = read_adapter(tmp_path / "new" / "adapter", FAMILIES[family])
    same(found, adapter)
    assert found.config == adapter.config


@pytest.mark.parametrize("layout", LAYOUTS[2:], ids=str)
def test_names_of_any_transformers(tmp_path: Path, layout: Layout) -> None:
    adapter = random_adapter(tiny_paligemma.CONFIG, layout=layout)
    write_adapter(tmp_path, adapter)
    found = read_adapter(tmp_path, tiny_paligemma.CONFIG)
    same(found, adapter)
    assert found.config.layout == layout
    assert layout.tower + "encoder.layers.1.mlp.fc2" in "".join(SafetensorsFile(tmp_path / WEIGHTS).entries)
    assert "vision.projector" in found.weights


def test_an_adapter_of_the_decoder_does_not_mean_the_tower(tmp_path: Path) -> None:
    """Both have a layer called q_proj, and a name that means one must not mean the other."""
    config = tiny_paligemma.CONFIG
    names = [f"layers.{i}.{name}" for i in range(config.num_layers) for name in ("q", "up")]
    ends = target_ends(config, names)
    assert "up_proj" in ends  # the tower has none of this name
    adapter = random_adapter(config, targets=ends)
    assert sorted(adapter.weights) == sorted(names)
    write_adapter(tmp_path, adapter)
    same(read_adapter(tmp_path, config), adapter)
    tower = random_adapter(config, targets=target_ends(config, ["vision.layers.1.q", "vision.projector"]))
    assert list(tower.weights) == ["vision.layers.1.q", "vision.projector"]


def test_single_layers_are_named_in_full(tmp_path: Path) -> None:
    adapter = random_adapter(GEMMA2, targets=("layers.1.mlp.up_proj", "o_proj"))
    write_adapter(tmp_path, adapter)
    found = read_adapter(tmp_path, GEMMA2)
    assert sorted(found.weights) == ["layers.0.o", "layers.1.o", "layers.1.up", "layers.2.o", "layers.3.o"]
    assert found.config.targets == ("o_proj", "model.layers.1.mlp.up_proj")
    write_adapter(tmp_path, found)
    same(read_adapter(tmp_path, GEMMA2), adapter)


def test_writing_over_another_leaves_one_adapter_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}")
    first, second = random_adapter(GEMMA2), random_adapter(GEMMA2, seed=5, rank=4)
    write_adapter(tmp_path, first)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(safetensors, "write", full)
        with pytest.raises(GemmaryError, match="No space left"):
            write_adapter(tmp_path, first)
        same(read_adapter(tmp_path, GEMMA2), first)
        with pytest.raises(GemmaryError, match="No space left"):
            write_adapter(tmp_path, second)
        with pytest.raises(GemmaryError, match=f"not an adapter: it has no {CONFIG}"):
            read_adapter(tmp_path, GEMMA2)
    write_adapter(tmp_path, second)
    same(read_adapter(tmp_path, GEMMA2), second)
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS, "metrics.jsonl"]


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray[Any, Any]]], None]) -> None:
    file = SafetensorsFile(folder / WEIGHTS)
    arrays = {name: np.array(file.array(name)) for name in file.entries}
    change(arrays)
    plan = [(name, "F32", array.shape) for name, array in arrays.items()]
    with open(folder / WEIGHTS, "wb") as out:
        safetensors.write(HashingFile(out), plan, (iter([array]) for array in arrays.values()))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda t: t.pop(FIRST), "lacks tensor .*q_proj.lora_A"),
        (lambda t: t.update({"extra.weight": np.zeros(3, np.float32)}), "'extra.weight' is not among those"),
        (lambda t: t.update({FIRST: t[FIRST][:, 1:]}), r"is \[3, 41\] where this model and rank 3 need \[3, 42\]"),
        (lambda t: t[FIRST].__setitem__((0, 0), np.nan), "not finite"),
        (lambda t: t.clear(), "not an adapter of this model"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, change: Callable[[Any], None], line: str) -> None:
    write_adapter(tmp_path, random_adapter(GEMMA2))
    rewrite(tmp_path, change)
    with pytest.raises(GemmaryError, match=line):
        read_adapter(tmp_path, GEMMA2)


def test_an_adapter_of_another_model(tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(GEMMA2))
    with pytest.raises(GemmaryError, match="where this model and rank 3 need"):
        read_adapter(tmp_path, TINY["gemma3"])
    with pytest.raises(GemmaryError, match="is not among those"):
        read_adapter(tmp_path, replace(GEMMA2, num_layers=2, layer_types=("local", "global")))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"peft_type": "IA3"}, "only LORA"),
        ({"modules_to_save": ["lm_head"]}, "modules trained whole"),
        ({"r": 0}, "r is 0, not a size"),
        ({"r": None}, "r is missing"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, not a number above zero"),
        ({"use_dora": 1}, "use_dora is 1, not true or false"),
        ({"init_lora_weights": "pissa"}, "changes the base model too"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices' is .* not applied here"),
        ({"target_modules": "(a*)*b"}, "too intricate"),
        ({"target_modules": "["}, "not a regular expression"),
        ({"target_modules": 3}, "neither names of modules nor an expression"),
        ({"target_modules": ["q_proj"]}, "is not among those"),
        ({"rank_pattern": {"q_proj": 4}}, "rank 4 need"),
        ({"rank_pattern": {"a\nb": 0}}, "rank_pattern is 0"),
        ({"alpha_pattern": [1]}, "not an object"),
        ({"layers_to_transform": ["1"]}, "not numbers of layers"),
        ({"use_dora": True}, "lacks tensor .*magnitude"),
    ],
)
def test_configurations_that_are_refused(tmp_path: Path, settings: dict[str, Any], line: str) -> None:
    write_adapter(tmp_path, random_adapter(GEMMA2))
    data = json.loads((tmp_path / CONFIG).read_text()) | settings
    (tmp_path / CONFIG).write_text(json.dumps(data))
    with pytest.raises(GemmaryError, match=line) as caught:
        read_adapter(tmp_path, GEMMA2)
    assert "\n" not in str(caught.value)


def test_only_a_bin_file(tmp_path: Path) -> None:
    write_adapter(tmp_path, random_adapter(GEMMA2))
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(GemmaryError, match="can run code"):
        read_adapter(tmp_path, GEMMA2)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(4)
    write_adapter(tmp_path, mixed_adapter(GEMMA2, dora=True))
    config, weights = (tmp_path / CONFIG).read_bytes(), (tmp_path / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(weights[:8], "little")
    refusals = 0
    for round_ in range(240):
        if round_ % 3:
            (tmp_path / CONFIG).write_text(json.dumps(alter(rng, json.loads(config))))
        else:
            (tmp_path / WEIGHTS).write_bytes(flip(rng, weights[:header]) + weights[header:])
        refusals += refused(lambda: read_adapter(tmp_path, GEMMA2))
        (tmp_path / CONFIG).write_bytes(config)
        (tmp_path / WEIGHTS).write_bytes(weights)
    assert 80 < refusals < 240
