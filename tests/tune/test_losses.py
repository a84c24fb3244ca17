"""The chunked loss is PyTorch's cross-entropy in float64: value and gradients, at sizes on both sides of a tile."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.peers import torch

from gemmary.tune import losses  # isort: skip (needs torch, which peers skips without)
from gemmary.tune.losses import DenseTable, cross_entropy  # isort: skip


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "TILE", 16)
    monkeypatch.setattr(losses, "SCORE_BYTES", 7 * 4 * 50)


def case(rows: int, vocab: int, spread: float = 3.0) -> tuple[Any, Any, Any]:
    generator = torch.Generator().manual_seed(rows * 1000 + vocab)
    hidden = torch.randn(rows, 11, generator=generator, dtype=torch.float64)
    table = torch.randn(vocab, 11, generator=generator, dtype=torch.float64) * spread / 11**0.5
    return hidden.float(), table.float(), torch.randint(vocab, (rows,), generator=generator)


def exact(hidden: Any, table: Any, targets: Any, cap: float | None, smoothing: float = 0) -> tuple[Any, Any, Any]:
    """The loss and both gradients, float64. PyTorch spreads what it smooths over the target, too."""
    spread = smoothing * len(table) / (len(table) - 1)
    h, w = hidden.double().requires_grad_(), table.double().requires_grad_()
    scores = h @ w.t()
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    loss = torch.nn.functional.cross_entropy(scores, targets, reduction="sum", label_smoothing=spread)
    loss.backward()
    return loss.detach(), h.grad, w.grad


def error(actual: Any, expected: Any) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("cap", [None, 2.5])
@pytest.mark.parametrize("trains_table", [False, True])
@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("vocab", [3, 16, 50])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_against_float64(rows: int, vocab: int, trains_table: bool, cap: float | None, smoothing: float) -> None:
    hidden, table, targets = case(rows, vocab)
    h, w = hidden.requires_grad_(), torch.nn.Parameter(table)
    loss = cross_entropy(h, w if trains_table else DenseTable(w), targets, cap, smoothing)
    (0.25 * loss).backward()
    expected, grad_h, grad_w = exact(hidden.detach(), table, targets, cap, smoothing)
    assert loss.dtype == torch.float32
    assert error(loss.detach(), expected) < 1e-6
    assert error(4 * h.grad, grad_h) < 2e-6
    if trains_table:
        assert error(4 * w.grad, grad_w) < 2e-6
    else:
        assert w.grad is None


def test_scores_far_apart() -> None:
    """Far beyond what exp can hold, rising and falling from tile to tile: the running maximum moves."""
    hidden, table, targets = case(20, 50, spread=300.0)
    h = hidden.requires_grad_()
    loss = cross_entropy(h, DenseTable(table), targets, None)
    loss.backward()
    expected, grad_h, _ = exact(hidden.detach(), table, targets, None)
    assert error(loss.detach(), expected) < 1e-6
    assert error(h.grad, grad_h) < 1e-4  # scores near 1000 have errors of 1e-4 in float32


def test_bfloat16_is_widened() -> None:
    """Scores of bfloat16 rows and tables are float32, as `ops/spec.py` has them."""
    hidden, table, targets = case(9, 50)
    h, w = hidden.bfloat16().requires_grad_(), table.bfloat16()
    loss = cross_entropy(h, DenseTable(w), targets, None)
    loss.backward()
    expected, grad_h, _ = exact(h.detach(), w, targets, None)
    assert h.grad.dtype == torch.bfloat16
    assert error(loss.detach(), expected) < 1e-6
    assert error(h.grad, grad_h) < 4e-3


def test_measuring_keeps_nothing() -> None:
    hidden, table, targets = case(9, 50)
    weight = torch.nn.Parameter(table)
    with torch.no_grad():
        losses_ = [cross_entropy(hidden, table, targets, 2.5) for table in (weight, DenseTable(weight))]
    assert error(losses_[0], losses_[1].double()) < 1e-6
    assert not any(loss.requires_grad for loss in losses_)


def test_no_row_is_no_loss() -> None:
    hidden, table, _ = case(1, 50)
    none = torch.zeros(0, dtype=torch.int64)
    for each in (torch.nn.Parameter(table), DenseTable(table)):
        h = hidden[:0].clone().requires_grad_()
        loss = cross_entropy(h, each, none, None)
        loss.backward()
        assert float(loss.detach()) == 0
        assert h.grad.shape == (0, 11)
