"""Guessing the next tokens from the text itself: what followed the last few tokens when they stood there before.

A guess costs rows in a step that is mostly waiting for weights, and nothing else. A guessed token is only kept if it is
the very token that would have been chosen, so on an engine whose rows do not depend on their company
(`batch_invariant`) the text is the same to the bit, sampled or greedy. Summaries, edits, quotations and code gain;
where guesses fail, they get rarer by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable

NGRAM = 3
"""Tokens that must be the same as before for what followed them to be a guess."""
MOST = 12
"""Tokens of a guess, at most."""
_PATIENCE = 64
"""Steps without a guess, at most, after guesses that failed."""


class Lookup:
    """The guesses of one sequence. Tokens are added as they are known; `told` says how a guess fared."""

    def __init__(self, tokens: Iterable[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """Place behind the latest occurrence of each n-gram but the very last."""
        self._most = MOST // 3
        self._pause = 0
        self._wait = 0
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        # The n-gram that ends before `token` is entered now, so that the text's end never finds itself.
        if len(self._tokens) >= NGRAM:
            self._after[tuple(self._tokens[-NGRAM:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, room: int) -> list[int]:
        """Up to `room` tokens that may come next; none where the text gives no reason, or guesses failed of late."""
        if self._wait:
            self._wait -= 1
            return []
        place = self._after.get(tuple(self._tokens[-NGRAM:]))
        if place is None:
            return []
        return self._tokens[place : place + min(self._most, room)]

    def told(self, guessed: int, kept: int) -> None:
        """Of the last guess of `guessed` tokens, the first `kept` were right."""
        if kept == guessed:
            self._most = min(MOST, 2 * self._most)
        else:
            self._most = max(2, kept + 1)
        if kept:
            self._pause = 0
        else:
            self._pause = min(_PATIENCE, 2 * self._pause + 1)
            self._wait = self._pause
