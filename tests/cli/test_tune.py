"""`gemmary tune` from its flags to its folder, on a tiny model and on the starter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from tests.cli.conftest import Gemmary
from tests.one_thread import one_torch_thread as one_torch_thread

FAST = (
    "--steps",
    2,
    "--batch-size",
    1,
    "--sequence-length",
    64,
    "--lora-rank",
    2,
    "--threads",
    1,
    "--dtype",
    "float32",
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"a {word}", "completion": f" {word} b"} for word in ("one", "two", "three", "four") * 4]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def test_a_run(gemmary_command: Gemmary, base_model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = gemmary_command("tune", base_model, rows, "--out", out, *FAST, "--validation", 0.3, "--evaluate-every", 1)
    assert done.code == 0, done.err
    assert "lora on cpu in float32, 1 thread · trains" in done.err
    assert "of them scored, packed to" in done.err
    assert "step 2/2 · loss" in done.err
    assert "% of the matmul peak" in done.err
    assert "Traceback" not in done.err
    first, second, last = done.out.splitlines()
    assert first.startswith("2 steps in 0:0")
    assert second.startswith("validation loss")
    assert last == f'try it: gemmary run {base_model} --adapter {out} "..."'
    names = {path.name for path in out.iterdir()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "checkpoints", "config.yaml", "metrics.jsonl"}
    assert wanted <= names
    assert names <= wanted | {"loss.png", "SHA256SUMS"}
    told = gemmary_command("run", base_model, "--adapter", out, "a one", "--max-tokens", 2, "--engine", "torch")
    assert told.code == 0, told.err


def test_the_starter_learns(gemmary_command: Gemmary, starter_gguf: Path, rows: Path, tmp_path: Path) -> None:
    flags = ("--lora-targets", "q,v", "--schedule", "constant", "--warmup-steps", 0, "--learning-rate", 0.003)
    done = gemmary_command("tune", starter_gguf, rows, "--out", tmp_path / "out", *FAST, *flags, "--json")
    assert done.code == 0, done.err
    first, second = [event["loss"] for event in map(json.loads, done.out.splitlines()) if event["event"] == "step"]
    assert second < first - 0.2


def test_a_live_line_on_a_terminal(
    gemmary_command: Gemmary, base_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.live import Live

    shown: list[str] = []
    real = Live.update
    monkeypatch.setattr(Live, "update", lambda self, text: (shown.append(text.plain), real(self, text))[1])
    monkeypatch.setattr("gemmary.cli.training.is_terminal", lambda: True)
    done = gemmary_command("tune", base_model, rows, "--out", "out", *FAST, "--validation", 0.3)
    assert done.code == 0, done.err
    assert shown[0].startswith("measuring on the validation rows, 1/")
    assert [text.split(" · ")[0] for text in shown if text.startswith("step")] == ["step 1/2", "step 2/2"]
    assert "validation" in shown[-1]
    assert shown[-1].endswith("· 0:00 left")


def test_a_file_of_settings_resumed_as_json(
    gemmary_command: Gemmary, base_model: Path, rows: Path, tmp_path: Path
) -> None:
    first = gemmary_command("tune", base_model, rows, "--out", tmp_path / "out", *FAST)
    assert first.code == 0, first.err
    assert "holds something" in gemmary_command("tune", "-c", tmp_path / "out/config.yaml").error
    again = gemmary_command("tune", "-c", tmp_path / "out/config.yaml", "--resume", "--json")
    assert again.code == 0, again.err
    events = [json.loads(line) for line in again.out.splitlines()]
    assert [event["event"] for event in events] == ["begin", "result"]
    assert events[1]["steps"] == events[0]["resumed"] == 2
    assert events[1]["folder"] == str(tmp_path / "out")


def test_ctrl_c_says_how_to_go_on(
    gemmary_command: Gemmary, base_model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    from gemmary.cli.training import Watcher

    monkeypatch.setattr(Watcher, "step", lambda self, line, share: os.kill(os.getpid(), signal.SIGINT))
    done = gemmary_command("tune", base_model, rows, "--out", tmp_path / "out", *FAST)
    assert done.code == 130
    assert f"`gemmary tune -c {tmp_path}/out/config.yaml --resume` goes on" in done.err
    assert (tmp_path / "out/checkpoints/step-00000001").is_dir()


def test_a_preview_trains_nothing(gemmary_command: Gemmary, base_model: Path, rows: Path, tmp_path: Path) -> None:
    done = gemmary_command("tune", base_model, rows, "--out", tmp_path / "out", "--preview", 2)
    assert done.code == 0, done.err
    assert done.out.count("tokens, ") >= 2
    assert not (tmp_path / "out").exists()
    found = json.loads(gemmary_command("tune", base_model, rows, "--out", "out", "--preview", 1, "--json").out)
    assert len(found["documents"]) == 1


def test_mistakes_are_one_line(gemmary_command: Gemmary, base_model: Path, rows: Path) -> None:
    assert "there is no out: give --out" in gemmary_command("tune", base_model, rows).error
    assert "--learning-rate must be a number above 0" in gemmary_command(
        "tune", base_model, rows, "--out", "x", "--learning-rate", "fast"
    ).error  # fmt: skip
    assert "invalid choice: 'sgd'" in gemmary_command("tune", base_model, rows, "--optimizer", "sgd").error


def test_without_pytorch(
    gemmary_command: Gemmary, base_model: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'pip install "gemmary[tune]"' in gemmary_command("tune", base_model, rows, "--out", "x").error
