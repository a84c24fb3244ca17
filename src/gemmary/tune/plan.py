"""How long a run is: steps, epochs, and where in the data each step begins."""

from __future__ import annotations

import math

from gemmary.tune.packing import Batches
from gemmary.tune.settings import Settings


def count_steps(plan: Settings, batches: Batches) -> int:
    """Updates of the whole run: until `plan.steps` or `plan.epochs` (the last may be a part) are over."""
    if plan.epochs is None:
        assert plan.steps is not None
        return plan.steps
    steps, epoch = 0, 0
    while epoch < plan.epochs and (plan.steps is None or steps < plan.steps):
        whole = math.ceil(batches.count(epoch) / plan.accumulation)
        steps += math.ceil(min(plan.epochs - epoch, 1.0) * whole)
        epoch += 1
    return steps if plan.steps is None else min(steps, plan.steps)


def next_step(plan: Settings, batches: Batches, epoch: int, index: int) -> tuple[int, range]:
    """The epoch and the micro-batches of the step that follows `index` micro-batches of `epoch`.

    The last step of an epoch takes what is left of it.
    """
    count = batches.count(epoch)
    if index >= count:
        epoch, index, count = epoch + 1, 0, batches.count(epoch + 1)
    return epoch, range(index, min(index + plan.accumulation, count))
