"""The derivatives written by hand are those of their formulas, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.parity.peers import torch

from gemmary.engines import torch_functions as functions  # isort: skip (needs torch, which peers skips without)

Formula = Callable[..., Any]


def rms_norm(x: Any, weight: Any) -> Any:
    return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * (1 + weight)


def rope(x: Any, angle: Any) -> Any:
    first, second = x.chunk(2, -1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], -1)


def geglu(gate: Any, up: Any) -> Any:
    return gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3))) * up


CASES: dict[str, tuple[Formula, Formula, tuple[tuple[int, ...], ...], tuple[bool, ...]]] = {
    "rms_norm": (
        rms_norm,
        lambda x, weight: functions.RMSNormFunction.apply(x, weight, 1e-3),
        ((5, 3, 13), (13,)),
        (True, True),
    ),
    "rms_norm-frozen": (
        rms_norm,
        lambda x, weight: functions.RMSNormFunction.apply(x, weight, 1e-3),
        ((7, 13), (13,)),
        (True, False),
    ),
    "rope": (
        rope,
        lambda x, angle: functions.RopeFunction.apply(x, angle.float().cos(), angle.float().sin()),
        ((7, 3, 10), (7, 1, 5)),
        (True, False),
    ),
    "geglu": (geglu, functions.GegluFunction.apply, ((7, 13), (7, 13)), (True, True)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1.5e-2)], ids=str)
def test_value_and_gradients(name: str, dtype: Any, bound: float) -> None:
    formula, function, shapes, asks = CASES[name]
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    for each, ask in zip(inputs, asks, strict=True):
        each.requires_grad_(ask)
    exact = [each.detach().double().requires_grad_(ask) for each, ask in zip(inputs, asks, strict=True)]
    out, expected = function(*inputs), formula(*exact)
    grad = torch.randn(out.shape, generator=generator).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    assert out.dtype == dtype
    assert_close(out.detach(), expected.detach(), bound)
    for each, wanted, ask in zip(inputs, exact, asks, strict=True):
        assert (each.grad is not None) == ask
        if ask:
            assert each.grad.dtype == dtype
            assert_close(each.grad, wanted.grad, bound)


def assert_close(actual: Any, expected: Any, bound: float) -> None:
    assert (actual.double() - expected).abs().max() <= bound * expected.abs().max()
