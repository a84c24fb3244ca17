"""metrics.jsonl and what is drawn of it."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from gemmary.errors import GemmaryError
from gemmary.tune.metrics import METRICS, Metrics, draw, peak_rss_bytes, read_lines
from gemmary.tune.progress import Line


def line(step: int, loss: float | None = 1.5, val_loss: float | None = None) -> Line:
    return Line(step, loss, val_loss, 0.1, 2.0, 10 * step, 99.0, 1000, float(step))


def write(folder: Path, last: int, after: int = -1) -> None:
    metrics = Metrics(folder, after)
    for step in range(after + 1, last + 1):
        metrics.write(line(step, loss=3 / (step + 1) if step else None, val_loss=2.0 if step % 3 == 0 else None))
    metrics.sync()
    metrics.close()


def test_lines_after_the_step_are_cut_off(tmp_path: Path) -> None:
    write(tmp_path, 9)
    whole = (tmp_path / METRICS).read_bytes()
    for torn in (0, 1, 40):  # a kill may leave a part of a line
        (tmp_path / METRICS).write_bytes(whole[: len(whole) - torn])
        write(tmp_path, 9, after=4)
        assert (tmp_path / METRICS).read_bytes() == whole
    write(tmp_path, 2)
    assert [each["step"] for each in read_lines(tmp_path / METRICS)] == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [METRICS]


@pytest.mark.parametrize("text", ["{\n", "[]\n", '{"loss": 1}\n', '"step"\n'])
def test_what_is_no_line_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n' + text)
    with pytest.raises(GemmaryError, match=r"metrics\.jsonl:2 is not a line of metrics"):
        Metrics(tmp_path, 1)


def test_a_picture_of_the_losses(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    write(tmp_path, 9)
    drawn = draw(tmp_path)
    assert drawn == tmp_path / "loss.png"
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert draw(tmp_path) is None


def test_tensorboard_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    told: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int) -> None:
            told.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(())

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "tensorboard")
    metrics = Metrics(tmp_path, 4)
    metrics.write(line(5))
    metrics.close()
    assert told[0] == (str(tmp_path / "tensorboard"), 5)
    assert ("loss", 1.5, 5) in told
    assert not any(name == "val_loss" for name, *_ in told[1:-1])
    assert told[-1] == ()


def test_peak_memory_is_in_bytes() -> None:
    assert 10**7 < peak_rss_bytes() < 10**12
