"""What the tower of the vision starter is taught by."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")
Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from recipes import scenes  # noqa: E402
from recipes.train_tower import Seen  # noqa: E402

SCENES = [scenes.scene(number) for number in range(6)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder: Path = tmp_path_factory.mktemp("pictures")
    (folder / "pictures" / "train").mkdir(parents=True)
    for number, scene in enumerate(SCENES):
        Image.fromarray(scene.picture).save(folder / "pictures" / "train" / f"{number:05d}.png")
    cells = [scenes.cells_of(scene) for scene in SCENES]
    parts = {f"train_{part}": np.stack([getattr(c, part) for c in cells]) for part in ("shapes", "colours", "boxes")}
    np.savez(folder / "cells.npz", **parts)
    thing = SCENES[1].things[0]
    told = [{"label": thing.shape, "box": thing.box, "mask": list(range(16))}]
    row = {"image": "pictures/train/00001.png", "prefix": f"segment {thing.shape}", "objects": told}
    (folder / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return Seen(folder, ("train",))


def test_pictures_come_as_they_were_drawn(seen: Seen) -> None:
    pictures, truth = seen.batch(np.arange(len(seen)))
    assert np.array_equal(pictures, np.stack([scene.picture for scene in SCENES]))
    assert np.array_equal(truth.shapes.reshape(6, 64), np.stack([scenes.cells_of(scene).shapes for scene in SCENES]))
    assert np.array_equal(
        truth.boxes.reshape(6, 64, 4) * 128, np.stack([scenes.cells_of(scene).boxes for scene in SCENES])
    )


@pytest.mark.parametrize("turned", range(8))
def test_what_is_told_turns_with_the_picture(seen: Seen, turned: int) -> None:
    """A picture that shows nothing but the things, in their cells' boxes, is turned to where the boxes then are."""
    for number, scene in enumerate(SCENES):
        cells = scenes.cells_of(scene)
        for index, thing in enumerate(scene.things):
            own = [i for i in range(64) if tuple(cells.boxes[i]) == thing.box]
            if not own:
                continue
            plain = seen.pictures[number].copy()
            seen.pictures[number] = np.where(thing.mask[..., None], index + 1, 0)
            try:
                pictures, truth = seen.batch(np.array([number]), turned)
            finally:
                seen.pictures[number] = plain
            rows, columns = np.nonzero(pictures[0, ..., 0])
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            there = [i for i in range(64) if np.allclose(truth.boxes[i] * 128, box)]
            assert len(there) == len(own)
            assert {(truth.shapes[i], truth.colours[i]) for i in there} == {
                (cells.shapes[own[0]], cells.colours[own[0]])
            }


def test_codes_are_those_of_the_thing_in_the_patch_while_the_picture_is_not_turned(seen: Seen) -> None:
    box = SCENES[1].things[0].box
    _, truth = seen.batch(np.array([0, 1]))
    known = truth.codes[:, 0] >= 0
    assert known.any()
    assert np.array_equal(known, np.r_[np.zeros(64, bool), (scenes.cells_of(SCENES[1]).boxes == box).all(axis=1)])
    assert (truth.codes[known] == np.arange(16)).all()
    assert (seen.batch(np.array([0, 1]), 3)[1].codes == -1).all()
