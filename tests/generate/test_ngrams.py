"""What the text itself suggests, and how far it is trusted."""

from __future__ import annotations

import numpy as np

from gemmary.generate.ngrams import Lookup


def test_a_guess_is_what_followed_the_last_tokens_the_last_time() -> None:
    assert Lookup([1, 2, 3, 9, 1, 2, 3, 8, 7, 6, 1, 2, 3]).guess(3).tokens == [8, 7, 6]
    assert Lookup([1, 2, 3, 4, 1, 2, 3]).guess(1).tokens == [4]
    assert Lookup([1, 2, 3]).guess(4).tokens == []
    assert Lookup([5] * 2).guess(4).tokens == []
    assert Lookup([1, 2, 3, 4, 5]).guess(4).tokens == []


def test_the_place_that_agrees_for_longest_is_followed() -> None:
    text = [1, 2, 3, 4, 50, 9, 9, 3, 4, 60, 8, 8]
    assert Lookup([*text, 1, 2, 3, 4]).guess(1).tokens == [50]
    assert Lookup([*text, 9, 3, 4]).guess(1).tokens == [60]
    assert Lookup([*text, 7, 3, 4]).guess(1).tokens == [60]  # the later of equals


def test_after_a_token_that_differs_the_guess_goes_on_beside_the_original() -> None:
    original = list(range(100, 130))
    edited = [*original[:12], 7]
    assert Lookup([*original, *edited]).guess(3).tokens == original[13:16]
    assert Lookup([*original, *edited, 8, 9]).guess(3).tokens == []


def test_trust_grows_along_a_copy_and_falls_where_guesses_were_wrong() -> None:
    text = list(range(100, 180))
    lookup = Lookup([*text, *text[:8]])
    before = lookup.guess(4).chances
    assert before == sorted(before)
    for token in text[8:60]:
        lookup.add(token)
    assert lookup.guess(4).chances[0] > 0.95 > before[0]
    random = np.random.default_rng(3).integers(0, 4, 3000).tolist()  # pairs repeat and foretell nothing
    assert max(Lookup(random).guess(1).chances) < 0.6


def test_chances_are_those_that_come_true() -> None:
    """A text whose every third token is a coin: after a pair that stood there before, what follows is half known."""
    rng = np.random.default_rng(5)
    lookup, right, expected = Lookup(), [], []
    for number in range(6000):
        token = int(rng.integers(1000, 1002)) if number % 3 == 2 else number % 60
        guess = lookup.guess(1)
        if guess.tokens and number > 1000:
            right.append(guess.tokens[0] == token)
            expected.append(guess.chances[0])
        lookup.add(token)
    assert abs(np.mean(right) - np.mean(expected)) < 0.05
