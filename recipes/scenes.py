"""Scenes composed of shapes, whose true boxes and masks are known, as rows to train on and to be measured by;
beside them the questions of easy-vqa.

    python -m recipes.train_codec --out vision/mask_codec.npz
    python -m recipes.scenes --out vision --codec vision/mask_codec.npz

Beside the rows, `cells.npz` says what is in each patch of each picture, which the tower learns first and alone
(`recipes.train_tower`): out of rows alone a small model learns what a place is only after hours. There are pictures of
one thing for that, too, which no row asks about.

A scene is a function of a seed and a size. The sets have seeds of their own (`SEEDS`), so no picture is in two of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.vision.masks import MaskCodec, cut
from recipes import easy_vqa
from recipes.packages import write_rows
from recipes.shapes import COLOURS, SHAPES, Shape, coverage

SIZE = 128
SEEDS = {"train": 0, "valid": 1 << 40, "test": 2 << 40, "single": 3 << 40}
COUNTS = (0.35, 0.3, 0.2, 0.15)
"""How often a scene has one, two, three and four things."""
MASKED = 0.5
"""Scenes that are asked for masks: 16 codes a thing would outweigh the rest of what is learnt."""
QUESTIONS_TIMES = 2
"""How often each question of easy-vqa is among the rows."""
CELLS, LEAST = 8, 0.15
"""Cells of a picture a side (the tower's patches), and the share of one that a thing has to cover to be in it."""
SMALLEST = 0.11
"""Radius of a thing, over the picture's side: it reaches into two patches each way."""
MOST_HIDDEN = 0.15
"""Of a thing, by others."""
_NUMBERS = ("no", "one", "two", "three", "four")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Thing:
    shape: str
    colour: str
    mask: Mask
    """[size, size]: what is seen of it."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of what is seen, in pixels; right and bottom lie behind the last one."""
        return box_of(self.mask)

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Scene:
    picture: npt.NDArray[np.uint8]
    """[size, size, 3]"""
    things: tuple[Thing, ...]
    """From top to bottom, by the tops of their boxes."""


def box_of(mask: Mask) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a mask [rows, columns], in pixels; right and bottom lie behind the last one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def scene(seed: int, size: int = SIZE, shapes: Mapping[str, Shape] = SHAPES, most: int = len(COUNTS)) -> Scene:
    """One thing to four, or `most`, on a background of its own."""
    random = np.random.default_rng(seed)
    ground = background(random, size)
    picture, placed = ground.copy(), list[tuple[str, str, Mask]]()
    wanted = min(most, 1 + int(random.choice(len(COUNTS), p=COUNTS)))
    for _ in range(12 * wanted):
        shape, colour = str(random.choice(list(shapes))), str(random.choice(list(COLOURS)))
        tint = np.clip(np.array(COLOURS[colour]) + random.normal(0, 8, 3), 0, 255)
        covered = _whole(random, size, coverage(shapes[shape], *_pose(random, size, wanted, shapes[shape])))
        mask = covered >= 0.5
        others = [(other[2] & ~mask).sum() < (1 - MOST_HIDDEN) * other[2].sum() for other in placed]
        if any(others) or np.abs(ground[mask].mean(axis=0) - tint).sum() < 120:  # hidden, or hardly seen
            continue
        placed = [(s, c, m & ~mask) for s, c, m in placed] + [(shape, colour, mask)]
        picture += covered[..., None] * (tint - picture)
        if len(placed) == wanted:
            break
    if not placed:
        return scene(seed + (1 << 50), size, shapes, most)
    noise = random.normal(0, random.choice((0.0, 2.0, 5.0)), (size, size, 1))
    things = sorted((Thing(*each) for each in placed), key=lambda thing: (thing.box[1], thing.box[0]))
    return Scene(np.clip(np.rint(picture + noise), 0, 255).astype(np.uint8), tuple(things))


def background(random: np.random.Generator, size: int) -> npt.NDArray[np.float64]:
    """A gradient between two light colours, two dark ones or two of any kind, in any direction. [size, size, 3]"""
    low, high = ((200, 256), (200, 256), (30, 110), (60, 256))[random.integers(4)]
    first = random.uniform(low, high, 3)
    second = np.clip(first + random.normal(0, 20, 3), 0, 255)
    angle = random.uniform(0, 2 * np.pi)
    along = np.linspace(-0.5, 0.5, size)
    share = 0.5 + (np.cos(angle) * along[None] + np.sin(angle) * along[:, None]) / np.sqrt(2)
    mixed: npt.NDArray[np.float64] = first + share[..., None] * (second - first)
    return mixed


def _pose(random: np.random.Generator, size: int, things: int, shape: Shape) -> tuple[float, float, float]:
    """Radius, stretch and turn: the more things, the smaller they are."""
    radius = size * random.uniform(SMALLEST, (0.3, 0.25, 0.2, 0.18)[things - 1])
    return radius, float(np.exp(random.uniform(-0.1, 0.1))), random.uniform(-1, 1) * shape.turn


def _whole(random: np.random.Generator, size: int, part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A shape somewhere in a picture, all of it inside."""
    rows, columns = part.shape
    top, left = int(random.integers(0, size - rows + 1)), int(random.integers(0, size - columns + 1))
    whole = np.zeros((size, size), dtype=np.float32)
    whole[top : top + rows, left : left + columns] = part
    return whole


# Rows -----------------------------------------------------------------------------------------------------------------


def rows(scene: Scene, image: str, random: np.random.Generator, codec: MaskCodec) -> Iterator[dict[str, Any]]:
    """What is asked about one scene: its boxes twice, of some its masks too, and in turn its caption or a question."""
    yield detect_row(scene, image, random)
    yield detect_row(scene, image, random)
    if random.random() < MASKED:
        yield segment_row(scene, image, random, codec)
    if random.random() < 0.5:
        yield {"image": image, "prefix": "caption en", "suffix": caption(scene)}
    else:
        question, answer = question_about(scene, random)
        yield {"image": image, "prefix": f"answer en {question}", "suffix": answer}


def detect_row(scene: Scene, image: str, random: np.random.Generator) -> dict[str, Any]:
    labels, found = _asked(scene, random)
    objects = [{"label": label, "box": thing.box} for thing, label in found]
    return {"image": image, "prefix": f"detect {' ; '.join(labels)}", "objects": objects}


def segment_row(scene: Scene, image: str, random: np.random.Generator, codec: MaskCodec) -> dict[str, Any]:
    labels, found = _asked(scene, random)
    objects = [
        {"label": label, "box": thing.box, "mask": list(codec.encode(cut(thing.mask, thing.box)))}
        for thing, label in found
    ]
    return {"image": image, "prefix": f"segment {' ; '.join(labels)}", "objects": objects}


def _asked(scene: Scene, random: np.random.Generator) -> tuple[list[str], list[tuple[Thing, str]]]:
    """Labels, some of which may be nowhere in the scene, and the things that bear them: in the order of the labels,
    those of one label from top to bottom."""
    kind = random.random()
    if kind < 0.4:  # every shape there is
        labels = list(SHAPES)
    elif kind < 0.7:  # some shapes, of which the scene mostly has one
        labels = list(dict.fromkeys(thing.shape for thing in scene.things if random.random() < 0.7))
        more = [str(each) for each in random.choice(list(SHAPES), random.integers(0, 3), replace=False)]
        labels = list(dict.fromkeys([*labels, *more])) or [scene.things[0].shape]
    else:  # shapes of a colour
        labels = list(dict.fromkeys(thing.name for thing in scene.things if random.random() < 0.6))
        if random.random() < 0.25 or not labels:
            labels.append(f"{random.choice(list(COLOURS))} {random.choice(list(SHAPES))}")
        labels = list(dict.fromkeys(labels))
    random.shuffle(labels)
    named = [
        (thing, next((each for each in (thing.shape, thing.name) if each in labels), "")) for thing in scene.things
    ]
    return labels, sorted((each for each in named if each[1]), key=lambda each: labels.index(each[1]))


@dataclass(frozen=True)
class Cells:
    """What is in each of `CELLS` x `CELLS` cells of a picture, row by row."""

    shapes: npt.NDArray[np.uint8]
    """[cells] 0 where there is nothing, or 1 + the index of a shape."""
    colours: npt.NDArray[np.uint8]
    """[cells] the same of its colour."""
    boxes: npt.NDArray[np.uint8]
    """[cells, 4] the box of the thing that is there, in pixels; 0 where there is none."""


def cells_of(scene: Scene) -> Cells:
    """Of the things that reach into a cell, the one with most of it."""
    side = scene.picture.shape[0] // CELLS
    shares = np.stack([thing.mask for thing in scene.things]).reshape(-1, CELLS, side, CELLS, side).mean(axis=(2, 4))
    shares = shares.reshape(len(scene.things), -1)
    there, most = shares.max(axis=0) >= LEAST, shares.argmax(axis=0)
    shapes = np.array([1 + list(SHAPES).index(thing.shape) for thing in scene.things], dtype=np.uint8)
    colours = np.array([1 + list(COLOURS).index(thing.colour) for thing in scene.things], dtype=np.uint8)
    boxes = np.array([thing.box for thing in scene.things], dtype=np.uint8)
    return Cells(shapes[most] * there, colours[most] * there, boxes[most] * there[:, None])


def caption(scene: Scene) -> str:
    """Such as "a red circle and a blue square", from top to bottom."""
    *others, last = (f"a {thing.name}" for thing in scene.things)
    return f"{', '.join(others)} and {last}" if others else last


def question_about(scene: Scene, random: np.random.Generator) -> tuple[str, str]:
    """How many, what colour, which shape, or whether there is one."""
    thing = scene.things[random.integers(len(scene.things))]
    shapes, colours = [each.shape for each in scene.things], [each.colour for each in scene.things]
    asked = random.integers(5)
    if asked == 0:
        return "how many shapes are there?", _NUMBERS[len(shapes)]
    if asked == 1:
        shape = thing.shape if random.random() < 0.7 else str(random.choice(list(SHAPES)))
        return f"how many {shape}{'es' if shape.endswith('s') else 's'} are there?", _NUMBERS[shapes.count(shape)]
    if asked == 2 and shapes.count(thing.shape) == 1:
        return f"what color is the {thing.shape}?", thing.colour
    if asked == 3 and colours.count(thing.colour) == 1:
        return f"what is the {thing.colour} shape?", thing.shape
    shape, colour = thing.shape, thing.colour
    if random.random() < 0.5:
        shape, colour = (
            (str(random.choice(list(SHAPES))), colour)
            if random.random() < 0.5
            else (shape, str(random.choice(list(COLOURS))))
        )
    is_there = f"{colour} {shape}" in [each.name for each in scene.things]
    return f"is there a {colour} {shape}?", "yes" if is_there else "no"


def write(
    out: Path, name: str, pictures: int, codec: Path, processes: int | None = None
) -> tuple[list[dict[str, Any]], list[Cells]]:
    """The pictures of a set as PNG files in out/pictures/NAME/; the rows about them, and what is where in each."""
    (out / "pictures" / name).mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # a process for each core already
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        made = list(pool.imap(partial(_write_one, out, name, codec), range(pictures), chunksize=50))
    return [row for some, _ in made for row in some], [cells for _, cells in made]


def _write_one(out: Path, name: str, codec: Path, number: int) -> tuple[list[dict[str, Any]], Cells]:
    from PIL import Image

    seed, image = SEEDS[name] + number, f"pictures/{name}/{number:05d}.png"
    drawn = scene(seed, most=1 if name == "single" else len(COUNTS))
    Image.fromarray(drawn.picture).save(out / image, compress_level=1)
    random = np.random.default_rng([seed, 1])
    if name == "single":
        return [], cells_of(drawn)
    return list(rows(drawn, image, random, _opened(codec))), cells_of(drawn)


_opened = lru_cache(MaskCodec.open)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vision"), metavar="FOLDER")
    parser.add_argument("--pictures", type=int, default=40_000, help="to train on (default: %(default)s)")
    parser.add_argument(
        "--singles", type=int, default=20_000, help="of one thing, to begin with (default: %(default)s)"
    )
    parser.add_argument("--validation", type=int, default=150, help="pictures that choose the best checkpoint")
    parser.add_argument("--codec", type=Path, default=Path("vision/mask_codec.npz"), metavar="FILE")
    arguments = parser.parse_args()
    out, codec = arguments.out, arguments.codec
    scenes, cells = write(out, "train", arguments.pictures, codec)
    _, single_cells = write(out, "single", arguments.singles, codec)
    valid, _ = write(out, "valid", arguments.validation, codec)
    parts = {
        f"{name}_{part}": np.stack([getattr(each, part) for each in found])
        for name, found in (("train", cells), ("single", single_cells))
        for part in ("shapes", "colours", "boxes")
    }
    np.savez_compressed(out / "cells.npz", **parts)
    questions = easy_vqa.write(out, "train")
    finish = [{**row, "image": f"../{row['image']}"} for row in finishing(scenes, questions)]
    for path, made in (
        (out / "train.jsonl", [*scenes, *questions * QUESTIONS_TIMES]),
        (out / "valid.jsonl", valid),
        (out / "finish" / "train.jsonl", finish),
        (out / "finish" / "valid.jsonl", [{**row, "image": f"../{row['image']}"} for row in valid]),
    ):
        print(f"{path}: {write_rows(path, made):,} rows")


def finishing(scenes: list[dict[str, Any]], questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows to end with: all that ask for masks, as many for boxes and of easy-vqa's questions, half as many others, and
    twice all the questions whether there is a shape: one in five of easy-vqa's, and the last to be learnt."""
    masks = [row for row in scenes if row["prefix"].startswith("segment ")]
    boxes = [row for row in scenes if row["prefix"].startswith("detect ")]
    others = [row for row in scenes if "objects" not in row]
    whether = [row for row in questions if row["suffix"] in ("yes", "no") and " shape" not in row["prefix"]]
    count = len(masks)
    return [*masks, *_some(boxes, count), *whether * 2, *_some(questions, count), *_some(others, count // 2)]


def _some(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:count]]


if __name__ == "__main__":
    main()
