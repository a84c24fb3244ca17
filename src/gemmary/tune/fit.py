"""The loop: steps, evaluations, checkpoints, the end. It knows rows as micro-batches and a model by what it is asked.

Nothing here is random but what the model draws from PyTorch's generator, whose state is in every checkpoint; the order
of data follows from a position. So a run that was killed anywhere ends, resumed, with the bytes of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gemmary.errors import GemmaryError
from gemmary.tune.interrupts import interrupts
from gemmary.tune.metrics import Metrics, Unwritten, peak_rss_bytes
from gemmary.tune.optim import learning_rate, make_optimizer, update
from gemmary.tune.packing import Batches, MicroBatch
from gemmary.tune.parallel import ALONE, World
from gemmary.tune.plan import count_steps, next_step
from gemmary.tune.progress import Line, Progress
from gemmary.tune.settings import Settings
from gemmary.tune.state import Checkpoints, Snapshot, State, capture, put_weights, restore

CHECKPOINTS = "checkpoints"
Share = Callable[[int, int, int, float], float]
"""Tokens, scored ones, pictures and seconds -> the share of the device's ceiling that they come to."""


class Trainable(Protocol):
    """What the loop asks of a model, an `nn.Module`."""

    def loss(self, micro: MicroBatch) -> torch.Tensor:
        """The sum of -log p over the scored tokens, a float32 scalar."""
        ...

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, by name, in a fixed order."""
        ...

    def train(self, mode: bool = True) -> Any: ...


class Fit:
    """One run in its folder: `run` brings it to its end, from the newest checkpoint if there is one."""

    def __init__(
        self,
        model: Trainable,
        plan: Settings,
        batches: Batches,
        validation: Batches | None,
        *,
        folder: Path,
        fixed: dict[str, Any],
        progress: Progress,
        share: Share | None = None,
        world: World = ALONE,
    ) -> None:
        """model: with its first weights in it. fixed: what a resumed run must agree with, by name.

        Raises GemmaryError where the checkpoint in the folder is of a run that differs in one of these.
        """
        self.model, self.plan, self.batches, self.validation = model, plan, batches, validation
        self.steps = count_steps(plan, batches)
        self.trained = model.trained()
        self.optimizer = make_optimizer(plan.optimizer, self.trained, plan.weight_decay)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, plan.keep_checkpoints, progress.note)
        self.state = State()
        self.step_seconds, self.step_tokens, self.step_scored, self.step_pictures = 0.0, 0, 0, 0
        """Of the steps of this process."""
        self._folder, self._fixed, self._progress, self._share = folder, fixed, progress, share
        self._before = 0.0
        self._world = world
        with world.leader_first():
            start = self.checkpoints.newest()
        if start is not None:
            _agree(_defaults(plan, fixed) | start.fixed, fixed)
            restore(start.files, self.trained, self.optimizer)
            self.state, self._before = start.state, start.seconds
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between two processes of it."""
        return self._before + time.perf_counter() - self._began

    def run(self) -> None:
        """All steps that are left, then the best weights into the model.

        Ctrl-C and SIGTERM end it after the step under way with a checkpoint and a KeyboardInterrupt. Raises
        GemmaryError for a loss that is not finite, or a disk that refuses; the last checkpoint is intact.
        """
        state = self.state
        with self._metrics() as metrics, interrupts() as asked:
            if state.step == 0 and self.validation is not None:
                state.first_val_loss = self.evaluate(self.validation)
                metrics.write(self._line(val_loss=state.first_val_loss))
            while state.step < self.steps and not state.stopped:
                line, is_best = self._step()
                metrics.write(line)
                (asking,) = self._world.sum(asked())
                ends = state.step == self.steps or state.stopped or asking > 0
                if ends or is_best or state.step % self.plan.checkpoint_every == 0:
                    metrics.sync()
                    self._save()
                if asking:
                    raise KeyboardInterrupt
        if state.best_step is not None and state.best_step != state.step:
            put_weights(self.checkpoints.load(state.best_step).files, self.trained)

    def evaluate(self, batches: Batches) -> float:
        """The mean loss over all scored tokens of the first epoch of `batches`, nothing dropped out."""
        total, scored, count = 0.0, 0, batches.count(0)
        self.model.train(False)
        with torch.no_grad():
            for index in range(count):
                micro, counts = batches.share(0, index, self._world.rank, self._world.size)
                loss = float(self.model.loss(micro))
                total, scored = total + counts * loss, scored + counts * len(micro.targets)
                self._progress.evaluating(index + 1, count)
        self.model.train(True)
        total, scores = self._world.sum(total, scored)
        return total / scores

    def _step(self) -> tuple[Line, bool]:
        """One update, with the evaluation that is due after it; and whether that was the best so far."""
        state, plan, world = self.state, self.plan, self._world
        began = time.perf_counter()
        epoch, indices = next_step(plan, self.batches, state.epoch, state.index)
        shares = [self.batches.share(epoch, index, world.rank, world.size) for index in indices]
        scored, tokens, pictures = map(
            int,
            world.sum(
                sum(counts * len(micro.targets) for micro, counts in shares),
                sum(counts * len(micro.batch.tokens) for micro, counts in shares),
                sum(counts * len(micro.pixels) for micro, counts in shares if micro.pixels is not None),
            ),
        )
        total = 0.0
        for micro, counts in shares:
            loss = counts * self.model.loss(micro)
            (loss / scored).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        (total,) = world.sum(total)
        assert plan.learning_rate is not None
        rate = learning_rate(
            plan.schedule, state.step, peak=plan.learning_rate, steps=self.steps, warmup=plan.warmup_steps
        )
        norm = update(self.optimizer, rate, plan.clip)
        if not math.isfinite(total) or not math.isfinite(norm):
            raise self._diverged(total / scored, norm)
        taken = time.perf_counter() - began
        state.step, state.epoch, state.index = state.step + 1, epoch, indices.stop
        state.loss, state.tokens, state.scored = total / scored, state.tokens + tokens, state.scored + scored
        self.step_seconds, self.step_tokens = self.step_seconds + taken, self.step_tokens + tokens
        self.step_scored, self.step_pictures = self.step_scored + scored, self.step_pictures + pictures
        val_loss, is_best = self._evaluation()
        line = self._line(state.loss, val_loss, rate, norm, tokens / taken)
        self._progress.step(line, self._share(tokens, scored, pictures, taken) if self._share else None)
        return line, is_best

    def _evaluation(self) -> tuple[float | None, bool]:
        """The validation loss where it is due, and whether it is the best so far."""
        state = self.state
        if self.validation is None or (state.step % self.plan.evaluate_every and state.step != self.steps):
            return None, False
        loss = self.evaluate(self.validation)
        is_best = state.best_val_loss is None or loss < state.best_val_loss
        if is_best:
            state.best_val_loss, state.best_step, state.waited = loss, state.step, 0
        else:
            state.waited += 1
            state.stopped = self.plan.patience is not None and state.waited >= self.plan.patience
        return loss, is_best

    def _line(
        self,
        loss: float | None = None,
        val_loss: float | None = None,
        rate: float | None = None,
        norm: float | None = None,
        tokens_per_s: float | None = None,
    ) -> Line:
        state = self.state
        return Line(state.step, loss, val_loss, rate, norm, state.tokens, tokens_per_s, peak_rss_bytes(), self.seconds)

    def _metrics(self) -> AbstractContextManager[Metrics | Unwritten]:
        return closing(Metrics(self._folder, self.state.step or -1)) if self._world.leads else nullcontext(Unwritten())

    def _save(self) -> None:
        files = capture(self.trained, self.optimizer, self._world)
        with self._world.leader_first():
            if self._world.leads:
                self.checkpoints.save(Snapshot(self.state, self._fixed, files, self.seconds))

    def _diverged(self, loss: float, norm: float) -> GemmaryError:
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
        steps = self.checkpoints.steps()
        left = f"the checkpoint of step {steps[-1]} is intact" if steps else "there is no checkpoint yet"
        return GemmaryError(
            f"step {self.state.step + 1}: {what}, so nothing was changed by it: begin again with a lower "
            f"--learning-rate or more --warmup-steps ({left})"
        )


def _defaults(plan: Settings, fixed: dict[str, Any]) -> dict[str, Any]:
    """Of the settings among `fixed`: what a run did that was begun before there was such a setting. So the default of a
    new setting has to be what was done before it."""
    plain = asdict(Settings(model=plan.model, data=plan.data, out=plan.out, method=plan.method))
    return {name: list(v) if isinstance(v, tuple) else v for name, v in plain.items() if name in fixed}


def _agree(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises GemmaryError that names the first thing in which a run to be resumed differs."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise GemmaryError(
                f"this run was begun with {name} {before.get(name)}, not {now.get(name)}: resume it with the same, or "
                "give another --out"
            )
