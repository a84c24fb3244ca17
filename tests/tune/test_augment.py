"""Changed pictures: what may be changed of which row, and boxes that go where their objects go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.tune.augment import Augment
from gemmary.tune.rows import Example, example_of, form_of
from gemmary.vision import objects
from gemmary.vision.preprocess import open_image
from tests.tune.test_pictures import BOX, SIZE, examples, scratch, settings, start

__all__ = ["examples", "scratch", "settings", "start"]


def test_changed_pictures_keep_their_boxes(examples: list[Example], start: Path) -> None:
    """Wherever the picture goes, its box holds the coloured pixels, all of them and no others."""
    augment = Augment(open_checkpoint(start).tokenizer, seed=2)
    tokenizer, changes = open_checkpoint(start).tokenizer, set()
    for epoch in range(12):
        for index in (0, 3):
            example = augment.changed(examples[index], epoch, index)
            assert len(example.tokens) == len(examples[index].tokens)
            change = example.pictures[0].change
            assert change is not None
            changes.add(change)
            (found,), _ = objects.parse(tokenizer.decode(example.tokens[example.prefix :].tolist()))
            image = change.applied(open_image(example.pictures[0].path))
            spread = np.ptp(np.asarray(image, dtype=np.int16), axis=-1) > 60
            rows, columns = np.flatnonzero(spread.any(axis=1)), np.flatnonzero(spread.any(axis=0))
            seen = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
            assert found.box(*image.size) == pytest.approx(seen, abs=0.1)
    assert {change.mirrored for change in changes} == {True, False}
    assert len({change.window for change in changes}) > 5
    again = Augment(tokenizer, seed=2).changed(examples[0], 3, 0)
    assert again.pictures == augment.changed(examples[0], 3, 0).pictures


@pytest.mark.parametrize(
    ("row", "mirrors", "moves"),
    [
        ({"prefix": "answer en is it on the left?", "suffix": "no"}, False, True),
        ({"prefix": "ocr", "suffix": "abc"}, False, True),
        ({"prefix": "caption en", "suffix": "a box"}, True, True),
        ({"prefix": "detect box", "suffix": "<loc0000><loc0000><loc0500><loc0500> box"}, False, False),
        ({"prefix": "s", "objects": [{**BOX, "mask": list(range(16))}]}, False, True),
    ],
)
def test_what_may_be_mirrored_and_moved(
    row: dict[str, Any], mirrors: bool, moves: bool, examples: list[Example], start: Path
) -> None:
    checkpoint = open_checkpoint(start)
    augment = Augment(checkpoint.tokenizer, seed=0)
    folder = examples[0].pictures[0].path.parent
    whole = {"image": "0.png", **row}
    example = example_of(whole, checkpoint.tokenizer, form_of(checkpoint), source="", folder=folder)
    found = [augment.changed(example, epoch, 0).pictures[0].change for epoch in range(40)]
    changes = [change for change in found if change is not None]
    assert any(change.mirrored for change in changes) == mirrors
    assert any(change.window != (0, 0, *SIZE) for change in changes) == moves
    if "objects" not in row:  # nothing of the picture is cut off
        assert all(w is not None and w[0] <= 0 and w[1] <= 0 and w[2] >= 40 and w[3] >= 24 for w in
                   (change.window for change in changes))  # fmt: skip
