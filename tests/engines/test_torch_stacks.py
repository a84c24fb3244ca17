"""Sequences in stacks under autograd against the plain formula, whatever their lengths and whatever they see."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.model.masks import visible

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gemmary.engines.torch_ops import StepCache, TorchOps, Visible  # noqa: E402 (needs torch)
from gemmary.engines.torch_stacks import stacked  # noqa: E402
from tests.engines.test_torch_attention import plain  # noqa: E402

CPU = torch.device("cpu")


def step(lengths: tuple[int, ...], prefix: int, window: int | None) -> tuple[np.ndarray, list[slice]]:
    ends = np.cumsum(lengths)
    rows = [slice(int(end) - n, int(end)) for end, n in zip(ends, lengths, strict=True)]
    seen = [visible(i, min(prefix, n), window, False) for n in lengths for i in range(n)]
    return np.array(seen, np.int32), rows


@pytest.mark.parametrize("lengths", [(23, 1, 40, 9), (6, 6, 6), (10, 9, 10, 30, 31), (9, 9, 4, 4)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize(("window", "prefix"), [(None, 0), (5, 0), (None, 7), (None, 99)])
def test_gradients(lengths: tuple[int, ...], heads: int, kv_heads: int, window: int | None, prefix: int) -> None:
    spans, rows = step(lengths, prefix, window)
    rng = np.random.default_rng(0)
    shapes = [(sum(lengths), count, 8) for count in (heads, kv_heads, kv_heads)]
    inputs = [torch.from_numpy(rng.standard_normal(shape)) for shape in shapes]
    upstream = torch.from_numpy(rng.standard_normal((sum(lengths), heads * 8)))

    exact = [each.clone().requires_grad_() for each in inputs]
    wanted = plain(*exact, torch.from_numpy(spans), rows, 0.4, None)
    wanted.backward(upstream)
    ours = [each.float().requires_grad_() for each in inputs]
    seen = Visible.of(spans, rows, CPU)
    assert seen.stacks is not None
    found, _ = TorchOps(torch.float32).attention(*ours, StepCache([None] * len(rows), rows), 0, seen, 0.4, None)
    found.backward(upstream.float())
    assert float((found - wanted).detach().abs().max()) < 1e-6 * float(wanted.detach().abs().max())
    for mine, exactly in zip(ours, exact, strict=True):
        assert float((mine.grad - exactly.grad).abs().max()) < 2e-6 * float(exactly.grad.abs().max())


def test_pictures_lie_as_they_come_and_need_no_mask() -> None:
    made = stacked(*step((4, 4, 4), 4, None), CPU)
    assert made is not None
    assert made.places is None
    assert [stack.rows.tolist() for stack in made.stacks] == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]]
    assert made.stacks[0].seen is None


def test_sequences_of_about_a_length_share_a_stack() -> None:
    made = stacked(*step((10, 9, 30, 31, 2), 0, None), CPU)
    assert made is not None
    assert [tuple(stack.rows.shape) for stack in made.stacks] == [(2, 31), (2, 10), (1, 2)]
    assert stacked(*step((3,), 0, None), CPU) is None
    assert stacked(*step((10, 40), 0, None), CPU, pairs=16 * 1500) is None  # too long to be worth it
