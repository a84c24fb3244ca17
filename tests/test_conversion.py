"""A conversion is done when it was checked, and one that changed something leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gemmary import conversion
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import VisionConfig
from gemmary.conversion import convert
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Dense, Leaf
from tests.checkpoints.test_big_vision import SMALL as PALIGEMMA
from tests.models import random_model_leaves, tiny_checkpoint, tokenizer
from tests.tiny import TINY

BLOCKS = "gemma3-q32"


def tiny(name: str, **options: Any) -> Checkpoint:
    """A model that lies in no file."""
    return replace(tiny_checkpoint(name, **options), made_bytes=1 << 20)


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3-mqa", "embeddinggemma"])
@pytest.mark.parametrize(("format", "target"), [("safetensors", "m"), ("gguf", "m.gguf"), ("packed", "m")])
def test_what_is_written_is_the_same(name: str, format: str, target: str, tmp_path: Path) -> None:
    source = tiny(name)
    _, checked = convert(source, tmp_path / target, format=format)
    assert checked.weights == len(source.names())
    assert checked.positions == 48
    assert "and so are the logits of 48 tokens, bit for bit" in str(checked)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert open_checkpoint(tmp_path / target).config == source.config


def test_rounding_that_was_asked_for_is_no_change(tmp_path: Path) -> None:
    _, checked = convert(tiny("gemma2"), tmp_path / "m", dtype="bfloat16")
    assert checked.positions == 48
    assert open_checkpoint(tmp_path / "m").lookup("layers.0.q").format == "BF16"


def test_rounding_that_was_not_asked_for_is_one(tmp_path: Path) -> None:
    """Matrices in bfloat16 and norms that are not: a folder has one format for all."""

    def lookup(name: str) -> Leaf:
        leaf = random_model_leaves(tiny("gemma2").config)(name)
        return leaf if len(leaf.shape) == 1 else Dense(leaf.dequantize().astype(ml_dtypes.bfloat16))

    source = tiny("gemma2", lookup=lookup)
    with pytest.raises(GemmaryError, match=r"changed the weight layers\.0\.attn_norm.*--dtype float32 keeps"):
        convert(source, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
    convert(source, tmp_path / "m", dtype="float32")
    convert(source, tmp_path / "n", dtype="bfloat16")


@pytest.mark.parametrize(("dtype", "least"), [("int8", 0.0), ("int4", 1e-4)])
def test_how_far_blocks_move_the_logits_is_told(dtype: str, least: float, tmp_path: Path) -> None:
    _, checked = convert(tiny(BLOCKS), tmp_path / "m", format="packed", dtype=dtype)
    assert checked.mean_kl is not None
    assert least < checked.mean_kl < 1
    assert "rounded; mean KL to the source" in str(checked)
    for format, target in (("gguf", "m.gguf"), ("packed", "n")):
        _, again = convert(open_checkpoint(tmp_path / "m"), tmp_path / target, format=format)
        assert again.mean_kl is None
        assert again.positions == 48
    _, layers = convert(tiny(BLOCKS), tmp_path / "c", format="compressed-tensors", dtype=dtype)
    assert layers.mean_kl is not None


@pytest.mark.parametrize("dtype", ["Q4_K", "Q4_K_M"])
def test_blocks_of_256(dtype: str, tmp_path: Path) -> None:
    """Made twice, for the file and for its check: both are the same."""
    _, checked = convert(tiny("gemma2-q256"), tmp_path / "m", format="packed", dtype=dtype)
    assert checked.mean_kl is not None
    assert 1e-4 < checked.mean_kl < 0.5
    _, again = convert(open_checkpoint(tmp_path / "m"), tmp_path / "m.gguf", format="gguf")
    assert again.mean_kl is None
    notices, direct = convert(tiny("gemma2-q256"), tmp_path / "n.gguf", format="gguf", dtype=dtype)
    assert direct.mean_kl == pytest.approx(checked.mean_kl)
    assert not [notice for notice in notices if "do not divide" in notice]


@pytest.mark.parametrize(("dtype", "kl"), [(None, False), ("int4", True)])
def test_a_model_that_sees(dtype: str | None, kl: bool, tmp_path: Path) -> None:
    """Its tower has rows that do not divide into blocks, and biases."""
    vision = VisionConfig(12, num_layers=2, hidden_size=32, num_heads=4, intermediate_size=36, patch_size=3, pool=2,
                          soft_norm=True)  # fmt: skip
    config = replace(TINY[BLOCKS], vocab_size=500, vision=vision)
    source = random_checkpoint(config, "random:tiny", None, 0)
    _, checked = convert(source, tmp_path / "m", format="packed", dtype=dtype)
    assert checked.weights == len(source.names())
    assert (checked.mean_kl is not None) == kl


def test_a_file_without_a_tokenizer(tmp_path: Path) -> None:
    source = random_checkpoint(replace(PALIGEMMA, vocab_size=500), "random:tiny", None, 0)
    _, checked = convert(source, tmp_path / "m.npz", format="big_vision", dtype="float32")
    assert checked.positions == 48


def damaged(change: Callable[[Checkpoint], Checkpoint]) -> Callable[..., list[str]]:
    """A writer that writes something else than it was given."""

    def save(source: Any, path: Path, **options: Any) -> list[str]:
        return save_checkpoint(change(source), path, **options)

    return save


def other_weight(source: Checkpoint) -> Checkpoint:
    source = tiny("gemma2")
    last = source.lookup("layers.2.up").dequantize().copy()
    last[-1, -1] = np.nextafter(last[-1, -1], np.float32(9))
    source.leaves = {**source.leaves, "layers.2.up": lambda: Dense(last)}
    return source


def other_norm(source: Checkpoint) -> Checkpoint:
    source = tiny("gemma2")
    norm = source.lookup("final_norm").dequantize() + np.float32(1)
    source.leaves = {**source.leaves, "final_norm": lambda: Dense(norm)}
    return source


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_weight, "changed the weight layers.2.up"),
        (other_norm, "changed the weight final_norm"),
        (lambda _: tiny("gemma2", sliding_window=6), "cannot say sliding_window = 5 (it means 6)"),
        (lambda _: tiny("gemma2", attn_logit_softcap=None), "cannot say attn_logit_softcap"),
    ],
)
@pytest.mark.parametrize("target", ["m", "m.gguf"])
def test_what_changed_is_thrown_away(
    target: str, change: Callable[[Checkpoint], Checkpoint], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"as it was")
    monkeypatch.setattr(conversion, "save_checkpoint", damaged(change))
    with pytest.raises(GemmaryError) as caught:
        convert(tiny("gemma2"), tmp_path / target, format="gguf" if "." in target else "safetensors")
    assert words in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"as it was"


def test_other_logits_are_a_change_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, calls = conversion._answers, []

    def drifting(checkpoint: Checkpoint, prompts: list[list[int]]) -> Any:
        calls.append(checkpoint)
        return [rows + np.float32(1e-3 * len(calls)) for rows in answers(checkpoint, prompts)]

    monkeypatch.setattr(conversion, "_answers", drifting)
    with pytest.raises(GemmaryError, match="the conversion changed the logits, so it was thrown away"):
        convert(tiny("gemma"), tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_another_tokenizer_is_a_change_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("gemma")
    convert(source, tmp_path / "m")

    class Other:
        encode = staticmethod(lambda text: [*tokenizer().encode(text), 5])

    source.tokenizer = Other()  # type: ignore[assignment]
    with pytest.raises(GemmaryError, match="changed the tokenizer"):
        conversion.check(source, open_checkpoint(tmp_path / "m"))


def test_what_does_not_fit_is_compared_weight_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise GemmaryError("tiny needs about 99 GB of memory")

    monkeypatch.setattr(conversion, "load_checkpoint", full)
    _, checked = convert(tiny("gemma"), tmp_path / "m")
    assert str(checked).endswith("logits were not compared: tiny needs about 99 GB of memory")
    monkeypatch.setattr(conversion, "save_checkpoint", damaged(other_norm))
    with pytest.raises(GemmaryError, match="changed the weight"):
        convert(tiny("gemma2"), tmp_path / "n")


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("x")
    with pytest.raises(GemmaryError, match=r"/m already exists: choose another name"):
        convert(tiny("gemma"), tmp_path / "m")
    with pytest.raises(GemmaryError, match=r"/m already exists: choose another name"):
        convert(tiny("gemma"), tmp_path / "m", format="gguf")
    with pytest.raises(GemmaryError, match=rf"^{tmp_path}/n cannot be read again as GGUF"):
        convert(tiny("gemma"), tmp_path / "n", format="gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
