"""`gemmary quantize`, from a model on disk to what its folder says of itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gemmary
from gemmary.calibrate.formats import FORMATS
from gemmary.calibrate.quantize import calibration_text
from gemmary.checkpoints import open_checkpoint
from gemmary.cli import quantize as command
from gemmary.errors import GemmaryError
from gemmary.verify import builtin_text
from tests.cli.conftest import Gemmary
from tests.cli.small_models import write_small

TEXT = "the bath tab, 日 a fact each. " * 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("models") / "small", "gemma2-q32")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_rounded(gemmary_command: Gemmary, model: Path, tmp_path: Path) -> None:
    done = gemmary_command("quantize", model, "--to", "int8", "--out", tmp_path / "q8")
    assert done.code == 0, done.err
    assert "mean KL" in done.out
    stated = json.loads((tmp_path / "q8" / "quality.json").read_text())
    assert stated["method"] == "rtn"
    assert stated["calibration"] is None
    assert stated["bits_per_weight"] == {"all": 8.5, "embed": 8.5, "others": 8.5}
    assert 0 < stated["measured"]["mean_kl"] < 0.05
    assert stated["measured"]["top1_agreement"] > 0.8
    assert "quality.json" in (tmp_path / "q8" / "SHA256SUMS").read_text()
    verified = gemmary_command("verify", tmp_path / "q8", "--against", model, "--json")
    assert json.loads(verified.out)["mean_kl"] == pytest.approx(stated["measured"]["mean_kl"])
    shown = gemmary_command("show", tmp_path / "q8")
    assert f"mean KL {stated['measured']['mean_kl']:.4g}" in shown.out
    assert "8.5 all" in shown.out
    assert json.loads(gemmary_command("show", tmp_path / "q8", "--json").out)["quality"] == stated
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q8"]


def test_calibrated(gemmary_command: Gemmary, model: Path, tmp_path: Path, text: Path) -> None:
    out = tmp_path / "q4"
    done = gemmary_command("quantize", model, "--method", "gptq", "--text", text, "--embed", "Q8_0", "--out", out)
    assert done.code == 0, done.err
    stated = json.loads((out / "quality.json").read_text())
    assert stated["calibration"]["text"] == "text.txt"
    assert stated["formats"]["embed"] == "Q8_0"
    assert stated["formats"]["layers.down"] == "Q4_0"
    made, source = open_checkpoint(out), open_checkpoint(model)
    assert made.lookup("layers.1.gate").format == "Q4_0"
    rounded = gemmary_command("quantize", model, "--embed", "Q8_0", "--out", tmp_path / "rtn")
    assert rounded.code == 0, rounded.err
    plain = open_checkpoint(tmp_path / "rtn").lookup("layers.1.gate").dequantize()
    original = source.lookup("layers.1.gate").dequantize()
    found = made.lookup("layers.1.gate").dequantize()
    assert not np.array_equal(found, plain)
    assert np.abs(found - original).max() < 3 * np.abs(plain - original).max()


def test_for_transformers(gemmary_command: Gemmary, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gemmary_command("quantize", model, "--format", "compressed-tensors", "--out", out)
    assert done.code == 0, done.err
    assert "of compressed-tensors" in done.out
    stated = json.loads((out / "quality.json").read_text())
    assert (stated["formats"]["embed"], stated["formats"]["layers.down"]) == ("F32", "Q4_0")
    assert (stated["bits_per_weight"]["embed"], stated["bits_per_weight"]["others"]) == (32, 4.5)
    assert json.loads((out / "config.json").read_text())["quantization_config"]["format"] == "pack-quantized"
    verified = gemmary_command("verify", out, "--against", model, "--json")
    assert json.loads(verified.out)["mean_kl"] == pytest.approx(stated["measured"]["mean_kl"])
    assert gemmary_command("convert", out, tmp_path / "q.gguf", "--dtype", "int4").code == 0
    again = gemmary_command("convert", tmp_path / "q.gguf", tmp_path / "again", "--format", "compressed-tensors")
    assert again.code == 0, again.err
    assert "Q4_0 weights are written as float32" in again.err


def test_a_gguf_file(gemmary_command: Gemmary, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows of 64 do not divide into blocks of 256: that is said, never silent."""
    path = tmp_path / "small.gguf"
    done = gemmary_command("quantize", model, "--to", "Q4_K_M", "--out", path)
    assert done.code == 0, done.err
    assert "of gguf" in done.out
    assert "are Q5_0 where Q4_K was asked for" in done.err
    stated = json.loads((tmp_path / "small.gguf.quality.json").read_text())
    assert (stated["formats"]["embed"], stated["formats"]["layers.down"]) == ("Q8_0", "Q5_0, Q8_0")
    assert 0 < stated["measured"]["mean_kl"] < 0.05
    assert json.loads(gemmary_command("show", path, "--json").out)["quality"] == stated
    verified = gemmary_command("verify", path, "--against", model, "--json")
    assert json.loads(verified.out)["mean_kl"] == pytest.approx(stated["measured"]["mean_kl"])
    names = {"small.gguf", "small.gguf.sha256", "small.gguf.quality.json"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert "already exists" in gemmary_command("quantize", model, "--out", path).error
    monkeypatch.setattr("gemmary.calibrate.quality.measure", _full)
    assert "cannot write" in gemmary_command("quantize", model, "--out", tmp_path / "other.gguf").error
    assert {file.name for file in tmp_path.iterdir() if "other.gguf.parts" not in file.name} == names


def _full(*_: object) -> None:
    raise GemmaryError("cannot write it: No space left on device")


def test_blocks_of_256(gemmary_command: Gemmary, tmp_path: Path) -> None:
    wide = write_small(tmp_path / "wide", "gemma2-q256")
    done = gemmary_command("quantize", wide, "--to", "Q4_K", "--embed", "Q6_K", "--out", tmp_path / "q")
    assert done.code == 0, done.err
    assert "do not divide" not in done.err
    stated = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert stated["bits_per_weight"] | {"all": 0} == {"all": 0, "embed": 6.5625, "others": 4.5}
    assert 0 < stated["measured"]["mean_kl"] < 0.2


def test_a_mix(gemmary_command: Gemmary, model: Path, tmp_path: Path, text: Path) -> None:
    done = gemmary_command("quantize", model, "--bits", "6", "--text", text, "--out", tmp_path / "mix")
    assert done.code == 0, done.err
    stated = json.loads((tmp_path / "mix" / "quality.json").read_text())
    assert 5 < stated["bits_per_weight"]["all"] <= 6
    assert len(set(stated["formats"].values())) > 1


KILLED = """
import os, signal, sys
from gemmary.calibrate import parts
from gemmary.cli import main
put = parts.Parts.put
def last(self, name, *rest):
    if name == "layers.1.o":
        os.kill(os.getpid(), signal.SIGKILL)
    return put(self, name, *rest)
parts.Parts.put = last
main(sys.argv[1:])
"""


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_killed_run_goes_on(gemmary_command: Gemmary, model: Path, tmp_path: Path, text: Path, method: str) -> None:
    out = tmp_path / "out"
    options = ["quantize", str(model), "--method", method, *(["--text", str(text)] if method == "gptq" else [])]
    source = Path(gemmary.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, *options, "--out", out], env=environment, check=False)
    assert killed.returncode == -9
    assert not out.exists()
    again = gemmary_command(*options, "--out", out)
    assert again.code == 0, again.err
    assert "were done by an earlier run" in again.err
    whole = gemmary_command(*options, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "whole", "text.txt"}


