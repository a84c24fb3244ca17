"""Cross-entropy over Gemma's vocabulary without its scores: [R, V] never exists, and each score is computed once.

The gradient of sum(-log p) with respect to a hidden row h is sum_v p_v W_v - W_y: attention of h to the table W, with
W as both keys and values. So the forward pass goes over the vocabulary in tiles as fused attention does, with a running
maximum and a running sum, and comes out with the loss and its gradient; the backward pass only scales.

Axes: R rows that are scored, D width, V vocabulary, v rows of the table at once.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

TILE = 2048
"""Rows and tokens of the vocabulary at once: 16 MiB of scores, where the matrix product is at full speed and the passes
over its result are not bound by memory."""
SCORE_BYTES = 1 << 29
"""Scores held at once where the table is trained too: its gradient needs the sum over the vocabulary first."""


class Table(Protocol):
    """The tied table [V, D], read a few rows at a time."""

    shape: Any

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) in float32 [v, D]; what it returns may be overwritten by the next call."""
        ...

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of these tokens in float32 [R, D]."""
        ...


class DenseTable:
    """A table in float32 or bfloat16."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.detach()
        self.shape = weight.shape

    def tile(self, start: int, stop: int) -> Tensor:
        return self.weight[start:stop].float()

    def rows(self, tokens: Tensor) -> Tensor:
        return self.weight[tokens].float()


def cross_entropy(
    hidden: Tensor,
    table: Table | torch.nn.Parameter,
    targets: Tensor,
    softcap: float | None,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum over R rows of -log p(target): a float32 scalar.

    hidden: [R, D], normalised. table: frozen, or the float32 parameter [V, D] that is trained too. targets: [R] ids.
    softcap: c of c * tanh(score / c), or None. Scores are float32 (products of values widened to it).
    smoothing: s, to learn a target with probability 1 - s and every other token with s / (V - 1), as big_vision has it.
    """
    function = _Trained if isinstance(table, torch.nn.Parameter) else _Frozen
    loss: Tensor = function.apply(hidden, table, targets, softcap, smoothing)  # type: ignore[no-untyped-call]
    return loss


class _Frozen(torch.autograd.Function):
    """The table stands still: one pass over it, for all rows."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Table, targets: Tensor, cap: float | None, smoothing: float) -> Tensor:
        h_RD = hidden.float()
        V = table.shape[0]
        other = smoothing / (V - 1)
        flat_RD, total = torch.zeros_like(h_RD) if other else None, h_RD.new_zeros(())
        """Sums over the vocabulary, of scores' gradients and of scores, which smoothing takes its share of."""
        peak_R = h_RD.new_full((len(h_RD), 1), -torch.inf)
        sum_R = torch.zeros_like(peak_R)
        mean_RD = torch.zeros_like(h_RD) if ctx.needs_input_grad[0] else None
        scores = h_RD.new_empty(min(TILE, len(h_RD)) * min(TILE, V))
        for start in range(0, V, TILE):
            tile_vD = table.tile(start, min(start + TILE, V))
            for begin in range(0, len(h_RD), TILE):
                part = slice(begin, begin + TILE)
                rows = h_RD[part]
                z = scores[: len(rows) * len(tile_vD)].view(len(rows), len(tile_vD))
                torch.mm(rows, tile_vD.t(), out=z)
                slope = _bend(z, cap)
                if flat_RD is not None:
                    total += z.sum()
                    flat_RD[part] += tile_vD.sum(0) if slope is None else slope @ tile_vD
                peak = torch.maximum(peak_R[part], z.amax(dim=1, keepdim=True))
                shrink = (peak_R[part] - peak).exp_()
                peak_R[part] = peak
                z.sub_(peak).exp_()
                sum_R[part] = sum_R[part] * shrink + z.sum(dim=1, keepdim=True)
                if mean_RD is not None:
                    weighted = z if slope is None else z.mul_(slope)
                    mean_RD[part].mul_(shrink).addmm_(weighted, tile_vD)
        wanted_RD = table.rows(targets)
        wanted_R = (h_RD * wanted_RD).sum(dim=1, keepdim=True)
        slope = _bend(wanted_R, cap)
        if mean_RD is not None:
            grad_RD = mean_RD.div_(sum_R)
            grad_RD.sub_(wanted_RD if slope is None else wanted_RD.mul_(slope), alpha=1 - smoothing - other)
            ctx.save_for_backward(grad_RD if flat_RD is None else grad_RD.sub_(flat_RD, alpha=other))
            ctx.dtype = hidden.dtype
        loss: Tensor = (sum_R.log_() + peak_R - (1 - smoothing - other) * wanted_R).sum() - other * total
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (grad_RD,) = ctx.saved_tensors
        return (grad_RD * grad).to(ctx.dtype), None, None, None, None


class _Trained(torch.autograd.Function):
    """The table learns too: its gradient takes whole rows of scores, a bounded number at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, table: Tensor, targets: Tensor, cap: float | None, smoothing: float
    ) -> Tensor:
        other = smoothing / (len(table) - 1)
        h_RD, loss = hidden.float(), hidden.new_zeros((), dtype=torch.float32)
        grads = ctx.needs_input_grad[1]
        grad_RD, grad_VD = (torch.empty_like(h_RD), torch.zeros_like(table)) if grads else (None, None)
        step = max(1, SCORE_BYTES // (4 * len(table)))
        for begin in range(0, len(h_RD), step):
            part = slice(begin, begin + step)
            z_RV = h_RD[part] @ table.t()
            at = (torch.arange(len(z_RV), device=z_RV.device), targets[part])
            slope = _bend(z_RV, cap)
            loss += torch.logsumexp(z_RV, dim=1).sum() - (1 - smoothing - other) * z_RV[at].sum()
            if other:
                loss -= other * z_RV.sum()
            if grad_RD is not None and grad_VD is not None:
                torch.softmax(z_RV, dim=1, out=z_RV)
                if other:
                    z_RV -= other
                z_RV[at] -= 1 - smoothing - other
                if slope is not None:
                    z_RV *= slope
                torch.mm(z_RV, table, out=grad_RD[part])
                grad_VD.addmm_(z_RV.t(), h_RD[part])
        if grads:
            ctx.save_for_backward(grad_RD, grad_VD)
            ctx.dtype = hidden.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        grad_RD, grad_VD = ctx.saved_tensors
        return (grad_RD * grad).to(ctx.dtype), grad_VD.mul_(grad), None, None, None


def _bend(z: Tensor, cap: float | None) -> Tensor | None:
    """Caps the scores in place; the slope of the cap at each, or None where there is no cap."""
    if cap is None:
        return None
    z.div_(cap).tanh_()
    slope = 1 - z.square()
    z.mul_(cap)
    return slope
