"""Ops of a block whose derivative is written by hand: less is kept for the backward pass, and less memory is passed
over, than by the derivatives of their parts. Each computes in float32 and rounds once (`ops/spec.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gemmary.engines.torch_sources import derived, has_source, keep, kept


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., D] / sqrt(mean(x²) + eps) * (1 + weight [D])."""
    result, inverse = RMSNormFunction.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return derived(result, _normed, x, inverse, weight)


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """(x [..., D] - mean) / sqrt(variance + eps) * scale [D] + shift [D]."""

    def normed(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional.layer_norm(x.float(), x.shape[-1:], scale.float(), shift.float(), eps).to(x.dtype)

    return derived(normed(x, scale, shift), normed, x, scale, shift)


def rope(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """x [T, N, H] rotated by angles whose cos and sin are [T, 1, H/2]."""
    result: Tensor = RopeFunction.apply(x, *angles)  # type: ignore[no-untyped-call]
    return result


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    """gelu(gate) * up [T, F], in the tanh form."""
    result: Tensor = GegluFunction.apply(gate, up)  # type: ignore[no-untyped-call]
    return derived(result, _gated, gate, up)


def gelu(x: Tensor) -> Tensor:
    """In the tanh form."""
    return derived(_gelu(x), _gelu, x)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y. The sum of what is kept and what can be made again can be made again; one of sums is kept, so that none
    takes more than one layer to make."""
    result = x + y
    return result if has_source(x) or not has_source(y) else derived(result, _onto, y, x)


class RMSNormFunction(torch.autograd.Function):
    """x [..., D] / sqrt(mean(x²) + eps) * (1 + weight [D]), and 1 / sqrt(...) [..., 1]. Keeps x and that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        x32 = x.float()
        inverse = torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
        keep(ctx, x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        ctx.set_materialize_grads(False)
        return _scaled(x32, inverse, weight).to(x.dtype), inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        grad, _ = gradients
        if grad is None:  # what follows passes none on
            return None, None, None
        x, weight, inverse = kept(ctx)
        unit = x.float() * inverse
        x_grad = weight_grad = None
        if ctx.needs_input_grad[1]:
            weight_grad = (grad.float() * unit).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            scaled = grad.float() * (1 + weight.float())
            along = (scaled * unit).mean(-1, keepdim=True)
            x_grad = scaled.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype)
        return x_grad, weight_grad, None


def _normed(x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    return _scaled(x.float(), inverse, weight).to(x.dtype)


def _scaled(x32: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    return (x32 * inverse).mul_(1 + weight.float())


def _onto(y: Tensor, x: Tensor) -> Tensor:
    return x + y


class RopeFunction(torch.autograd.Function):
    """Rotates the pairs (x[i], x[i + H/2]) of x [T, N, H] by angles whose cos and sin are [T, 1, H/2]; backward turns
    back. Keeps the angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = gradients
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, sin, -1), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    first, second = x.float().chunk(2, dim=-1)
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    left, right = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=left).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=right).addcmul_(first, sin, value=sign)
    return out.to(x.dtype)


class GegluFunction(torch.autograd.Function):
    """gelu(gate) * up, in the tanh form. Keeps what it is given; gelu(gate) is computed again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (grad,) = gradients
        gate32, grad32 = gate.float(), grad.float()
        up_grad = functional.gelu(gate32, approximate="tanh").mul_(grad32)
        gate_grad = grad32 * up
        torch.ops.aten.gelu_backward.grad_input(gate_grad, gate32, approximate="tanh", grad_input=gate_grad)
        return gate_grad.to(gate.dtype), up_grad.to(up.dtype)


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    return functional.gelu(gate.float(), approximate="tanh").mul_(up).to(gate.dtype)


def _gelu(x: Tensor) -> Tensor:
    return functional.gelu(x.float(), approximate="tanh").to(x.dtype)
