"""Attention of many short sequences at once, where no key is older than the step: they are stacked, those of about a
length together, and go through PyTorch's fused attention, forward and backward, in a few calls whatever their number.

Axes: T rows of the step, S sequences of a stack, L rows of its longest, N heads, K kv heads, H head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

SPARSE = 1.25
"""A stack ends where its longest sequence is so many times as long as the next."""
PAIRS = 1 << 24
"""Queries times keys of a stack at most: 16 MiB of what sees what."""


@dataclass(frozen=True)
class Stack:
    """Sequences that attend together."""

    rows: Tensor
    """[S, L] rows of the step, each sequence's in order; behind its end any."""
    seen: Tensor | None
    """[S, 1, L, L], True where a query sees a key; None if all see all."""


@dataclass(frozen=True)
class Stacks:
    """All sequences of a step."""

    stacks: tuple[Stack, ...]
    places: Tensor | None
    """[T] where each row of the step lies in the stacks, one behind the other; None: as it lies in the step."""


def stacked(
    spans: npt.NDArray[np.int32], sequences: Sequence[slice], device: torch.device, pairs: int = PAIRS
) -> Stacks | None:
    """spans: `visible` [T, 2]. None where a sequence is too long for this to pay, or there is only one."""
    lengths = np.array([rows.stop - rows.start for rows in sequences])
    if len(lengths) < 2 or int(lengths.max()) ** 2 > pairs // 16:
        return None
    groups: list[list[int]] = []
    for i in np.argsort(-lengths, kind="stable").tolist():
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or longest > SPARSE * lengths[i] or (len(groups[-1]) + 1) * longest**2 > pairs:
            groups.append([])
        groups[-1].append(i)
    if len(groups) == 1 and lengths.min() == lengths.max():
        groups = [list(range(len(lengths)))]
    stacks, places, begin = [], np.empty(len(spans), np.int64), 0
    for group in groups:
        starts, counts = np.array([sequences[i].start for i in group])[:, None], lengths[group][:, None]
        column = np.arange(int(counts.max()))
        real = column < counts
        rows = np.where(real, starts + column, starts)
        places[rows[real]] = begin + np.flatnonzero(real)
        begin += rows.size
        first, last = (np.where(real, side[rows], 0)[:, None, :, None] for side in spans.T)
        seen = (column >= first) & (column <= last)
        stacks.append(Stack(_tensor(rows, device), None if seen.all() else _tensor(seen, device)))
    one = len(stacks) == 1 and begin == len(spans)
    as_they_lie = one and bool((places == np.arange(len(spans))).all())
    return Stacks(tuple(stacks), None if as_they_lie else _tensor(places, device))


def attend_stacked(q: Tensor, k: Tensor, v: Tensor, stacks: Stacks, scale: float) -> Tensor:
    """q [T, N, H] over the keys k and values v [T, K, H] of its own sequence -> [T, N*H] in q's dtype."""
    parts = zip(_split(q, stacks), _split(k, stacks), _split(v, stacks), stacks.stacks, strict=True)
    found = [_attend(q, k, v, stack.seen, scale) for q, k, v, stack in parts]
    if stacks.places is None:
        return found[0].flatten(0, 1).flatten(1)
    result: Tensor = _Unstacked.apply(stacks, *found)  # type: ignore[no-untyped-call]
    return result.flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, scale: float) -> Tensor:
    """[S, L, N, H] and twice [S, L, K, H] -> [S, L, N, H]."""
    shares = q.shape[2] != k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=shares)
    return out.transpose(1, 2)


def _split(x: Tensor, stacks: Stacks) -> Sequence[Tensor]:
    """[T, heads, H] -> for each stack [S, L, heads, H]."""
    if stacks.places is None:
        return [x.view(*stacks.stacks[0].rows.shape, *x.shape[1:])]
    found: Sequence[Tensor] = _Stacked.apply(x, stacks)  # type: ignore[no-untyped-call]
    return found


class _Stacked(torch.autograd.Function):
    """Rows into stacks. A row lies in one real place, so its gradient is read from there and nothing is summed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stacks: Stacks) -> tuple[Tensor, ...]:
        ctx.stacks = stacks
        return tuple(x[stack.rows] for stack in stacks.stacks)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _joined(gradients)[ctx.stacks.places], None


class _Unstacked(torch.autograd.Function):
    """The inverse."""

    @staticmethod
    def forward(ctx: Any, stacks: Stacks, *parts: Tensor) -> Tensor:
        ctx.stacks = stacks
        return _joined(parts)[stacks.places]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = gradients
        shapes = [stack.rows.shape for stack in ctx.stacks.stacks]
        flat = grad.new_zeros(sum(a * b for a, b in shapes), *grad.shape[1:])
        flat[ctx.stacks.places] = grad
        parts = zip(torch.split(flat, [a * b for a, b in shapes]), shapes, strict=True)
        return None, *(part.view(*shape, *grad.shape[1:]) for part, shape in parts)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """[S, L, heads, H] of all stacks -> [places, heads, H]."""
    return torch.cat([part.flatten(0, 1) for part in parts])


def _tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)
