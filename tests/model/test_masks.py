"""The two integers of a mask against the masks themselves, written out as the rule for each pair of query and key."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.batch import Batch, Chunk
from gemmary.model.masks import visible
from tests.tiny import TINY

Mask = npt.NDArray[np.bool_]


def brute_force(length: int, prefix: int, window: int | None, two_sided: bool) -> Mask:
    """Whether query (row) sees key (column), by the sentences of the specification (§1.2, §1.8, §3.4)."""
    mask = np.zeros((length, length), bool)
    for i in range(length):
        for j in range(length):
            causal = j <= i
            both_in_prefix = i < prefix and j < prefix
            if window is None:
                near = True
            elif two_sided:
                near = abs(i - j) <= window // 2
            else:
                near = i - window < j  # W keys, the query's own included
            mask[i, j] = (causal or both_in_prefix) and near
    return mask


def spans(length: int, prefix: int, window: int | None, two_sided: bool) -> Mask:
    mask = np.zeros((length, length), bool)
    for i in range(length):
        first, last = visible(i, prefix, window, two_sided)
        mask[i, first : last + 1] = True
    return mask


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 7, 64])
def test_against_brute_force(window: int | None, two_sided: bool) -> None:
    for length in range(1, 11):
        prefixes = [length] if two_sided else range(length + 1)
        for prefix in prefixes:
            expected = brute_force(length, prefix, window, two_sided)
            assert np.array_equal(spans(length, prefix, window, two_sided), expected)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 300), st.integers(0, 300), st.one_of(st.none(), st.integers(1, 300)), st.booleans())
def test_every_query_sees_itself(position: int, prefix: int, window: int | None, two_sided: bool) -> None:
    first, last = visible(position, prefix, window, two_sided)
    assert 0 <= first <= position <= last


def test_real_windows() -> None:
    """W keys of the past for Gemma 2 and 3; 256 to each side for EmbeddingGemma's 512 (§7.14)."""
    assert visible(5000, 0, 4096, False) == (905, 5000)
    assert visible(4095, 0, 4096, False) == (0, 4095)
    assert visible(4096, 0, 4096, False) == (1, 4096)
    assert visible(1000, 2048, 512, True) == (744, 1256)
    assert visible(1900, 2048, 512, True) == (1644, 2047)


def test_batch_flattens_sequences() -> None:
    config = TINY["gemma2"]
    batch = Batch.of(
        config,
        [
            Chunk([5, 6, 7], outputs="all"),
            Chunk([8], start=9),
            Chunk([1, 2, 3, 4], prefix=3, outputs="none"),
            Chunk([9, 9], start=4, prefix=3),
        ],
    )
    assert batch.tokens.tolist() == [5, 6, 7, 8, 1, 2, 3, 4, 9, 9]
    assert batch.positions.tolist() == [0, 1, 2, 9, 0, 1, 2, 3, 4, 5]
    assert batch.outputs.tolist() == [0, 1, 2, 3, 9]
    assert batch.sequences == (slice(0, 3), slice(3, 4), slice(4, 8), slice(8, 10))
    assert config.sliding_window == 5
    assert batch.visible["local"].tolist() == [
        [0, 0], [0, 1], [0, 2], [5, 9], [0, 2], [0, 2], [0, 2], [0, 3], [0, 4], [1, 5]
    ]  # fmt: skip
    assert batch.visible["global"].tolist() == [
        [0, 0], [0, 1], [0, 2], [0, 9], [0, 2], [0, 2], [0, 2], [0, 3], [0, 4], [0, 5]
    ]  # fmt: skip
    for array in (batch.tokens, batch.positions, batch.outputs, *batch.visible.values()):
        assert array.dtype == np.int32


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(0, 70), st.booleans()), max_size=4), st.integers(1, 80))
def test_a_batch_holds_the_spans_of_its_chunks(chunks: list[tuple[int, int, bool]], window: int) -> None:
    config = replace(TINY["gemma2"], sliding_window=window)
    made = [Chunk([1] * length, start, prefix=start // 2 * prefixed) for start, length, prefixed in chunks]
    batch = Batch.of(config, made)
    for kind, reach in (("global", None), ("local", window)):
        expected = [
            visible(each.start + i, each.prefix, reach, False) for each in made for i in range(len(each.tokens))
        ]
        assert batch.visible[kind].tolist() == [list(span) for span in expected]  # type: ignore[index]


def test_a_bidirectional_batch_sees_each_sequence_whole() -> None:
    config = replace(TINY["embeddinggemma"], sliding_window=4)
    batch = Batch.of(config, [Chunk([1] * 6), Chunk([2])])
    assert batch.visible["global"].tolist() == [[0, 5]] * 6 + [[0, 0]]
    assert batch.visible["local"].tolist() == [[0, 2], [0, 3], [0, 4], [1, 5], [2, 5], [3, 5], [0, 0]]


def test_what_cannot_be_masked_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix of 5"):
        Batch.of(TINY["gemma"], [Chunk([1, 2, 3], prefix=5)])
    with pytest.raises(ValueError, match="prefix of 5"):
        Batch.of(TINY["gemma"], [Chunk([1, 2, 3], start=4, prefix=5)])
    with pytest.raises(ValueError, match="one chunk"):
        Batch.of(TINY["embeddinggemma"], [Chunk([1, 2, 3], start=4)])
