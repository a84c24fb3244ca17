"""`merge`: the weights are the sum, every format holds it, and one that changed the answers is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary.calibrate.quantize import quantize
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.peft import Adapter, write_adapter
from gemmary.errors import GemmaryError
from gemmary.quantize.lora import merged_rows
from gemmary.tune.merge import merge
from gemmary.verify import Limits
from tests.checkpoints.adapters import merged, mixed_adapter
from tests.cli.small_models import write_small
from tests.runs import relative_error
from tests.tiny import TINY, random_tokens

KIND = "gemma2-q32"
TEXT = "the bath tab, 日 a fact each. " * 20
LOOSE = Limits("loose", mean_kl=10.0, top1=0.0, nll=10.0, cosine=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    write_small(folder / "base", KIND)
    save_checkpoint(open_checkpoint(folder / "base"), folder / "base.gguf", format="gguf", dtype="int4")
    write_adapter(folder / "lora", adapter(dora=False))
    write_adapter(folder / "dora", adapter(dora=True))
    return folder


def adapter(*, dora: bool) -> Adapter:
    return mixed_adapter(TINY[KIND], dora=dora)


@pytest.mark.parametrize("dora", [False, True])
def test_the_weights_are_the_sum(folder: Path, tmp_path: Path, dora: bool) -> None:
    told: list[str] = []
    tuned = folder / ("dora" if dora else "lora")
    done = merge(folder / "base", tuned, tmp_path / "out", progress=lambda what, *_: told.append(what))
    assert (done.format, done.dtype, done.report.limits.name) == ("safetensors", "float32", "same weights")
    assert set(told) == {"writing weights", "comparing tokens"}
    base, out = open_checkpoint(folder / "base"), open_checkpoint(tmp_path / "out")
    expected = merged(base.lookup, adapter(dora=dora))
    for name in base.names():
        found = out.lookup(name).dequantize()
        np.testing.assert_allclose(found, expected(name).dequantize(), rtol=2e-5, atol=2e-6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize(("name", "quant", "format"), [("out", "int8", "packed"), ("out.gguf", "int8", "gguf")])
def test_quantized_once(folder: Path, tmp_path: Path, name: str, quant: str, format: str) -> None:
    done = merge(folder / "base", folder / "lora", tmp_path / name, quant=quant)
    assert (done.format, done.dtype) == (format, "int8")
    assert done.report.limits.name == "8-bit weights against others"
    merge(folder / "base", folder / "lora", tmp_path / "whole")
    whole = gemmary.load(tmp_path / "whole", quant=quant)
    ids = random_tokens(whole.config, 30)
    assert relative_error(gemmary.load(tmp_path / name).logits(ids), whole.logits(ids)) == 0


@pytest.mark.parametrize("name", ["out", "out.gguf"])
def test_calibrated(folder: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rounded is the sum, and the columns that are still to come make up for it."""
    monkeypatch.setattr("gemmary.tune.merge.INT4", LOOSE)
    options: dict[str, Any] = {"quant": "int4", "text": TEXT}
    done = merge(folder / "base", folder / "lora", tmp_path / name, method="gptq", **options)
    assert (done.dtype, done.report.limits.name) == ("int4", "loose")
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]
    merge(folder / "base", folder / "lora", tmp_path / "whole")
    quantize(tmp_path / "whole", tmp_path / "alone", method="gptq", text=TEXT)
    made, alone = open_checkpoint(tmp_path / name), open_checkpoint(tmp_path / "alone")
    for matrix in ("embed", "layers.0.q", "layers.2.down"):
        assert np.array_equal(made.lookup(matrix).dequantize(), alone.lookup(matrix).dequantize())


def test_a_quantized_base_is_said(folder: Path, tmp_path: Path) -> None:
    done = merge(folder / "base.gguf", folder / "lora", tmp_path / "out")
    assert "stored as Q4_0: dequantized exactly, merged, and stored as bfloat16" in " ".join(done.notices)
    assert open_checkpoint(tmp_path / "out").lookup("layers.0.q").format == "BF16"
    assert done.report.limits.mean_kl == 0.02


def test_a_merge_that_changed_the_answers_is_not_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any) -> Any:
        return merged_rows(*arguments)[::-1]

    monkeypatch.setattr("gemmary.tune.merge.merged_rows", wrong)
    with pytest.raises(GemmaryError, match=r"is not base and adapter: mean KL .* nothing was written"):
        merge(folder / "base", folder / "lora", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match="cannot be stored as int8: a Hugging Face folder has no blocks"):
        merge(folder / "base", folder / "lora", tmp_path / "out", quant="int8", format="safetensors")
    with pytest.raises(GemmaryError, match="cannot be stored as int8: dtype says otherwise"):
        merge(folder / "base", folder / "lora", tmp_path / "out", quant="int8", dtype="float32")
    with pytest.raises(GemmaryError, match="already exists"):
        merge(folder / "base", folder / "lora", folder)
    for options in ({"method": "gptq"}, {"method": "best", "quant": "int4"}, {"text": TEXT, "quant": "int4"}):
        with pytest.raises(GemmaryError, match="by rtn, which reads no text, or by gptq"):
            merge(folder / "base", folder / "lora", tmp_path / "out", **options)  # type: ignore[arg-type]
    with pytest.raises(GemmaryError, match="not an adapter"):
        merge(folder / "base", folder / "base", tmp_path / "out")
    assert not list(tmp_path.iterdir())
