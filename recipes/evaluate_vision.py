"""How well a model answers easy-vqa, and finds what is in scenes that it has never seen.

    python -m recipes.evaluate_vision starter-vision --json vision.json --draw docs/vision

Every picture is asked for every shape, so what is found and not there counts against the model. Greedy, by the public
API. Intervals are 95 % percentiles over bootstrap samples of the pictures.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import gemmary
from gemmary.files import atomic_file
from gemmary.loaded import Model
from gemmary.seeing import PictureCompletion
from recipes import easy_vqa
from recipes.contact_sheet import sheet
from recipes.precision import Matched, box_overlaps, covered, interval, mask_overlaps, match, mean_precision
from recipes.scenes import SEEDS, Scene, caption, scene
from recipes.shapes import SHAPES

TOGETHER = 32
"""Prompts in one call."""
SHOWN = 8
"""Pictures of a sheet."""


@dataclass(frozen=True)
class Looked:
    """A scene, and what the model found in it."""

    scene: Scene
    boxes: PictureCompletion
    masks: PictureCompletion

    def by_label(self, has_masks: bool) -> dict[str, Matched]:
        """Of every label that is in the scene or was found there."""
        found = self.masks.masks if has_masks else self.boxes.boxes
        labels = dict.fromkeys([*(thing.shape for thing in self.scene.things), *(each.label for each in found)])
        return {
            label: match([each.score or 0.0 for each in found if each.label == label], self.overlaps(label, has_masks))
            for label in labels
        }

    def overlaps(self, label: str, has_masks: bool) -> Any:
        things = [thing for thing in self.scene.things if thing.shape == label]
        if has_masks:
            found = [mask.array for mask in self.masks.masks if mask.label == label]
            return mask_overlaps(found, [thing.mask for thing in things])
        boxes = [box.xyxy for box in self.boxes.boxes if box.label == label]
        return box_overlaps(boxes, [thing.box for thing in things])

    def shares(self) -> list[float]:
        """Of each thing the overlap of its mask."""
        labels = dict.fromkeys(thing.shape for thing in self.scene.things)
        return [share for label in labels for share in covered(self.overlaps(label, has_masks=True))]

    @property
    def is_right(self) -> bool:
        """Everything found once, and nothing else."""
        matched = self.by_label(has_masks=True).values()
        return all(sum(each.right) == each.truths == len(each.right) for each in matched)


def look(model: Model, scenes: Sequence[Scene], labels: Sequence[str] = tuple(SHAPES)) -> Iterator[Looked]:
    """Asks for boxes, then for masks, many scenes at a time."""
    for start in range(0, len(scenes), TOGETHER):
        some = scenes[start : start + TOGETHER]
        pictures = [each.picture for each in some]
        boxes, masks = (model.find_objects(pictures, labels, has_masks=each) for each in (False, True))
        yield from (Looked(*each) for each in zip(some, boxes, masks, strict=True))


def mean_share(looked: Sequence[Sequence[float]]) -> float:
    return float(np.mean([share for each in looked for share in each]))


def measure_scenes(looked: Sequence[Looked]) -> dict[str, Any]:
    """mAP@0.5 of boxes and of masks, and the mean overlap of the masks of all things, 0 for those not found."""
    found: dict[str, Any] = {}
    for name, has_masks in (("box mAP@0.5", False), ("mask mAP@0.5", True)):
        found[name] = interval([each.by_label(has_masks) for each in looked], mean_precision)
    found["mask IoU"] = interval([each.shares() for each in looked], mean_share)
    return found


def measure_captions(model: Model, scenes: Sequence[Scene]) -> dict[str, Any]:
    """The share of captions that are exactly the true one."""
    told = asked(model, [each.picture for each in scenes], ["caption en"] * len(scenes))
    right = [text == caption(each) for text, each in zip(told, scenes, strict=True)]
    return interval(right, lambda some: float(np.mean(some)))


def measure_answers(model: Model, out: Path, count: int | None) -> dict[str, Any]:
    """The share of right answers to the test questions of easy-vqa. count: of the first pictures; None: of all."""
    by_picture: dict[str, list[Mapping[str, Any]]] = {}
    for row in easy_vqa.write(out, "test"):
        by_picture.setdefault(row["image"], []).append(row)
    rows = [row for some in list(by_picture.values())[:count] for row in some]
    told = asked(model, [out / row["image"] for row in rows], [row["prefix"] for row in rows])
    right: dict[str, list[bool]] = {}
    for row, text in zip(rows, told, strict=True):
        right.setdefault(row["image"], []).append(text == row["suffix"])
    found = interval(list(right.values()), mean_share)
    return {**found, "questions": len(rows)}


def asked(model: Model, pictures: Sequence[Any], prompts: Sequence[str]) -> list[str]:
    texts = []
    for start in range(0, len(prompts), TOGETHER):
        part = slice(start, start + TOGETHER)
        texts += [each.text for each in model.generate(list(prompts[part]), image=list(pictures[part]), max_tokens=40)]
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=500, help="held-out pictures (default: %(default)s)")
    parser.add_argument("--questions", type=int, metavar="N", help="of the first N pictures of easy-vqa (default: all)")
    parser.add_argument("--data", type=Path, default=Path("vision"), metavar="FOLDER", help="for easy-vqa's pictures")
    parser.add_argument("--engine", default=None)
    parser.add_argument("--quant", default=None)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="right.png and wrong.png: the first of each kind")
    arguments = parser.parse_args()
    options = {name: getattr(arguments, name) for name in ("engine", "quant", "threads") if getattr(arguments, name)}
    scenes = [scene(SEEDS["test"] + number) for number in range(arguments.scenes)]
    with gemmary.load(arguments.model, **options) as model:
        result: dict[str, Any] = {"model": model.description}
        looked = list(look(model, scenes))
        result |= measure_scenes(looked)
        result["caption, exact"] = measure_captions(model, scenes)
        result["easy-vqa"] = measure_answers(model, arguments.data, arguments.questions)
        for name, values in result.items():
            if name != "model":
                low, high = values["low"], values["high"]
                print(f"{name}: {values['value']:.3f} ({low:.3f} to {high:.3f}; {values['pictures']:,} pictures)")
        if arguments.json:
            with atomic_file(arguments.json) as file:
                file.write((json.dumps(result, indent=2) + "\n").encode())
        if arguments.draw:
            arguments.draw.mkdir(parents=True, exist_ok=True)
            for kind, is_right in (("right", True), ("wrong", False)):
                chosen = [each for each in looked if each.is_right is is_right][:SHOWN]
                told = asked(model, [each.scene.picture for each in chosen], ["caption en"] * len(chosen))
                drawn = [(each.scene.picture, each.masks.masks, text) for each, text in zip(chosen, told, strict=True)]
                if drawn:
                    sheet(drawn).save(arguments.draw / f"{kind}.png", optimize=True)


if __name__ == "__main__":
    main()
