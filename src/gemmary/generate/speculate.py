"""Guessing the next tokens and checking the guesses in one step of the engine: sooner, and the same text to the bit.

A step is mostly waiting for weights, so some more rows in it cost less than steps of their own. A guessed token is kept
only if it is the very token that would have been chosen: its row of logits has the same bits (`batch_invariant`) and
the noise of a draw belongs to the place in the text (`sampling.py`). So greedy text stays what it was, and so does
sampled text, whose tokens all remain draws from the model's own distribution.

Who guesses is a `Guesser`: the text itself (`ngrams.py`), a small model (`draft.py`). They say how likely each guess is
to be right; what rows cost is measured; what is checked follows from the two, and where nothing pays nothing is.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gemmary.generate.request import Request

MOST = 12
"""Tokens of a guess, at most."""
GUESSED_ROWS = 32
"""Rows of a step that may be guesses, at most, over all requests."""
WORTH = 1.08
"""How many times sooner text has to be expected with guesses than without. Estimates err, and in both directions."""
_RUNS = 9
_PRIOR_WEIGHT = 4.0
_MEMORY = 48.0


@dataclass
class Guess:
    """What may come next, and for each token the chance that it is right where those before it are."""

    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)


class Guesser(Protocol):
    """One way to guess. It is told nothing about the text but the request, whose tokens it reads itself."""

    name: str

    def cache_bytes(self, capacity: int) -> int:
        """The most memory that it comes to hold for a request of `capacity` tokens, prompt and answer together."""
        ...

    def open(self, request: Request) -> None:
        """A request begins. Raises GemmaryError where there is no memory for it."""
        ...

    def close(self, request: Request) -> None:
        """A request has ended; it may be one that was never opened."""
        ...

    def propose(self, rooms: Mapping[Request, int], costs: StepCosts) -> dict[Request, Guess]:
        """Guesses for those of the requests, all decoding, that it has any for: at most so many tokens each."""
        ...

    def told(self, request: Request, guess: Guess, came: Sequence[int]) -> None:
        """What came (at least one token) where it had proposed this, whether or not that was checked."""
        ...


class Chance:
    """How often something that happens again and again is right: a running mean that begins at an assumption."""

    def __init__(self, assumed: float) -> None:
        self._weight = _PRIOR_WEIGHT
        self.value = assumed

    def saw(self, right: bool) -> None:
        self._weight = min(self._weight + 1, _MEMORY)
        self.value += (right - self.value) / self._weight


class StepCosts:
    """What a step of so many rows takes, by the clock: the median of the latest runs.

    learn: False leaves it at the assumptions, so that what is guessed does not depend on the clock.
    """

    def __init__(self, learn: bool = True) -> None:
        self.learn = learn
        self._seconds: dict[int, deque[float]] = {}
        self._scale = 1.0

    def saw(self, rows: int, seconds: float) -> None:
        """A step that computed `rows` tokens, each the next of its sequence or a guess, took so long."""
        if self.learn:
            self._seconds.setdefault(rows, deque(maxlen=_RUNS)).append(seconds)
            measured = [self.seconds(n) / self.assumed(n) for n in self._seconds]
            self._scale = statistics.median(measured)

    def knows(self, rows: int) -> bool:
        """Whether enough such steps were seen (always, where nothing is to be learned)."""
        return not self.learn or len(self._seconds.get(rows, ())) > 1

    def seconds(self, rows: int) -> float:
        """Of a step; those not seen yet after those that were. Only ratios mean anything where nothing is learned."""
        runs = self._seconds.get(rows)
        return statistics.median(runs) if runs else self._scale * self.assumed(rows)

    @staticmethod
    def assumed(rows: int) -> float:
        """In steps of one row, before anything is known. Hopeful, so that it is tried: 270M on two cores of Zen 3 is at
        1.6 for 2 rows, 3.0 for 8, 4.9 for 16; larger models are nearer to 1."""
        return 1.0 if rows <= 1 else 1.1 + 0.15 * rows


class Speculation:
    """The guessers of one scheduler in the order in which they are asked, and what a step checks."""

    def __init__(self, guessers: Sequence[Guesser], costs: StepCosts) -> None:
        self.guessers = tuple(guessers)
        self.costs = costs
        self._open: set[Request] = set()
        self._offers: dict[Request, list[tuple[Guesser, Guess]]] = {}
        """What each guesser offered for the step that is running, the one whose tokens are checked last."""

    def cache_bytes(self, capacity: int) -> int:
        """See `Guesser.cache_bytes`: of all of them."""
        return sum(guesser.cache_bytes(capacity) for guesser in self.guessers)

    def open(self, request: Request) -> None:
        for guesser in self.guessers:
            guesser.open(request)
        self._open.add(request)

    def close(self, request: Request) -> None:
        self._open.discard(request)
        self._offers.pop(request, None)
        for guesser in self.guessers:
            guesser.close(request)

    def follows(self, request: Request) -> bool:
        return request in self._open

    def guess(self, decoding: Sequence[Request]) -> None:
        """Sets what each of the requests, all those that decode in this step, is to check."""
        self._offers = {}
        for request in decoding:
            request.guess = []
        rooms = {r: min(MOST, r.max_tokens - len(r.generated) - 1) for r in decoding if r in self._open}
        rooms = {request: room for request, room in rooms.items() if room > 0}
        if not rooms or not self.costs.knows(len(decoding)):
            return
        for guesser in self.guessers:
            left = {request: room for request, room in rooms.items() if not request.guess}
            for request, guess in guesser.propose(left, self.costs).items() if left else ():
                self._offers.setdefault(request, []).append((guesser, guess))
            self._choose(len(decoding))

    def take(self, request: Request, right: int) -> None:
        """After the step: the first `right` tokens of its guess were right, and one more came."""
        offers = self._offers.pop(request, [])
        if request.guess:
            request.count_guesses(offers[-1][0].name, right)
        for guesser, guess in offers:
            guesser.told(request, guess, request.generated[-1 - right :])

    def _choose(self, count: int) -> None:
        """Takes the likeliest guesses, as many as give the most text a second; none unless that is clearly more."""
        chances: list[tuple[float, Request]] = []
        for request, offers in self._offers.items():
            request.guess, chance = [], 1.0
            for each in offers[-1][1].chances:
                chance *= each
                chances.append((chance, request))
        # Within one guess chances only fall and the sort is stable: whatever number is taken, no guess has a hole.
        chances.sort(key=lambda pair: -pair[0])
        alone = self.costs.seconds(count)
        expected, most, best = float(count), WORTH * count / alone, 0
        for number, (chance, _) in enumerate(chances[:GUESSED_ROWS], 1):
            expected += chance
            rate = expected / self.costs.seconds(count + number)
            if rate > most:
                most, best = rate, number
        for _, request in chances[:best]:
            tokens = self._offers[request][-1][1].tokens
            request.guess.append(tokens[len(request.guess)])
