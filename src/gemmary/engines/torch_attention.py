"""Attention in PyTorch, a tile of queries at a time, forward and backward: between the two nothing of the scores is
kept, as they cost less to compute again than to read back.

PyTorch's own fused attention knows no softcap, no window on a CPU, and no key heads shared by several query heads.

Axes: T queries, t those of a tile, S keys, s those that a tile sees, N heads, K kv heads, G = N / K, H head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Tile:
    """Queries that attend together, and the keys that any of them sees."""

    queries: slice
    keys: slice
    unseen: Tensor | None
    """[t, s], True where a query does not see a key; None if each sees all of them."""

    def moved(self, by: int) -> Tile:
        """The same tile of a sequence that begins `by` rows later."""
        queries, keys = (slice(part.start + by, part.stop + by) for part in (self.queries, self.keys))
        return replace(self, queries=queries, keys=keys)


def attend(q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float, softcap: float | None) -> Tensor:
    """q [T, N, H] over the keys k and values v [S, K, H] -> [T, N*H] in q's dtype, float32 inside.

    Every query is in one tile and sees at least one key. Gradients flow to q, k and v.
    """
    result: Tensor = _Attention.apply(q, k, v, tiles, scale, softcap)  # type: ignore[no-untyped-call]
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], scale: float, softcap: float | None
    ) -> Tensor:
        q_KTGH, k_KSH, v_KSH = _by_key_head(q, k, v)
        out_TKGH = torch.empty_like(q).view(q.shape[0], k.shape[1], -1, q.shape[2])
        for tile in tiles:
            weights_Kqs, _ = _weights(_rows(q_KTGH, tile), k_KSH, tile, scale, softcap)
            found_KqH = torch.bmm(weights_Kqs, v_KSH[:, tile.keys])
            out_TKGH[tile.queries] = found_KqH.view(k.shape[1], -1, *out_TKGH.shape[2:]).transpose(0, 1)
        out = out_TKGH.view(q.shape[0], -1)
        ctx.save_for_backward(q, k, v, out)
        ctx.settings = tiles, scale, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, out = ctx.saved_tensors
        tiles, scale, softcap = ctx.settings
        (grad,) = gradients
        q_KTGH, k_KSH, v_KSH = _by_key_head(q, k, v)
        grad_KTGH, out_KTGH = (_grouped(x.view(q.shape), k.shape[1]) for x in (grad, out))
        mean_KTG = (grad_KTGH * out_KTGH).sum(-1)
        q_grad, k_grad, v_grad = (
            torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q_KTGH, k_KSH, v_KSH)
        )
        grad_KTGH = grad_KTGH.contiguous()
        for tile in tiles:
            q_KqH, grad_KqH = _rows(q_KTGH, tile), _rows(grad_KTGH, tile)
            weights_Kqs, slope_Kqs = _weights(q_KqH, k_KSH, tile, scale, softcap)
            v_grad[:, tile.keys].baddbmm_(weights_Kqs.mT, grad_KqH)
            scores_grad = torch.bmm(grad_KqH, v_KSH[:, tile.keys].mT)
            scores_grad.sub_(mean_KTG[:, tile.queries].flatten(1)[..., None]).mul_(weights_Kqs)
            if slope_Kqs is not None:
                scores_grad.mul_(slope_Kqs)
            _rows(q_grad, tile).baddbmm_(scores_grad, k_KSH[:, tile.keys], beta=0, alpha=scale)
            k_grad[:, tile.keys].baddbmm_(scores_grad.mT, q_KqH, alpha=scale)
        by_row = q_grad.transpose(0, 1).reshape(q.shape)
        return (
            by_row.to(q.dtype),
            k_grad.transpose(0, 1).to(k.dtype),
            v_grad.transpose(0, 1).to(v.dtype),
            None,
            None,
            None,
        )


def _by_key_head(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In float32, key head first: q [K, T, G, H], so that the queries of a tile lie together; k and v [K, S, H]."""
    q_KTGH = _grouped(q, k.shape[1]).contiguous()
    return q_KTGH, k.float().transpose(0, 1), v.float().transpose(0, 1)


def _grouped(x_TNH: Tensor, key_heads: int) -> Tensor:
    """In float32 [K, T, G, H]."""
    return x_TNH.float().view(x_TNH.shape[0], key_heads, -1, x_TNH.shape[2]).transpose(0, 1)


def _rows(x_KTGH: Tensor, tile: Tile) -> Tensor:
    """The rows of a tile's queries, head by head of each: a view [K, t*G, H]."""
    return x_KTGH[:, tile.queries].flatten(1, 2)


def _weights(
    q_KqH: Tensor, k_KSH: Tensor, tile: Tile, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """What a tile's queries give to the keys that it sees [K, t*G, s], and the slope of the softcap at each score."""
    k_KHs = k_KSH[:, tile.keys].mT
    scores_Kqs = torch.baddbmm(q_KqH.new_empty(1, 1, 1), q_KqH, k_KHs, beta=0, alpha=scale)
    slope_Kqs = None
    if softcap:
        bent = scores_Kqs.div_(softcap).tanh_()
        slope_Kqs = 1 - bent.square()
        scores_Kqs = bent.mul_(softcap)
    if tile.unseen is not None:
        t, s = tile.unseen.shape
        scores_Kqs.view(len(scores_Kqs), t, -1, s).masked_fill_(tile.unseen[:, None], -torch.inf)
    return scores_Kqs.softmax(dim=-1), slope_Kqs
