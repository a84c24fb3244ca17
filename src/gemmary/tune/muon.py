"""Muon (Jordan 2024): steps of matrices whose directions are all of one size, and AdamW for everything else.

What Adam moves a matrix by has a few large singular values and many small ones. Here the momentum's are all made about
1, so that what is rare among the gradients is learnt as fast as what is common. PyTorch's own does this in bfloat16,
which most CPUs do not have and which is slow there; this one computes in the weight's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

MOMENTUM = 0.95
"""Nesterov's, as in its author's runs."""
RATE = 20.0
"""Its learning rate over AdamW's: 0.02 where AdamW has 0.001, as in its author's runs of small models."""
_ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Of the odd polynomial that brings singular values from (0, 1] near 1, steepest at 0: the author's."""


class Muon(torch.optim.AdamW):
    """AdamW, but for the parameter groups with `orthogonal`: these hold matrices, and are moved as said above."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        every = self.param_groups
        for group in every:
            if group.get("orthogonal"):
                self._turn(group)
        self.param_groups = [group for group in every if not group.get("orthogonal")]
        try:
            return super().step(closure)
        finally:
            self.param_groups = every

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As any optimizer: AdamW's own first mends what its old releases have pickled, and wants its state of all."""
        torch.optim.Optimizer.__setstate__(self, state)

    def _turn(self, group: dict[str, Any]) -> None:
        alike: dict[torch.Size, dict[torch.Tensor, torch.Tensor]] = {}
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike.setdefault(matrix.shape, {})[matrix] = self._ahead(matrix, matrix.grad)
        for shape, ahead in alike.items():
            directions = orthogonalized(torch.stack(list(ahead.values())))
            stretch = max(1.0, shape[0] / shape[1]) ** 0.5
            for matrix, direction in zip(ahead, directions, strict=True):
                matrix.mul_(1 - RATE * group["lr"] * group["weight_decay"])
                matrix.add_(direction, alpha=-RATE * group["lr"] * stretch)

    def _ahead(self, matrix: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The momentum of its gradients, a step ahead (Nesterov)."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: torch.Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return gradient.lerp(momentum, MOMENTUM)


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """About U V^T of each matrix's U S V^T: singular values between 0.7 and 1.2, by the iteration of Newton and Schulz.
    [matrices, rows, columns]"""
    tall = matrices.shape[1] > matrices.shape[2]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ROUNDS):
        square = x @ x.mT
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.mT if tall else x
