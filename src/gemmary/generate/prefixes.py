"""Keys and values of sequences that were read or written, for prompts that begin as one of them does.

Causal text does not see what follows it, so its keys serve whatever comes next: the next turn of a conversation reads
what is new in it, another question about the same picture of Gemma 3 the question. Tokens that see each other are used
together or not at all: a picture among text, and of a prompt that sees itself whole (PaliGemma) all of it. Keys depend
on the adapter and on what pictures show, so these have to be the same as well.

The prompt's last token is always computed anew: the first row of logits comes from it. Only engines whose rows have the
same bits in any chunk are offered this, so text does not depend on what was asked before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.config import Config
from gemmary.engines import Engine
from gemmary.generate.request import Request

MOST_KEPT = 4
"""Sequences."""
LEAST_SHARED = 8
"""Tokens below which nothing is gained: a step computes so many more in about the same time."""


@dataclass(frozen=True, eq=False)
class _Sequence:
    """Tokens, and all that their keys depend on."""

    tokens: npt.NDArray[np.int64]
    digests: tuple[bytes, ...]
    """What the pictures show, in their order; there may be more of them than the tokens reach."""
    adapter: int
    prefix: int

    @classmethod
    def of(cls, request: Request, length: int) -> _Sequence:
        """The first `length` tokens of prompt and text."""
        digests = tuple(picture.digest for picture in request.pictures)
        return cls(np.array(request.tokens(0, length), dtype=np.int64), digests, request.adapter, request.prefix)

    def __len__(self) -> int:
        return len(self.tokens)

    def shared(self, other: _Sequence, config: Config) -> int:
        """How many tokens at the beginning have the same keys in both."""
        if (self.adapter, self.prefix) != (other.adapter, other.prefix):
            return 0
        least = min(len(self), len(other))
        differ = np.flatnonzero(self.tokens[:least] != other.tokens[:least])
        count = int(differ[0]) if len(differ) else least
        if config.vision is not None:
            alike = [one == two for one, two in zip(self.digests, other.digests, strict=False)]
            places = np.flatnonzero(self.tokens[:count] == config.image_token_id)
            same = (alike.index(False) if False in alike else len(alike)) * config.vision.num_tokens
            count = int(places[same]) if same < len(places) else count
        return count if count >= self.prefix else 0

    def cuts_a_picture(self, count: int, config: Config) -> bool:
        """Whether the first `count` tokens end within some that see each other."""
        place = config.image_token_id
        return bool(0 < count < len(self) and (self.tokens[count - 1 : count + 1] == place).all())


@dataclass(frozen=True, eq=False)
class _Kept:
    sequence: _Sequence
    cache: Any
    capacity: int
    nbytes: int


@dataclass(frozen=True)
class Start:
    """What a request begins with: so many tokens of a kept sequence, or nothing."""

    added_bytes: int
    """Those that it takes beside what is in use and kept."""
    kept: _Kept | None = None
    length: int = 0
    moved: bool = False
    """The kept cache itself becomes the request's; else a copy of the part does."""

    @property
    def goes_on(self) -> bool:
        """It takes most of the sequence: what is left of that was answered once and is not worth keeping."""
        return self.kept is not None and 2 * self.length >= len(self.kept.sequence)


class Prefixes:
    """The caches of the last requests that have ended, at most so many."""

    def __init__(self, engine: Engine, most: int = MOST_KEPT) -> None:
        exact = engine.info.batch_invariant and not engine.config.bidirectional
        self._engine = engine
        self._config = engine.config
        self._most = most if exact else 0
        self._kept: list[_Kept] = []
        """The one that was of use last at the end."""

    @property
    def nbytes(self) -> int:
        return sum(kept.nbytes for kept in self._kept)

    def keep(self, request: Request) -> None:
        """The cache of a request that ends, in place of those that have nothing which is not in it."""
        read = request.computed
        if request.prefix:  # all of its keys belong together; windows would not let its last token see all of it again
            read = request.prefix if read >= request.prefix and self._config.sliding_window is None else 0
        if request.cache is None or request.error is not None or not request.params.cache_prompt or not self._most:
            return
        if read <= LEAST_SHARED:
            return
        sequence = _Sequence.of(request, read)
        self._kept = [kept for kept in self._kept if kept.sequence.shared(sequence, self._config) < len(kept.sequence)]
        nbytes = self._engine.cache_bytes(request.capacity)
        self._kept.append(_Kept(sequence, request.cache, request.capacity, nbytes))
        del self._kept[: -self._most]

    def starts(self, request: Request) -> list[Start]:
        """How a request can begin, the best way first: with a kept cache itself where the sequence goes on, with a copy
        of its beginning where more of it than that is for others."""
        anew = Start(request.kv_bytes)
        if not self._kept or not request.params.cache_prompt:
            return [anew]
        wanted = _Sequence.of(request, len(request.prompt))
        length, kept = max(((self._usable(kept, wanted), kept) for kept in self._kept), key=lambda pair: pair[0])
        if length < LEAST_SHARED:
            return [anew]
        self._kept.remove(kept)
        self._kept.append(kept)
        copied = Start(request.kv_bytes, kept, length)
        if kept.capacity < request.capacity:
            return [copied]
        added = request.kv_bytes - self._engine.cache_bytes(request.capacity)
        moved = Start(added, kept, length, moved=True)
        return [moved] if moved.goes_on else [copied, moved]

    def begin(self, request: Request, start: Start) -> None:
        """Gives a request its cache. Raises GemmaryError where there is no memory for it."""
        kept = start.kept
        if kept is None:
            request.cache = self._engine.new_cache(request.capacity)
            request.computed = request.cached = 0  # it may have begun otherwise, and been interrupted
            return
        if start.moved or start.goes_on:
            self._kept.remove(kept)
        if start.moved:
            kept.cache.truncate(start.length)
            request.kv_bytes += kept.nbytes - self._engine.cache_bytes(request.capacity)
            request.cache, request.capacity = kept.cache, kept.capacity
        else:
            request.cache = self._engine.fork(kept.cache, start.length, request.capacity)
        request.computed = request.cached = start.length

    def drop(self) -> bool:
        """Lets the oldest go; False where there is none."""
        return bool(self._kept) and self._kept.pop(0) is not None

    def clear(self) -> None:
        self._kept.clear()

    def _usable(self, kept: _Kept, wanted: _Sequence) -> int:
        """How many tokens of a kept sequence a prompt can begin with."""
        count = min(kept.sequence.shared(wanted, self._config), len(wanted) - 1)
        if self._config.picture_blocks and any(
            each.cuts_a_picture(count, self._config) for each in (kept.sequence, wanted)
        ):
            places = wanted.tokens[:count] == self._config.image_token_id
            others = np.flatnonzero(~places)
            count = int(others[-1]) + 1 if len(others) else 0
        return count if count > 0 and self._engine.can_truncate(kept.cache, count) else 0
