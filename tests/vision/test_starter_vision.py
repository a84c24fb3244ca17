"""The vision starter as it comes with the package, on scenes that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import gemmary
from gemmary.checkpoints import starter
from gemmary.cli import main
from gemmary.loaded import Model
from recipes.precision import box_overlaps, mask_overlaps
from recipes.scenes import SEEDS, Scene, caption, scene

SCENES = [scene(SEEDS["test"] + number, most=2) for number in range(16)]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with gemmary.load("starter-vision", threads=1) as loaded:
        yield loaded


def asked_of(drawn: Scene) -> list[str]:
    return list(dict.fromkeys(thing.shape for thing in drawn.things))


def test_it_is_small_and_has_its_card() -> None:
    folder = starter.vision_path()
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8_000_000
    assert "recipes/vision_starter.yaml" in (folder / "README.md").read_text(encoding="utf-8")


def test_it_detects_and_segments(model: Model) -> None:
    things = found = covered = 0
    for drawn in SCENES:
        boxes = model.detect(drawn.picture, asked_of(drawn))
        masks = model.segment(drawn.picture, asked_of(drawn))
        for thing in drawn.things:
            things += 1
            overlaps = box_overlaps([box.xyxy for box in boxes if box.label == thing.shape], [thing.box])
            found += np.max(overlaps, initial=0) >= 0.5
            overlaps = mask_overlaps([mask.array for mask in masks if mask.label == thing.shape], [thing.mask])
            covered += np.max(overlaps, initial=0) >= 0.5
    assert found >= 0.8 * things
    assert covered >= 0.7 * things


def test_it_captions_and_answers(model: Model) -> None:
    told = [model.caption(drawn.picture) for drawn in SCENES]
    assert np.mean([text == caption(drawn) for text, drawn in zip(told, SCENES, strict=True)]) >= 0.6
    counts = ("no", "one", "two", "three", "four")
    right = [model.answer(drawn.picture, "how many shapes are there?") == counts[len(drawn.things)] for drawn in SCENES]
    assert np.mean(right) >= 0.8


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    drawn = next(each for each in SCENES if len(each.things) == 1)
    Image.fromarray(drawn.picture).save(tmp_path / "scene.png")
    label = drawn.things[0].shape
    command = ["run", "starter-vision", f"detect {label}", "--image", str(tmp_path / "scene.png")]
    assert main([*command, "--save", str(tmp_path / "found.png"), "--threads", "1"]) == 0
    assert label in capsys.readouterr().out
    with Image.open(tmp_path / "found.png") as picture:
        assert min(picture.size) >= 128
