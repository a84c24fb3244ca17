"""What a run leaves to be looked at: metrics.jsonl, a picture of it, TensorBoard's files where that is installed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.tune.progress import Line

METRICS = "metrics.jsonl"
PICTURE = "loss.png"


class Metrics:
    """Writes metrics.jsonl in the folder of a run, a line at a time.

    step: lines after it are cut off first, in one stroke: the run goes on from there. -1: from the beginning.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / METRICS
        kept = [line for line in read_lines(self._path) if line["step"] <= step]
        with atomic_file(self._path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        self._board = _tensorboard(folder, step)

    def write(self, line: Line) -> None:
        fields = asdict(line)
        data = (json.dumps(fields) + "\n").encode()
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(28, "No space left on device")
        except OSError as error:
            raise GemmaryError(f"cannot write {self._path}: {error.strerror}; the last checkpoint is whole") from error
        if self._board is not None:
            for name, value in fields.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, line.step)

    def sync(self) -> None:
        """What was written is on the disk, so that a checkpoint may say that it is."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise GemmaryError(f"cannot write {self._path}: {error.strerror}; the last checkpoint is whole") from error

    def close(self) -> None:
        os.close(self._file)
        if self._board is not None:
            self._board.close()


class Unwritten:
    """The metrics of a process that does not lead: what it computed is in the leader's."""

    def write(self, line: Line) -> None: ...

    def sync(self) -> None: ...


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; without the last one where it was cut short in the writing. None: no lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise GemmaryError(f"cannot read {path}: {error}") from error
    lines = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
            lines[-1]["step"]
        except (ValueError, KeyError, TypeError):
            raise GemmaryError(f"{path}:{number} is not a line of metrics: move the file away to go on") from None
    return lines


def peak_rss_bytes() -> int:
    """The most memory that this process had at once."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def draw(folder: Path) -> Path | None:
    """Draws the losses of a run as loss.png in its folder. None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    from matplotlib.figure import Figure

    lines = read_lines(folder / METRICS)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, style in (("loss", {"linewidth": 0.8}), ("val_loss", {"marker": "o", "markersize": 3})):
        points = [(line["step"], line[name]) for line in lines if line[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, **style)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per scored token")
    axes.grid(alpha=0.3)
    axes.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    with atomic_file(folder / PICTURE) as file:
        file.write(drawn.getbuffer())
    return folder / PICTURE


def _tensorboard(folder: Path, step: int) -> Any:
    """A writer of TensorBoard's files, which forgets what came after `step`; None where it is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
