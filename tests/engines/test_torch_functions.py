"""The derivatives written by hand are those of their formulas, in float32 and bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.parity.peers import torch

from gemmary.engines import torch_functions as functions  # isort: skip (needs torch, which peers skips without)
from gemmary.engines.torch_sources import Source, has_source  # isort: skip

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
        lambda x, weight: functions.rms_norm(x, weight, 1e-3),
        ((5, 3, 13), (13,)),
        (True, True),
    ),
    "rms_norm-frozen": (
        rms_norm,
        lambda x, weight: functions.rms_norm(x, weight, 1e-3),
        ((7, 13), (13,)),
        (True, False),
    ),
    "rope": (
        rope,
        lambda x, angle: functions.RopeFunction.apply(x, angle.float().cos(), angle.float().sin()),
        ((7, 3, 10), (7, 1, 5)),
        (True, False),
    ),
    "geglu": (geglu, functions.geglu, ((7, 13), (7, 13)), (True, True)),
    "norm of a sum": (
        lambda x, y, weight: rms_norm(x + rms_norm(y, weight), weight),
        lambda x, y, weight: functions.rms_norm(functions.add(x, functions.rms_norm(y, weight, 1e-3)), weight, 1e-3),
        ((7, 13), (7, 13), (13,)),
        (True, True, True),
    ),
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_made_again_has_the_same_bits(dtype: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = (torch.randn(7, 13, generator=generator).to(dtype).requires_grad_() for _ in range(2))
    weight, shift = (torch.randn(13, generator=generator).to(dtype) for _ in range(2))
    normed = functions.rms_norm(y, weight, 1e-3)
    once = functions.add(x, normed)
    made = [normed, once, functions.rms_norm(once, weight, 1e-3), functions.layer_norm(x, weight, shift, 1e-3)]
    for tensor in [*made, functions.geglu(x, y), functions.gelu(x)]:
        source = Source.of(tensor)
        assert all(part.grad_fn is None and part is not tensor for part in source.parts)
        assert torch.equal(source.make(*source.parts), tensor.detach())
    twice = functions.add(once, normed)
    assert not has_source(twice)
    with torch.no_grad():
        assert not has_source(functions.geglu(x, y))


def assert_close(actual: Any, expected: Any, bound: float) -> None:
    assert (actual.double() - expected).abs().max() <= bound * expected.abs().max()


def test_what_was_changed_in_place_is_not_made_again() -> None:
    """A user's hook may scale what a norm gave: what is behind it has the gradient of the scaled one."""

    def loss(x: Any, weight: Any, change: Any) -> Any:
        return functions.rms_norm(change(functions.rms_norm(x, weight, 1e-6)), weight, 1e-6).square().sum()

    grads = []
    for change in (lambda t: t.mul_(2).add_(1), lambda t: t * 2 + 1):
        x, weight = torch.arange(1.0, 9.0).view(2, 4).requires_grad_(), torch.full((4,), 0.5)
        loss(x, weight, change).backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)
