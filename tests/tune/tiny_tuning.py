"""Whole tuning runs on a model of a few thousand weights: the ones that `benchmarks/kills.py` kills."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks.kills import left_by as left_by
from benchmarks.kills import settings_of
from gemmary.tune import loop
from gemmary.tune.progress import Line, Overview, Result
from gemmary.tune.settings import Settings
from gemmary.tune.state import Checkpoints as Checkpoints


@dataclass
class Heard:
    """A listener that keeps what it hears, and does something after some steps."""

    after: dict[int, Callable[[], Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    overview: Overview | None = None
    evaluated: int = 0

    def begin(self, overview: Overview) -> None:
        self.overview = overview

    def step(self, line: Line, flops_share: float | None) -> None:
        assert flops_share is not None
        assert flops_share > 0
        self.lines.append(line)
        self.after.get(line.step, lambda: None)()

    def evaluating(self, done: int, total: int) -> None:
        self.evaluated += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@dataclass
class Tiny:
    """The model and rows of a test, and runs over them."""

    settings: Settings
    folder: Path

    def tune(self, out: str, heard: Heard | None = None, **changes: Any) -> Result:
        return loop.tune(replace(self.settings, out=str(self.folder / out), **changes), heard)

    def left(self, out: str) -> dict[str, Any]:
        return left_by(self.folder / out)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tuning")
    return Tiny(settings_of(folder, "lora"), folder)


@pytest.fixture(scope="module")
def undisturbed(tiny: Tiny) -> dict[str, Any]:
    tiny.tune("undisturbed")
    return tiny.left("undisturbed")


@pytest.fixture(autouse=True, scope="module")
def no_ceiling() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_ceiling", lambda dtype, device: 1e9)
        yield