def test_where_both_do_not_fit_it_says_so(
    gemmary_command: Gemmary, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmary.calibrate.quality.available_bytes", lambda: 1000)
    assert gemmary_command("quantize", model, "--out", tmp_path / "q").code == 0
    stated = json.loads((tmp_path / "q" / "quality.json").read_text())
    assert stated["measured"] is None
    assert "1,000 bytes were available" in stated["why_not_measured"]
    assert "not measured: source and result need" in gemmary_command("show", tmp_path / "q").out


def test_calibrating_that_does_not_fit_is_refused(
    gemmary_command: Gemmary, model: Path, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmary.memory.available_bytes", lambda: 100_000)
    done = gemmary_command("quantize", model, "--method", "gptq", "--text", text, "--out", tmp_path / "q")
    assert "calibrating small needs about" in done.error
    assert "choose the method rtn" in done.error


def test_what_is_quantized_already_is_allowed_with_a_word(
    gemmary_command: Gemmary, model: Path, tmp_path: Path
) -> None:
    assert gemmary_command("quantize", model, "--to", "int8", "--out", tmp_path / "q8").code == 0
    done = gemmary_command("quantize", tmp_path / "q8", "--out", tmp_path / "q4")
    assert done.code == 0, done.err
    assert "weights stored as Q8_0 are dequantized and quantized again" in done.err


def test_mistakes_are_one_line(gemmary_command: Gemmary, model: Path, tmp_path: Path, text: Path) -> None:
    out = ["--out", tmp_path / "out"]
    short = tmp_path / "short.txt"
    short.write_text("the bath")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").touch()
    odd = write_small(tmp_path / "odd")
    for arguments, line in [
        (["--method", "gptq", "--text", short, *out], "the calibration text has"),
        (["--text", text, *out], "rtn reads no text"),
        (["--bits", "6", "--embed", "int8", *out], "leave --embed out"),
        (["--format", "compressed-tensors", "--to", "Q5_0", *out], "compressed-tensors holds layers of int8 or int4"),
        (["--bits", "3", "--text", text, *out], "a mix has at least 4.5 bits"),
        (["--out", full], "already exists"),
        (["--method", "gptq", "--text", tmp_path / "none.txt", *out], "cannot read"),
        (["--method", "gptq", "--to", "Q4_K", *out], "choose the method rtn"),
        (["--format", "gguf", *out], "has a name that ends in .gguf"),
        (["--format", "packed", "--out", tmp_path / "out.gguf"], "has a name that ends in .gguf"),
    ]:
        assert line in gemmary_command("quantize", model, *arguments).error
    assert "cannot be quantized: in embed rows of" in gemmary_command("quantize", odd, *out).error
    assert "invalid choice" in gemmary_command("quantize", model, "--to", "int3", *out).error
    assert not (tmp_path / "out").exists()


def test_the_texts_differ() -> None:
    """What is measured on was not calibrated on."""
    paragraphs = {line for line in builtin_text().splitlines() if len(line) > 40}
    assert not paragraphs & set(calibration_text().splitlines())
    assert len(calibration_text().encode()) > 10_000


def test_the_formats_of_the_command_are_those_that_can_be_made() -> None:
    """The command has its own, so that its help imports nothing heavy."""
    assert set(command.FORMATS) == set(FORMATS)
