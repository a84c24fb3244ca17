"""What a run tells while it goes on, and to whom."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Overview:
    """A run, before its first step."""

    model: str
    method: str
    device: str
    dtype: str
    threads: int
    recomputes: bool
    """Activations are computed twice rather than kept (gradient checkpointing)."""
    trained: int
    """Weights that are trained, of `parameters`."""
    parameters: int
    documents: int
    tokens: int
    """Of one epoch, and those of them that the loss counts."""
    scored: int
    packing: float
    """Share of the packs' room that tokens take."""
    steps: int
    resumed: int
    """Steps that were done before."""


@dataclass(frozen=True)
class Line:
    """A line of metrics.jsonl. Losses are means over the scored tokens, in nats."""

    step: int
    """Updates done; 0: the model as it came."""
    loss: float | None
    """Of the step's own rows, before its update."""
    val_loss: float | None
    """Of all rows for validation, after the update; None where it was not measured."""
    learning_rate: float | None
    gradient_norm: float | None
    """Before clipping."""
    tokens: int
    """Seen since the start."""
    tokens_per_s: float | None
    """In the step alone."""
    peak_rss_bytes: int
    seconds: float
    """Since the start, evaluations and saves included, pauses not."""


TIMING = ("tokens_per_s", "peak_rss_bytes", "seconds")
"""The fields of a line that differ from one run to the next; all others have the same bits."""


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    folder: Path
    steps: int
    stopped_early: bool
    tokens: int
    scored: int
    loss: float | None
    """Of the last step."""
    first_val_loss: float | None
    """Of the model as it came."""
    best_val_loss: float | None
    best_step: int | None
    """The step whose weights were saved: the best on validation; None: the last one."""
    test_loss: float | None
    """Of the weights that were saved."""
    seconds: float
    tokens_per_s: float | None
    """Over the steps of this process, without evaluations and saves; None: it made none."""
    flops_share: float | None
    """Of PyTorch's own matrix product on this device, in those steps."""
    peak_rss_bytes: int
    device: str
    dtype: str

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


class Progress(Protocol):
    """Who listens to a run."""

    def begin(self, overview: Overview) -> None: ...

    def step(self, line: Line, flops_share: float | None) -> None:
        """After every update. flops_share: as in `Result`, of this step."""
        ...

    def evaluating(self, done: int, total: int) -> None:
        """Micro-batches of the rows for validation."""
        ...

    def note(self, text: str) -> None:
        """Something that a person should know."""
        ...


class Silent:
    """Nobody listens."""

    def begin(self, overview: Overview) -> None: ...

    def step(self, line: Line, flops_share: float | None) -> None: ...

    def evaluating(self, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...
