"""What moves the weights: how large each step is, and the optimizers: PyTorch's, and Muon (`tune/muon.py`)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from gemmary.errors import GemmaryError
from gemmary.tune.muon import Muon
from gemmary.tune.parallel import whole

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "adafactor", "muon")
_OF_A_LAYER = re.compile(r"\.layers\.\d+\.")


def learning_rate(schedule: str, step: int, *, peak: float, steps: int, warmup: int) -> float:
    """The learning rate of update number `step` (from 0) of `steps`.

    It rises in a line to `peak` over the first `warmup` updates, then stays (constant), or falls towards 0 after the
    last update, in a line or along half a cosine.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * _SHAPES[schedule](done)


_SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def make_optimizer(name: str, trained: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """AdamW, which keeps two numbers for each weight; Adafactor, which keeps a row and a column for each matrix; or
    Muon, which keeps one for the weights of the layers' matrices, and two for each of the others.

    Norms (the parameters of one axis) do not decay. Betas and eps are PyTorch's defaults (0.9, 0.999, 1e-8). The
    learning rate is set before each step; Adafactor's is relative to the root mean square of the weight that it moves.
    Raises GemmaryError for Muon over weights that processes share: it needs whole matrices.
    """
    if name == "muon":
        return _muon(trained, weight_decay)
    groups = []
    for alike in _alike(trained.values()):
        groups += [
            {"params": [p for p in alike if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in alike if p.ndim <= 1], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, fused=True)
    if name == "adafactor":
        return torch.optim.Adafactor(groups, lr=0.0)
    raise GemmaryError(f"no optimizer is called {name!r}: choose {', '.join(OPTIMIZERS[:-1])} or {OPTIMIZERS[-1]}")


def _muon(trained: Mapping[str, nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    if any(isinstance(parameter, DTensor) for parameter in trained.values()):
        raise GemmaryError("optimizer muon needs whole matrices: choose adamw where processes share the weights")
    inner = [p for name, p in trained.items() if p.ndim > 1 and _OF_A_LAYER.search(name)]
    orthogonal = {id(p) for p in inner}
    groups: list[dict[str, Any]] = [
        {"params": inner, "weight_decay": weight_decay, "orthogonal": True},
        {
            "params": [p for p in trained.values() if p.ndim > 1 and id(p) not in orthogonal],
            "weight_decay": weight_decay,
        },
        {"params": [p for p in trained.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return Muon([group for group in groups if group["params"]], lr=0.0, fused=True)


def update(optimizer: torch.optim.Optimizer, rate: float, clip: float) -> float:
    """One step along the gradients, scaled down together where their norm is above `clip` (0: never). Their norm.

    Nothing moves where the norm is not finite. The gradients are freed.
    """
    moved = [p for group in optimizer.param_groups for p in group["params"]]
    value = _clip(moved, clip if clip > 0 else math.inf)
    if math.isfinite(value):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return value


def _alike(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Divided over the same processes: PyTorch's fused operations take no others together."""
    kinds: dict[object, list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(kinds.values())


def _clip(parameters: list[nn.Parameter], most: float) -> float:
    """Scales gradients down together so that their norm is at most `most`, and returns what it was."""
    kinds = _alike(p for p in parameters if p.grad is not None)
    if len(kinds) <= 1:
        return float(whole(nn.utils.clip_grad_norm_(parameters, most)))
    gradients = [[p.grad for p in alike if p.grad is not None] for alike in kinds]
    norm = torch.stack([whole(nn.utils.get_total_norm(alike)) for alike in gradients]).norm()
    for alike in kinds:
        nn.utils.clip_grads_with_norm_(alike, most, norm)
    return float(norm)
