"""Guesses by a small model of the family: it reads the text along with the large one and writes a few tokens ahead.

It chooses as the large one will, with the same noise for the same place in the text, so where the two agree in their
distributions they mostly agree in their draws. How far ahead it writes follows from how clear its choices are, which
tells how often such choices were right; where writing ahead does not pay, it rests and tries again later.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gemmary.batch import Batch, Chunk
from gemmary.engines import Engine, Logits
from gemmary.errors import GemmaryError
from gemmary.generate.request import Request
from gemmary.generate.sampling import sample_clearly
from gemmary.generate.speculate import MOST, WORTH, Chance, Guess, StepCosts

_CLEAR = (0.1, 0.3, 0.7, 1.5, 3.0)
_ASSUMED = (0.35, 0.5, 0.65, 0.8, 0.9, 0.97)
"""The chance that a choice is right which leads by less than 0.1, 0.3 … nats, until it is known better."""
_READ_AT_ONCE = 512
"""Tokens of the text that a step reads, at most: what windowed caches allow, and others do not wait for long."""
_USUAL = 0.75
"""The chance of a guess on the whole, until it is known better."""
_PROBE = 2
"""Tokens that are guessed to see whether guessing would pay by now."""
_LONGEST_REST = 1024
"""Steps between such probes, at most: what was written meanwhile has to be read for them."""


@dataclass(eq=False)
class _Follower:
    """The small model's side of a request."""

    cache: Any
    capacity: int
    sure: int = 0
    """Tokens in the cache that are the text's."""
    ahead: list[int] = field(default_factory=list)
    """Guesses in the cache behind them."""
    trusted: list[Chance] = field(default_factory=list)
    """What the chances of the latest guess were taken from."""

    def follow(self, request: Request) -> None:
        """Forgets the guesses that did not become text."""
        held = self.sure + len(self.ahead)
        came = request.tokens(self.sure, held)
        while self.ahead and came and self.ahead[0] == came[0]:
            del self.ahead[0], came[0]
            self.sure += 1
        self.ahead.clear()
        if self.sure < held:
            self.cache.truncate(self.sure)


