"""Guesses from the text itself: what followed the last few tokens when they stood there before.

Summaries, edits, quotations and code repeat themselves. A pointer runs along in the earlier text for as long as the new
text repeats it. Whether its next token was right is known at every token, whether or not it was checked, so how far it
can be trusted is learned at no cost: text that repeats nothing is left alone, a copy is noticed within a few tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence

from gemmary.generate.request import Request
from gemmary.generate.speculate import Chance, Guess, StepCosts

NGRAM = 2
"""Tokens that must be the same as before, at least, for a place to be found."""
_PLACES = 8
"""Latest places that are kept of each n-gram; the one that agrees with the text for longest is followed."""
_LONGEST = 32
"""As many equal tokens as this count as certain as more."""
_KEPT = 4
"""The part of a pointer's trust that is left when one token differed: edited text goes on beside the original."""
_EQUAL = (1, 2, 4, 8, 16, _LONGEST)
_ASSUMED = (0.2, 0.3, 0.45, 0.65, 0.8, 0.92)
"""The chance of the next token after at most 1, 2, 4 … equal ones, until it is known better."""


class Lookup:
    """The guesses of one sequence. Tokens are added as they are known."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._tokens: list[int] = []
        self._places: dict[tuple[int, ...], list[int]] = {}
        """The places behind each n-gram but the very last, the latest last."""
        self._chances = [Chance(value) for value in _ASSUMED]
        self._place: int | None = None
        """Where the earlier text goes on, if it is being repeated."""
        self._equal = 0
        """How many tokens before `_place` are those before the text's end."""
        for token in tokens:
            self.add(token)

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, token: int) -> None:
        tokens = self._tokens
        # The n-gram that ends before `token` is entered now, so that the text's end never finds itself.
        if len(tokens) >= NGRAM:
            places = self._places.setdefault(tuple(tokens[-NGRAM:]), [])
            places.append(len(tokens))
            del places[:-_PLACES]
        right = self._place is not None and tokens[self._place] == token
        if self._place is not None:
            self._chance(self._equal).saw(right)
            self._place += 1
        tokens.append(token)
        if right:
            self._equal += 1
        else:
            self._equal = min(self._equal, _LONGEST) // _KEPT
            self._find()

    def guess(self, room: int) -> Guess:
        """Up to `room` tokens that may come next; none where the text gives no reason."""
        if self._place is None:
            return Guess()
        tokens = self._tokens[self._place : self._place + room]
        return Guess(tokens, [self._chance(self._equal + number).value for number in range(len(tokens))])

    def _chance(self, equal: int) -> Chance:
        """Of the next token after so many equal ones."""
        return self._chances[bisect.bisect_left(_EQUAL, min(equal, _LONGEST))]

    def _find(self) -> None:
        """The place that the text's end agrees with for longest, the latest of equals; else on where it was."""
        for place in reversed(self._places.get(tuple(self._tokens[-NGRAM:]), ())):
            equal = self._equal_before(place)
            if equal > self._equal:
                self._place, self._equal = place, equal
        if not self._equal:
            self._place = None

    def _equal_before(self, place: int) -> int:
        tokens, equal = self._tokens, 0
        while equal < min(place, _LONGEST) and tokens[place - 1 - equal] == tokens[-1 - equal]:
            equal += 1
        return equal


class NGrams:
    """A `Lookup` for each request."""

    name = "text"

    def __init__(self) -> None:
        self._lookups: dict[Request, Lookup] = {}

    def cache_bytes(self, capacity: int) -> int:
        """See `Guesser`: nothing to speak of."""
        return 0

    def open(self, request: Request) -> None:
        self._lookups[request] = Lookup()

    def close(self, request: Request) -> None:
        self._lookups.pop(request, None)

    def propose(self, rooms: Mapping[Request, int], costs: StepCosts) -> dict[Request, Guess]:
        guesses = {}
        for request, room in rooms.items():
            lookup = self._lookups[request]
            for token in request.tokens(len(lookup), request.length):
                lookup.add(token)
            guess = lookup.guess(room)
            if guess.tokens:
                guesses[request] = guess
        return guesses

    def told(self, request: Request, guess: Guess, came: Sequence[int]) -> None:
        """Nothing new: the lookups read the text themselves."""
