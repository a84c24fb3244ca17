"""Perplexity on held-out text: every token once, with as much before it as the windows promise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.engines.reference import ReferenceEngine
from gemmary.tune.heldout import HeldOut, measure
from tests.tiny import TINY, random_leaves, random_tokens

CONFIG = TINY["gemma2"]
"""Its context is 64 tokens."""


class Spy:
    """An engine for which every token of the vocabulary is equally likely, and that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def new_cache(self, capacity: int) -> None: ...

    def step(self, batch: Batch, caches: Sequence[Any]) -> npt.NDArray[np.float32]:
        for rows in batch.sequences:
            inside = (batch.outputs >= rows.start) & (batch.outputs < rows.stop)
            self.asked.append((batch.tokens[rows].tolist(), int(inside.sum())))
            assert (batch.outputs[inside] >= rows.stop - inside.sum()).all()  # the last ones
        return np.zeros((len(batch.outputs), CONFIG.vocab_size), np.float32)


@pytest.mark.parametrize("length", [2, 20, 64, 65, 66, 97, 98, 200])
def test_every_token_is_predicted_once_from_half_a_context_at_least(length: int) -> None:
    ids = [2, *(3 + i * i % 97 for i in range(length - 1))]
    spy = Spy()
    found = measure(spy, CONFIG, [("ab", ids)])
    assert found == HeldOut(pytest.approx((length - 1) * math.log(CONFIG.vocab_size)), length - 1, 2)
    begin = 1
    for tokens, scored in spy.asked:
        assert tokens[0] == 2
        assert len(tokens) <= CONFIG.context_length
        last = begin + scored - 1  # the place of the last token that this window predicts
        assert tokens[1:] == ids[last - len(tokens) + 1 : last]
        assert begin == 1 or len(tokens) - scored >= CONFIG.context_length // 2
        begin = last + 1
    assert begin == length


def test_the_numbers_are_those_of_a_plain_sum() -> None:
    engine = ReferenceEngine(CONFIG, random_leaves(CONFIG))
    documents = [("éa", random_tokens(CONFIG, n, seed=n)) for n in (9, 30)]
    found = measure(engine, CONFIG, documents)
    nats = 0.0
    for _, ids in documents:
        logits = engine.step(Batch.of(CONFIG, [Chunk(list(ids), outputs="all")]), [engine.new_cache(len(ids))])
        p = np.exp(logits.astype(np.float64))
        p /= p.sum(axis=1, keepdims=True)
        nats -= float(np.log(p[np.arange(len(ids) - 1), list(ids)[1:]]).sum())
    assert found.nats == pytest.approx(nats, rel=1e-6)
    assert (found.tokens, found.bytes) == (37, 6)
    assert found.perplexity == pytest.approx(math.exp(nats / 37))
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / 6)
