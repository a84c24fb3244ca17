"""What a person sees of a training run: a live line on a terminal, a line now and then through a pipe, or JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gemmary.cli import console
from gemmary.memory import size
from gemmary.tune.progress import Line, Overview

if TYPE_CHECKING:
    from rich.live import Live

TELL_SECONDS = 30.0
"""Through a pipe: at most so long without a line."""


class Watcher:
    """Listens to a run (`gemmary.tune.progress.Progress`): shows it on stderr; with `json`, on stdout for programs."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._live: Live | None = None
        self._overview: Overview | None = None
        self._val_loss: float | None = None
        self._began = self._told = 0.0

    def begin(self, overview: Overview) -> None:
        self._overview = overview
        self._began = time.monotonic()
        for line in describe(overview):
            console.note(line)
        self._emit("begin", asdict(overview))

    def step(self, line: Line, flops_share: float | None) -> None:
        assert self._overview is not None
        self._emit("step", asdict(line))
        self._val_loss = line.val_loss if line.val_loss is not None else self._val_loss
        text = self._describe(line, flops_share)
        if is_terminal() and not self._json:
            self._draw(text)
            return
        now = time.monotonic()
        ends = line.step in (self._overview.resumed + 1, self._overview.steps)
        if not self._json and (ends or line.val_loss is not None or now - self._told >= TELL_SECONDS):
            self._told = now
            console.note(text)

    def evaluating(self, done: int, total: int) -> None:
        if is_terminal() and not self._json:
            self._draw(f"measuring on the validation rows, {done:,}/{total:,}")

    def note(self, text: str) -> None:
        console.note(f"note: {text}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()

    def result(self, found: dict[str, Any]) -> None:
        self._emit("result", found)

    def _emit(self, event: str, fields: dict[str, Any]) -> None:
        if self._json:
            print(json.dumps({"event": event, **fields}), flush=True)

    def _describe(self, line: Line, flops_share: float | None) -> str:
        assert self._overview is not None
        parts = [f"step {line.step:,}/{self._overview.steps:,}", f"loss {line.loss:.4f}"]
        if self._val_loss is not None:
            parts.append(f"validation {self._val_loss:.4f}")
        parts += [f"rate {line.learning_rate:.2e}", f"{line.tokens_per_s:,.0f} tokens/s"]
        if flops_share is not None:
            parts.append(f"{flops_share:.0%} of the matmul peak")
        done = line.step - self._overview.resumed
        left = (time.monotonic() - self._began) / done * (self._overview.steps - line.step)
        return " · ".join([*parts, f"peak {size(line.peak_rss_bytes)}", f"{clock(left)} left"])

    def _draw(self, text: str) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=Console(stderr=True))
            self._live.start()
        self._live.update(Text(text))


def describe(run: Overview) -> list[str]:
    """A run before its first step, on a few lines."""
    threads = f"{run.threads} thread{'s' if run.threads > 1 else ''}"
    twice = ", activations computed twice" if run.recomputes else ""
    resumed = f" · goes on after step {run.resumed:,}" if run.resumed else ""
    return [
        f"{run.model} · {run.method} on {run.device} in {run.dtype}, {threads}{twice} · "
        f"trains {run.trained:,} of {run.parameters:,} weights ({run.trained / run.parameters:.2%})",
        f"{run.documents:,} documents, {run.tokens:,} tokens, {run.scored:,} of them scored, packed to "
        f"{run.packing:.1%} · {run.steps:,} steps{resumed}",
    ]


def is_terminal() -> bool:
    return sys.stderr.isatty()


def clock(seconds: float) -> str:
    """Such as 1:05:09 or 4:07."""
    hours, rest = divmod(round(seconds), 3600)
    minutes = f"{rest // 60:02d}" if hours else f"{rest // 60}"
    return f"{hours}:{minutes}:{rest % 60:02d}" if hours else f"{minutes}:{rest % 60:02d}"
