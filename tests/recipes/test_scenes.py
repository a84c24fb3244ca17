"""Scenes: what is drawn, what is said of it, and the rows."""

from __future__ import annotations

import numpy as np
import pytest

from recipes import scenes
from recipes.shapes import COLOURS, NEW, SHAPES, coverage


class Codes:
    """In the place of a codec."""

    def encode(self, mask):
        assert mask.shape == (64, 64)
        return tuple(range(16))


SCENES = [scenes.scene(seed) for seed in range(40)]


def test_a_scene_is_a_function_of_its_seed():
    again = scenes.scene(7)
    np.testing.assert_array_equal(again.picture, SCENES[7].picture)
    assert [thing.box for thing in again.things] == [thing.box for thing in SCENES[7].things]
    assert (SCENES[8].picture != again.picture).any()
    assert {len(scene.things) for scene in SCENES} == {1, 2, 3, 4}


def test_boxes_are_the_extents_of_masks():
    for scene in SCENES:
        for thing in scene.things:
            left, top, right, bottom = thing.box
            inside = thing.mask[top:bottom, left:right]
            assert inside.sum() == thing.mask.sum() > 50
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()


def test_things_do_not_overlap_and_come_from_top_to_bottom():
    for scene in SCENES:
        assert sum(thing.mask.astype(int) for thing in scene.things).max() == 1
        tops = [thing.box[1] for thing in scene.things]
        assert tops == sorted(tops)


def test_things_have_their_colours():
    for scene in SCENES:
        for thing in scene.things:
            seen = np.median(scene.picture[thing.mask], axis=0)
            assert np.abs(seen - COLOURS[thing.colour]).max() < 45


def test_any_size():
    scene = scenes.scene(3, size=48)
    assert scene.picture.shape == (48, 48, 3)
    assert all(thing.mask.shape == (48, 48) for thing in scene.things)


@pytest.mark.parametrize("name", [*SHAPES, *NEW])
def test_shapes_fill_about_their_square(name):
    covered = coverage({**SHAPES, **NEW}[name], 20, 1, 0)
    assert 30 <= min(covered.shape) <= max(covered.shape) <= 42
    assert 0.25 < covered.mean() <= 1
    assert covered.max() == 1


def test_rows_say_what_is_there(monkeypatch):
    for number, scene in enumerate(SCENES):
        random = np.random.default_rng(number)
        monkeypatch.setattr(scenes, "MASKED", 1)
        detect, _, segment, told = scenes.rows(scene, "a.png", random, Codes())
        for row, task in ((detect, "detect "), (segment, "segment ")):
            labels = row["prefix"].removeprefix(task).split(" ; ")
            assert len(set(labels)) == len(labels)
            expected = [thing.box for thing in scene.things if {thing.shape, thing.name} & set(labels)]
            assert sorted(each["box"] for each in row["objects"]) == sorted(expected)
            assert {each["label"] for each in row["objects"]} <= set(labels)
            assert all(("mask" in each) == (task == "segment ") for each in row["objects"])
        assert told["suffix"]


def test_captions_and_answers():
    scene = next(each for each in SCENES if len(each.things) == 3)
    names = [thing.name for thing in scene.things]
    assert scenes.caption(scene) == f"a {names[0]}, a {names[1]} and a {names[2]}"
    asked = dict(scenes.question_about(scene, np.random.default_rng(seed)) for seed in range(200))
    assert asked["how many shapes are there?"] == "three"
    for name in names:
        assert asked.get(f"is there a {name}?", "yes") == "yes"
    for question, answer in asked.items():
        if question.startswith("how many") and "shapes" not in question:
            shape = question.split()[2]
            count = sum(thing.shape in (shape.removesuffix("s"), shape.removesuffix("es")) for thing in scene.things)
            assert answer == ("no", "one", "two", "three")[count]
        if question.startswith("is there"):
            assert (question[11:-1] in names) == (answer == "yes")


def test_found_things_come_in_the_order_in_which_they_are_asked_for():
    for number, scene in enumerate(SCENES):
        row = scenes.detect_row(scene, "a.png", np.random.default_rng(number))
        labels = row["prefix"].removeprefix("detect ").split(" ; ")
        places = [(labels.index(each["label"]), each["box"][1]) for each in row["objects"]]
        assert places == sorted(places)


def test_scenes_of_one_thing():
    assert {len(scenes.scene(number, most=1).things) for number in range(12)} == {1}


def test_cells_say_what_is_in_each_patch():
    shapes, colours = ["no", *SHAPES], ["no", *COLOURS]
    for scene in SCENES:
        cells = scenes.cells_of(scene)
        found = {}
        for i in range(64):
            if cells.shapes[i]:
                name = f"{colours[cells.colours[i]]} {shapes[cells.shapes[i]]}"
                found.setdefault((name, tuple(cells.boxes[i])), set()).add(i)
        assert set(found) <= {(thing.name, thing.box) for thing in scene.things}
        for thing in scene.things:
            for i in found.get((thing.name, thing.box), ()):
                row, column = divmod(i, 8)
                assert thing.mask[16 * row : 16 * row + 16, 16 * column : 16 * column + 16].mean() >= scenes.LEAST
        nothing = cells.shapes == 0
        assert nothing.any()
        assert not cells.colours[nothing].any()
        assert not cells.boxes[nothing].any()
