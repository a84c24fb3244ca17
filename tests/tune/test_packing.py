"""Packing: every document once an epoch, none seeing another, and an order that (seed, epoch) alone fixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.errors import GemmaryError
from gemmary.tune.packing import Batches, MicroBatch, fitted, inputs, micro_batch, packed
from gemmary.tune.rows import Example
from tests.tiny import TINY

CONFIG = TINY["gemma2"]
SETTINGS = settings(max_examples=80, deadline=None, derandomize=True)


def text(length: int, source: str = "rows.jsonl:1") -> Example:
    """A document scored throughout, whose tokens tell where they stand."""
    return Example(np.arange(length, dtype=np.int32), np.arange(length) > 0, source)


def answer(prompt: int, length: int, first: int = 1) -> Example:
    """A document whose last `length` tokens are scored, and one more behind them that is not."""
    scored = np.zeros(prompt + length + 1, bool)
    scored[prompt:-1] = True
    return Example(np.arange(first, first + len(scored), dtype=np.int32), scored, "rows.jsonl:2")


def batches(examples: Sequence[Example], *, batch_size: int = 2, seed: int = 5, shuffle: bool = True) -> Batches:
    return Batches(examples, CONFIG, batch_size=batch_size, sequence_length=16, seed=seed, shuffle=shuffle)


def same(a: MicroBatch, b: MicroBatch) -> bool:
    pairs = [(a.targets, b.targets), *((getattr(a.batch, n), getattr(b.batch, n)) for n in ("tokens", "outputs"))]
    return all(np.array_equal(x, y) for x, y in pairs) and a.batch.sequences == b.batch.sequences


def test_targets_follow_the_rows_that_predict_them() -> None:
    made = micro_batch(CONFIG, [answer(3, 2, first=10), answer(1, 1, first=50), text(4)])
    # Fed: 10 11 12 13 | 50 | 0 1 2. The scored tokens are 13 14, 51 and 1 2 3.
    assert made.batch.tokens.tolist() == [10, 11, 12, 13, 50, 0, 1, 2]
    assert made.batch.positions.tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert made.batch.sequences == (slice(0, 4), slice(4, 5), slice(5, 8))
    assert made.batch.outputs.tolist() == [2, 3, 4, 5, 6, 7]
    assert made.targets.tolist() == [13, 14, 51, 1, 2, 3]
    assert (made.batch.outputs.dtype, made.targets.dtype) == (np.int32, np.int64)
    assert made.batch.visible["local"].tolist()[:4] == [[0, 0], [0, 1], [0, 2], [0, 3]]


@SETTINGS
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(0, 2**64 - 1), st.integers(0, 3))
def test_every_document_stands_once_in_an_epoch(lengths: list[int], seed: int, epoch: int) -> None:
    made = batches([text(length + 1) for length in lengths], seed=seed)
    packs = made.packs(epoch)
    assert sorted(i for pack in packs for i in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= 16 for pack in packs)
    micro = [made.get(epoch, index) for index in range(made.count(epoch))]
    assert sum(len(each.batch.sequences) for each in micro) == len(lengths)
    assert sum(len(each.targets) for each in micro) == sum(lengths)


@SETTINGS
@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9))))
def test_a_micro_batch_depends_on_its_place_alone(lengths: list[int], places: list[tuple[int, int]]) -> None:
    examples = [text(length + 1) for length in lengths]
    used = batches(examples)
    for epoch, index in places:
        if index < used.count(epoch):
            assert same(used.get(epoch, index), batches(examples).get(epoch, index))


def test_epochs_and_seeds_differ() -> None:
    examples = [text(length) for length in [2, 5, 9, 3, 12, 7] * 9]
    made = batches(examples)
    assert made.packs(0) != made.packs(1) != made.packs(2)
    assert made.packs(0) == batches(examples).packs(0) != batches(examples, seed=6).packs(0)
    still = batches(examples, shuffle=False)
    assert still.packs(0) == still.packs(1)


def test_the_order_never_changes() -> None:
    """Frozen: a run that is resumed after an upgrade must go on with the same rows."""
    made = batches([text(length) for length in [3, 9, 14, 5, 8, 2, 11, 6]])
    assert made.packs(0) == [[6, 7], [1, 4], [3], [2, 0, 5]]
    assert made.packs(1) == [[1, 4], [6, 7], [3], [2, 0, 5]]


def test_packs_are_nearly_full() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 200, 3000).tolist()
    packs = packed(range(3000), lengths, 512)
    assert len(packs) <= 1.01 * sum(lengths) / 512 + 1


@SETTINGS
@given(st.integers(2, 90), st.integers(2, 20))
def test_the_pieces_of_a_text_predict_every_token_once(length: int, room: int) -> None:
    whole = text(length)
    pieces = fitted(whole, room)
    assert all(1 <= inputs(piece) <= room for piece in pieces)
    assert all(piece.tokens[0] == 0 and not piece.scored[0] for piece in pieces)
    assert np.concatenate([piece.tokens[piece.scored] for piece in pieces]).tolist() == list(range(1, length))
    for piece in pieces[1:]:
        assert np.diff(piece.tokens[1:]).tolist() == [1] * (len(piece.tokens) - 2), "one token of what came before"
    assert len(pieces) == 1 or pieces[1].source == "rows.jsonl:1, piece 2"


def test_cutting_is_told() -> None:
    assert batches([text(17)]).notices == ()
    (notice,) = batches([text(40), text(3)]).notices
    assert notice == "texts longer than 16 tokens were cut: 2 more documents"


def test_a_row_that_cannot_be_cut_is_an_error() -> None:
    batches([answer(12, 5)])
    with pytest.raises(GemmaryError, match=r"^rows.jsonl:2: the row has 17 tokens and --sequence-length is 16: raise"):
        batches([answer(12, 6)])


def test_the_context_bounds_the_sequence() -> None:
    with pytest.raises(GemmaryError, match="--sequence-length 65 is more than the 64 tokens of the model's context"):
        Batches([text(3)], CONFIG, batch_size=1, sequence_length=65, seed=0)
