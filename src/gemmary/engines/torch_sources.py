"""Tensors that know what they were made from, so that the backward pass can make them again.

The output of a norm, of GeGLU, and a sum with one of them are each a pass over memory away from tensors that are kept
in any case. An op that would keep such a tensor keeps what it was made from instead, and makes it again, to the same
bits, when its gradient is due. A tensor that lost its source on its way, in a copy or in a wrapper, is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_ATTRIBUTE = "_gemmary_source"


@dataclass(frozen=True)
class Source:
    """`make(*parts)` is the tensor. The parts stand outside the graph of gradients."""

    make: Callable[..., Tensor]
    parts: tuple[Tensor, ...]
    version: int = 0
    """Of the tensor when it was this: one that was changed in place since is something else."""

    @classmethod
    def of(cls, x: Tensor) -> Source:
        """What x was made from, or x itself."""
        return _source(x) or cls(_itself, (x.detach(),))

    def then(self, function: Callable[..., Tensor], *more: Tensor) -> Source:
        """Of function(x, *more), where x is what this makes."""
        first, count = self.make, len(self.parts)

        def make(*parts: Tensor) -> Tensor:
            return function(first(*parts[:count]), *parts[count:])

        return Source(make, (*self.parts, *more))


def has_source(x: Tensor) -> bool:
    return _source(x) is not None


def _source(x: Tensor) -> Source | None:
    source: Source | None = getattr(x, _ATTRIBUTE, None)
    return source if source is not None and source.version == x._version else None


def derived(result: Tensor, function: Callable[..., Tensor], x: Tensor, *more: Tensor) -> Tensor:
    """The result, which from now on knows that it is function(x, *more), where gradients are to come."""
    if torch.is_grad_enabled():
        source = Source.of(x).then(function, *(each.detach() for each in more))
        setattr(result, _ATTRIBUTE, replace(source, version=result._version))
    return result


def keep(ctx: Any, x: Tensor, *others: Tensor) -> None:
    """`ctx.save_for_backward` of x, as its source, and others as they are."""
    source = Source.of(x)
    ctx.make, ctx.count = source.make, len(source.parts)
    ctx.save_for_backward(*source.parts, *others)


def kept(ctx: Any) -> tuple[Tensor, ...]:
    """x, made again, and the others."""
    saved = ctx.saved_tensors
    return (ctx.make(*saved[: ctx.count]), *saved[ctx.count :])


def _itself(x: Tensor) -> Tensor:
    return x
