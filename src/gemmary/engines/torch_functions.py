"""Elementwise and row-wise ops whose backward passes need their inputs only, and go over memory less than autograd's.

Axes: T tokens, F ffn, D width, N heads, H head_dim.
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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (x[i], x[i + H/2]) of x [T, N, H] by angles whose cos and sin are [T, 1, H/2], float32 inside."""
    result: Tensor = _Rotation.apply(x, cos, sin)  # type: ignore[no-untyped-call]
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


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(gradients[0], cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    """By the angle, or with the sign -1 back by it."""
    first, second = x.float().chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sign)
    return out.to(x.dtype)
