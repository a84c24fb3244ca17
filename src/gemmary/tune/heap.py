"""The C library's heap, which keeps what is freed between tensors that stay.

While a step goes forward, each layer frees some tensors and keeps others, and with them many small nodes of the
graph, which are put into the holes. A hole that lost some bytes does not fit the next tensor of the same size, so the
heap grows at its end: by a third of what is kept, measured on the shape of Gemma 2 2B.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import lru_cache

EVERY = 4
"""Layers between two times that holes are given back: what was given back costs a page fault when it is used again."""
LARGE = 1 << 20
"""Bytes of a layer's output below which it does not pay."""


def give_back_holes(layer: int, nbytes: int) -> None:
    """Returns free pages of the heap to the system, after some of the layers, where their outputs have so many bytes
    that this gives much."""
    trim = _malloc_trim()
    if trim is not None and layer % EVERY == EVERY - 1 and nbytes >= LARGE:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; other C libraries have none."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
