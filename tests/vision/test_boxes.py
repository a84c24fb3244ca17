"""Boxes with scores from the tokens' probabilities, masks in the whole picture, and merging on request."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from gemmary.generate import Completion, Stats, TokenLogprob
from gemmary.vision.boxes import Box, boxes, masks, merge, overlap
from gemmary.vision.masks import MaskCodec
from tests.tokenizer import small
from tests.vision.tiny_paligemma import tokenizer

LOCATION = len(small.PIECES)
CODE = LOCATION + 1024
STATS = Stats(1, 1, 0.0, 0.0, 0.0, 0)


def completion(tokens: Sequence[int], logprobs: Sequence[float] | None) -> Completion:
    known = None if logprobs is None else tuple(map(TokenLogprob, tokens, logprobs))
    return Completion(tokenizer().decode(tokens), tuple(tokens), known, "stop", STATS)


def test_scores_are_of_the_locations_and_the_label() -> None:
    cat, separator = tokenizer().encode(" cat"), tokenizer().encode(" ; ")
    first = [LOCATION + n for n in (256, 512, 768, 1023)]
    second = [LOCATION + n for n in (0, 0, 1, 1)]
    lead = tokenizer().encode("é")  # bytes before the first object, held back until they are whole
    tokens = [*lead, *first, *cat, *separator, *second, *cat]
    logprobs = [-9.0] * len(lead) + [-0.1, -0.2, -0.3, -0.4] + [-0.05] * len(cat) + [-9.0] * len(separator)
    logprobs += [-4.0] * 4 + [0.0] * len(cat)
    found = boxes(tokenizer(), completion(tokens, logprobs), 200, 100)
    assert [each.label for each in found] == ["cat", "cat"]
    assert found[0].xyxy == (512 / 1024 * 200, 256 / 1024 * 100, 1023 / 1024 * 200, 768 / 1024 * 100)
    assert found[0].score == pytest.approx(math.exp(-0.25 - 0.05 * len(cat)))
    assert found[1].score == pytest.approx(math.exp(-4))
    assert boxes(tokenizer(), completion(tokens, None), 200, 100)[0].score is None


def test_labels_spelled_in_bytes_and_no_label_at_all() -> None:
    dog = tokenizer().encode(" xé")
    assert len(dog) > 2
    box = [LOCATION, LOCATION, LOCATION + 9, LOCATION + 9]
    found = boxes(tokenizer(), completion([*box, *dog], [-1.0] * 4 + [-0.5] * len(dog)), 8, 8)
    assert found[0].label == "xé"
    assert found[0].score == pytest.approx(math.exp(-1 - 0.5 * len(dog)))
    (bare,) = boxes(tokenizer(), completion(box, [-1.0] * 4), 8, 8)
    assert (bare.label, bare.score) == ("", pytest.approx(math.exp(-1)))


def test_masks_lie_in_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = [CODE + n for n in range(16)]
    box = [LOCATION + n for n in (256, 512, 768, 768)]
    tokens = [*box, *codes, *tokenizer().encode(" cat ; "), *box, *tokenizer().encode(" ab")]
    decoded: list[Sequence[int]] = []

    class Codec(MaskCodec):
        def __init__(self) -> None:
            pass

        def decode(self, codes: Sequence[int]) -> np.ndarray:  # type: ignore[type-arg]
            decoded.append(codes)
            return np.where(np.arange(64) < 32, 1, -1)[None].repeat(64, axis=0).astype(np.float32)

    (mask,) = masks(tokenizer(), completion(tokens, [-0.5] * len(tokens)), 40, 20, Codec)
    assert decoded == [tuple(range(16))]
    assert mask.array.shape == (20, 40)
    expected = np.zeros((20, 40), dtype=bool)
    expected[5:15, 20:25] = True
    np.testing.assert_array_equal(mask.array, expected)
    assert (mask.label, mask.box) == ("cat", (20.0, 5.0, 30.0, 15.0))
    assert mask.score == pytest.approx(math.exp(-0.5 * (1 + len(tokenizer().encode(" cat")))))
    text_only = completion(tokens[20:], None)
    assert masks(tokenizer(), text_only, 40, 20, Codec) == []
    assert len(decoded) == 1


def test_overlap() -> None:
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert overlap((0, 0, 2, 2), (2, 0, 3, 2)) == 0
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1


def test_merging_keeps_the_best_of_each_label() -> None:
    found = [
        Box("cat", (0, 0, 10, 10), 0.2),
        Box("dog", (0, 0, 10, 10), 0.1),
        Box("cat", (0, 0, 10, 9), 0.9),
        Box("cat", (50, 0, 60, 10), 0.01),
    ]
    assert merge(found, 0.8) == found[1:]
    assert merge(found, 0.95) == found
    unknown = [Box("cat", (0, 0, 10, 10), None), Box("cat", (0, 0, 10, 9), None)]
    assert merge(unknown, 0.8) == unknown[:1]
