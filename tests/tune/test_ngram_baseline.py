"""The n-gram baseline against a slow and plain one, and as a distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from benchmarks.ngram_baseline import Ints, KneserNey

VOCAB, BOS = 7, 2
DOCUMENTS = [np.array(list(map(int, digits))) for digits in ("34563456345", "4433556", "6543321", "3", "34561")]


def model(order: int) -> KneserNey:
    return KneserNey(DOCUMENTS, VOCAB, BOS, order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_in_every_context(order: int) -> None:
    baseline = model(order)
    for context in ([], [3], [3, 4, 5, 6], [6, 6, 6], [0, 1], [5, 4, 3], [3, 4, 5, 6, 3, 4, 5, 6]):
        each = [np.array([*context, token]) for token in range(VOCAB)]
        p = np.array([baseline.probabilities(baseline.seen([document]))[-1] for document in each])
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)


def slow(order: int, discounts: np.ndarray, history: tuple[int, ...], token: int) -> float:
    """The same by the book (Chen and Goodman 1999, equations 19 to 25), out of dictionaries."""
    padded = [(BOS,) * order + tuple(d.tolist()) for d in DOCUMENTS]
    grams = {
        n: Counter(d[i - n + 1 : i + 1] for d in padded for i in range(order, len(d))) for n in range(1, order + 1)
    }
    counts = {n: grams[n] if n == order else Counter(g[1:] for g in grams[n + 1]) for n in grams}

    def p(n: int, context: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / VOCAB
        lower = p(n - 1, context[1:])
        follow = [counts[n][(*context, w)] for w in range(VOCAB)]
        if not sum(follow):
            return lower
        d = [0.0, *discounts[n - 1]]
        back = sum(d[min(c, 3)] for c in follow)
        own = follow[token] - d[min(follow[token], 3)]
        return float((own + back * lower) / sum(follow))

    return p(order, ((BOS,) * order + history)[len(history) + 1 :])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_agrees_with_a_plain_one(order: int) -> None:
    baseline = model(order)
    for text in (DOCUMENTS[0], np.array([6, 5, 4, 0, 3, 4, 5, 6, 1])):
        p = baseline.probabilities(baseline.seen([text]))
        history = text.tolist()
        by_the_book = [slow(order, baseline.discounts, tuple(history[:i]), history[i]) for i in range(len(text))]
        assert p == pytest.approx(by_the_book, rel=1e-12)


def test_documents_do_not_see_each_other() -> None:
    baseline = model(4)
    first, second = np.array([3, 4, 5]), np.array([6, 3, 4])
    together = baseline.probabilities(baseline.seen([first, second]))
    apart = [baseline.probabilities(baseline.seen([document])) for document in (first, second)]
    assert np.array_equal(together, np.concatenate(apart))


def test_tuned_discounts_make_the_documents_likelier_and_stay_discounts() -> None:
    baseline = model(3)
    text = [np.array([3, 4, 5, 5, 6, 1]), np.array([4, 4, 3, 2, 1])]

    def loss() -> float:
        return float(-np.log(baseline.probabilities(baseline.seen(text))).sum())

    before = loss()
    baseline.tune(text)
    assert loss() < before
    assert ((baseline.discounts >= 0) & (baseline.discounts <= (1, 2, 3))).all()


def test_ids_of_a_large_vocabulary_do_not_overflow() -> None:
    documents: list[Ints] = [np.array([255_999, 255_998, 255_999, 255_998, 7], np.int64)]
    baseline = KneserNey(documents, 256_000, BOS)
    assert baseline.probabilities(baseline.seen(documents)).min() > 0.1
