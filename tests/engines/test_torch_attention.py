"""Attention in tiles under autograd against the plain formula: outputs, and gradients of queries, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gemmary.model.masks import visible

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gemmary.engines import torch_ops  # noqa: E402 (needs torch)
from gemmary.engines.torch_ops import StepCache, TorchOps, Visible  # noqa: E402

LENGTHS = (23, 1, 40, 9)


def plain(q: Any, k: Any, v: Any, spans: Any, rows: Sequence[slice], scale: float, softcap: float | None) -> Any:
    """One softmax over all keys of a sequence, in float64."""
    outs = []
    group = q.shape[1] // k.shape[1]
    for part in rows:
        scores = torch.einsum("tnh,snh->nts", q[part], k[part].repeat_interleave(group, dim=1)) * scale
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        key = torch.arange(part.stop - part.start)
        seen = (key >= spans[part, :1]) & (key <= spans[part, 1:])
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        outs.append(torch.einsum("nts,snh->tnh", weights, v[part].repeat_interleave(group, dim=1)).flatten(1))
    return torch.cat(outs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 1), (6, 2), (3, 3)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize(("window", "prefix"), [(None, 0), (5, 0), (None, 7), (5, 7)])
def test_gradients(
    heads: int, kv_heads: int, softcap: float | None, window: int | None, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_ops, "QUERY_TILE", 8)
    monkeypatch.setattr(torch_ops, "stacked", lambda *step: None)
    ends = np.cumsum(LENGTHS)
    rows = [slice(int(end) - n, int(end)) for end, n in zip(ends, LENGTHS, strict=True)]
    seen = [visible(i, min(prefix, n), window, False) for n in LENGTHS for i in range(n)]
    spans = np.array(seen, np.int32)
    rng = np.random.default_rng(0)
    shapes = [(sum(LENGTHS), count, 10) for count in (heads, kv_heads, kv_heads)]
    inputs = [torch.from_numpy(rng.standard_normal(shape)) for shape in shapes]
    upstream = torch.from_numpy(rng.standard_normal((sum(LENGTHS), heads * 10)))

    exact = [each.clone().requires_grad_() for each in inputs]
    wanted = plain(*exact, torch.from_numpy(spans), rows, 0.4, softcap)
    wanted.backward(upstream)
    ours = [each.float().requires_grad_() for each in inputs]
    tiles = Visible.of(spans, rows, torch.device("cpu"))
    cache = StepCache([None] * len(rows), rows)
    found, _ = TorchOps(torch.float32).attention(*ours, cache, 0, tiles, 0.4, softcap)
    found.backward(upstream.float())
    assert float((found - wanted).detach().abs().max()) < 1e-6 * float(wanted.detach().abs().max())
    for mine, exactly in zip(ours, exact, strict=True):
        assert float((mine.grad - exactly.grad).abs().max()) < 2e-6 * float(exactly.grad.abs().max())


def test_nothing_of_the_scores_is_kept() -> None:
    """Between the passes there are the inputs and the output, whatever the number of keys."""
    kept: list[int] = []

    def keep(tensor: Any) -> Any:
        kept.append(tensor.numel())
        return tensor

    rows = [slice(0, 300)]
    spans = np.array([visible(i, 0, None, False) for i in range(300)], np.int32)
    q, k, v = (torch.randn(300, count, 2, requires_grad=True) for count in (4, 1, 1))
    tiles = Visible.of(spans, rows, torch.device("cpu"))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        TorchOps(torch.float32).attention(q, k, v, StepCache([None], rows), 0, tiles, 1.0, 2.0)
    assert sorted(kept) == [600, 600, 2400, 2400]
