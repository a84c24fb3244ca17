"""Keys and values of prompts that were read, for requests that begin with the very same prompt.

Only prompts that see themselves whole (pictures and text of PaliGemma) are kept here. Every key of such a prompt
depends on all of it, so another question about the same picture shares none of its keys: a cache serves again where
ids, pictures and adapter are all the same, or not at all. What is used again is the cache itself, not a copy: its
generated tokens are forgotten and the prompt's last one, which the first row of logits comes from, is computed anew.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, TypeAlias

from gemmary.generate.request import Request

MOST_KEPT = 4
_Key: TypeAlias = tuple[tuple[int, ...], tuple[bytes, ...], int]


@dataclass
class _Kept:
    cache: Any
    capacity: int
    nbytes: int


class Prefixes:
    """The caches of the last requests that have ended, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept.values())

    def keep(self, request: Request) -> None:
        """The cache of a request that ends, if its whole prompt was read and saw itself."""
        read = len(request.prompt)
        whole = request.prefix == read and request.computed >= read and request.error is None
        if request.cache is None or not whole or not self._most:
            return
        request.cache.truncate(read - 1)
        key = _key(request)
        self._kept.pop(key, None)
        self._kept[key] = _Kept(request.cache, request.capacity, request.kv_bytes)
        while len(self._kept) > self._most:
            self.drop()

    def take(self, request: Request) -> bool:
        """Gives a request the cache of its prompt, all but the last token, if there is one that has room for it."""
        kept = self._kept.get(_key(request)) if request.prefix == len(request.prompt) else None
        if kept is None or kept.capacity < request.capacity:
            return False
        del self._kept[_key(request)]
        request.cache, request.capacity, request.kv_bytes = kept.cache, kept.capacity, kept.nbytes
        request.computed = len(request.prompt) - 1
        return True

    def drop(self) -> bool:
        """Lets the oldest go; False where there is none."""
        return bool(self._kept) and self._kept.popitem(last=False) is not None

    def clear(self) -> None:
        self._kept.clear()


def _key(request: Request) -> _Key:
    return tuple(request.prompt), tuple(picture.digest for picture in request.pictures), request.adapter
