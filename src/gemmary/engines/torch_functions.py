"""Elementwise and row-wise ops whose backward passes need their inputs only, and go over memory less than autograd's.

Axes: T tokens, F ffn, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up [T, F], the tanh form, float32 inside."""
    result: Tensor = _GeGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return result


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * (1 + weight) over the last axis, float32 inside; weight [D]."""
    result: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return result


class _GeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.gelu(gate.float(), approximate="tanh").mul_(up).to(gate.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate32, grad = gate.float(), gradients[0].float()
        up_grad = functional.gelu(gate32, approximate="tanh").mul_(grad)
        gate_grad = torch.ops.aten.gelu_backward(grad * up, gate32, approximate="tanh")
        return gate_grad.to(gate.dtype), up_grad.to(up.dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, inverse)
        return (x32 * inverse).mul_(1 + weight.float()).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        grad, scaled = gradients[0].float(), x.float() * inverse
        weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad * scaled).flatten(0, -2).sum(dim=0).to(weight.dtype)
        slope = grad * (1 + weight.float())
        along = (slope * scaled).mean(-1, keepdim=True)
        return slope.sub_(scaled.mul_(along)).mul_(inverse).to(x.dtype), weight_grad, None
