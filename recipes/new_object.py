"""Teaches a model an object that it has never seen from 50 pictures, and measures what it finds.

    python -m recipes.new_object --out star
    gemmary tune starter-vision star --out star/lora --train-tower --learning-rate 2e-3 --epochs 40 --augment
    python -m recipes.new_object --measure starter-vision
    python -m recipes.new_object --measure starter-vision --adapter star/lora

The pictures have a star among the shapes that the model knows; the held-out ones are others. What is measured is the
star, asked for by itself, and what the model still knows of the other shapes in the same pictures.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

import gemmary
from recipes.packages import write_rows
from recipes.precision import box_overlaps, interval, match, mean_precision
from recipes.scenes import Scene, scene
from recipes.shapes import NEW, SHAPES

LABEL = "star"
SEED = 4 << 40
PICTURES, HELD_OUT = 50, 200


def scenes_with(count: int, seed: int) -> list[Scene]:
    """Scenes that have at least one of the new object."""
    found: list[Scene] = []
    shapes = {**SHAPES, **{name: shape for name, shape in NEW.items() if name == LABEL}}
    while len(found) < count:
        drawn = scene(seed, shapes=shapes)
        seed += 1
        if any(thing.shape == LABEL for thing in drawn.things):
            found.append(drawn)
    return found


def write(out: Path) -> int:
    """out/train.jsonl and its pictures: of each where the new object is, where all things are, and where the known ones
    are, so that these are not forgotten."""
    from PIL import Image

    (out / "pictures").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for number, drawn in enumerate(scenes_with(PICTURES, SEED)):
        image = f"pictures/{number:02d}.png"
        Image.fromarray(drawn.picture).save(out / image)
        for labels in ([LABEL], [LABEL, *SHAPES], list(SHAPES)):
            things = sorted(
                (each for each in drawn.things if each.shape in labels), key=lambda t: labels.index(t.shape)
            )
            boxes = [{"label": thing.shape, "box": thing.box} for thing in things]
            rows.append({"image": image, "prefix": f"detect {' ; '.join(labels)}", "objects": boxes})
    return write_rows(out / "train.jsonl", rows)


def measure(name: str, adapter: Path | None, labels: list[str]) -> dict[str, Any]:
    """mAP@0.5 of labels that are asked for together, on held-out scenes that all hold the new object."""
    scenes = scenes_with(HELD_OUT, SEED + (1 << 30))
    with gemmary.load(name, **({"adapter": str(adapter)} if adapter else {})) as model:
        found = model.find_objects([each.picture for each in scenes], labels)
    matched = []
    for drawn, completion in zip(scenes, found, strict=True):
        of_labels = {}
        for label in labels:
            boxes = [box for box in completion.boxes if box.label == label]
            truths = [thing.box for thing in drawn.things if thing.shape == label]
            overlaps = box_overlaps([box.xyxy for box in boxes], truths)
            of_labels[label] = match([box.score or 0.0 for box in boxes], overlaps)
        matched.append(of_labels)
    return interval(matched, mean_precision)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(LABEL), metavar="FOLDER")
    parser.add_argument("--measure", metavar="MODEL")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.measure is None:
        print(f"{arguments.out / 'train.jsonl'}: {write(arguments.out)} rows of {PICTURES} pictures")
        return
    for asked in ([LABEL], list(SHAPES)):
        result = measure(arguments.measure, arguments.adapter, asked)
        print(json.dumps({" ; ".join(asked): {key: np.round(value, 3).item() for key, value in result.items()}}))


if __name__ == "__main__":
    main()