class Draft:
    """A `Guesser` that runs an engine of its own.

    share: what a step of it costs, in steps of the large model, until both were timed. lock: held during its steps.
    """

    name = "draft"

    def __init__(
        self,
        engine: Engine,
        share: float,
        *,
        called: str = "the draft model",
        lock: AbstractContextManager[Any] | None = None,
        learn: bool = True,
    ) -> None:
        self.engine = engine
        self.called = called
        self._share = share
        self._lock = lock or nullcontext()
        self._costs = StepCosts(learn)
        self._followers: dict[Request, _Follower] = {}
        self._chances = [Chance(value) for value in _ASSUMED]
        self._usual = Chance(_USUAL)
        self._rest = 0
        self._wait = 0

    def cache_bytes(self, capacity: int) -> int:
        """See `Guesser`: its keys and values."""
        return self.engine.cache_bytes(min(capacity, self.engine.config.context_length))

    def open(self, request: Request) -> None:
        capacity = min(len(request.prompt) + request.max_tokens, self.engine.config.context_length)
        if not request.prefix:  # else it would have to read that much in one piece
            with self._failures():
                self._followers[request] = _Follower(self.engine.new_cache(capacity), capacity)

    def close(self, request: Request) -> None:
        self._followers.pop(request, None)

    def propose(self, rooms: Mapping[Request, int], costs: StepCosts) -> dict[Request, Guess]:
        """Raises GemmaryError, naming the small model, where it fails."""
        if self._wait:
            self._wait -= 1
            return {}
        self._set_share(len(rooms), costs)
        depth = self._depth(len(rooms), costs)
        self._rest = 0 if depth else min(_LONGEST_REST, 4 * self._rest + 8)
        self._wait = self._rest
        depth = depth or _PROBE
        guesses: dict[Request, Guess] = {}
        with self._failures(), self._lock:
            rows = self._read([request for request in rooms if request in self._followers])
            while rows:
                chunks = {}
                for request, row in rows.items():
                    guess = guesses.setdefault(request, Guess())
                    chance = self._write(request, guess, row)
                    follower = self._followers[request]
                    room = min(depth, rooms[request], follower.capacity - request.length + 1)
                    # One more costs a step of ours and a row of theirs, and is for nothing if one before it is wrong.
                    if len(guess.tokens) < room and guess.tokens[-1] not in request.stop_ids and chance > self._share:
                        place = request.length + len(guess.tokens) - 1
                        chunks[request] = Chunk(guess.tokens[-1:], place)
                        follower.ahead.append(guess.tokens[-1])
                rows = self._step(chunks)
        return guesses

    def told(self, request: Request, guess: Guess, came: Sequence[int]) -> None:
        """Learns how often such choices are right."""
        for token, trusted, real in zip(guess.tokens, self._followers[request].trusted, came, strict=False):
            trusted.saw(token == real)
            self._usual.saw(token == real)
            if token != real:
                break

    def _depth(self, count: int, costs: StepCosts) -> int:
        """How many tokens of each of `count` requests give the most text a second; 0 if none clearly do."""
        alone = costs.seconds(count)
        chance, expected, most, best = 1.0, 1.0, WORTH, 0
        for number in range(1, MOST + 1):
            chance *= self._usual.value
            expected += chance
            rate = expected / (costs.seconds(count * (1 + number)) / alone + number * self._share)
            if rate > most:
                most, best = rate, number
        return best

    def _read(self, requests: list[Request]) -> dict[Request, Logits]:
        """Reads on in the text; rows for those requests where its end was reached."""
        chunks: dict[Request, Chunk] = {}
        left = _READ_AT_ONCE
        for request in requests:
            follower = self._followers[request]
            follower.follow(request)
            follower.trusted.clear()
            size = min(left, request.length - follower.sure)
            if size <= 0 or request.length > follower.capacity:
                continue
            last = follower.sure + size == request.length
            tokens = request.tokens(follower.sure, follower.sure + size)
            chunks[request] = Chunk(tokens, follower.sure, outputs="last" if last else "none")
            follower.sure += size
            left -= size
        return self._step(chunks)

    def _step(self, chunks: Mapping[Request, Chunk]) -> dict[Request, Logits]:
        if not chunks:
            return {}
        batch = Batch.of(self.engine.config, list(chunks.values()))
        begin = time.perf_counter()
        rows = self.engine.step(batch, [self._followers[request].cache for request in chunks])
        self._costs.saw(len(batch.tokens), time.perf_counter() - begin)
        return dict(zip((r for r, chunk in chunks.items() if chunk.outputs == "last"), rows, strict=True))

    def _write(self, request: Request, guess: Guess, row: Logits) -> float:
        """Adds a token to the guess; returns the chance that all of it is right."""
        index = len(request.generated) + len(guess.tokens)
        history = [*request.tokens(0, request.length), *guess.tokens] if request.params.repetition_penalty != 1 else ()
        token, lead = sample_clearly(row, request.params, history, request.seed, index)
        trusted = self._chances[bisect.bisect(_CLEAR, lead)]
        self._followers[request].trusted.append(trusted)
        guess.tokens.append(token)
        guess.chances.append(trusted.value)
        return float(np.prod(guess.chances))

    def _set_share(self, count: int, costs: StepCosts) -> None:
        if self._costs.learn and self._costs.knows(count) and costs.knows(count):
            self._share = self._costs.seconds(count) / costs.seconds(count)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Whatever goes wrong in here is the small model's fault, and its user is told which."""
        try:
            yield
        except Exception as error:
            raise GemmaryError(f"{self.called} failed while guessing: {error}; load without it") from error
