"""Scenes composed of the stamps of Tux Paint, whose true boxes, masks and captions are known: rows to tune a model on
that sees, and a measure on compositions that it was not shown.

    python -m recipes.tuxpaint --out stamps
    gemmary tune -c recipes/tune_tuxpaint.yaml
    python -m recipes.tuxpaint --out stamps --measure starter-vision --adapter stamps-adapter

The stamps are fetched (Debian `tuxpaint-stamps-default`, GPL-2, 161 MB): nothing made of them is shipped. A fifth of
them is in no row of the training set, so that it can be told apart whether a model knows a kind of thing or the very
picture of one.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gemmary
from gemmary.seeing import PictureCompletion
from gemmary.vision.masks import MaskCodec, cut
from recipes.packages import TUXPAINT, debian_files, fetch, write_rows
from recipes.precision import Matched, box_overlaps, interval, match, mean_precision
from recipes.scenes import MOST_HIDDEN, SIZE, Mask, background, box_of

ROOT = "./usr/share/tuxpaint/stamps/"
LABELS = {
    "bird": "animals/birds/",
    "flower": "plants/flowers/",
    "fruit": "food/fruit/",
    "house": "town/houses/",
    "mammal": "animals/mammals/",
}
"""What is asked for, and the folder of its stamps: the five largest of things that are seen alone."""
LARGEST = 72
"""Pixels of a stamp's longer side at most: of a picture's 128."""
SMALLEST = 36
COUNTS = (0.5, 0.35, 0.15)
"""How often a scene has one, two and three stamps."""
APART = 5
"""One of so many stamps is in no row of the training set."""
SEEDS = {"train": 0, "valid": 1 << 40, "known": 2 << 40, "new": 3 << 40}
MASKED, CAPTIONED = 0.25, 0.25
"""Scenes that are asked for masks, and for a caption; all are asked for boxes."""
TOGETHER = 32
"""Pictures in one call."""


@dataclass(frozen=True)
class Stamp:
    name: str
    """Its path in the package."""
    label: str
    caption: str
    """Such as "a frog"."""
    picture: npt.NDArray[np.uint8]
    """[rows, columns, 4], the last of them how much covers what is behind; its longer side `LARGEST` at most."""

    @property
    def is_apart(self) -> bool:
        return hashlib.sha256(self.name.encode()).digest()[0] % APART == 0


@dataclass(frozen=True)
class Placed:
    """A stamp in a scene."""

    stamp: Stamp
    mask: Mask
    """[size, size]: what is seen of it."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        return box_of(self.mask)


@dataclass(frozen=True)
class Composition:
    picture: npt.NDArray[np.uint8]
    """[size, size, 3]"""
    things: tuple[Placed, ...]
    """From top to bottom, by the tops of their boxes."""


def stamps(package: Path) -> list[Stamp]:
    """Those of `LABELS` that have a caption and are see-through around what they show, in the order of their names."""
    pictures: dict[str, bytes] = {}
    texts: dict[str, bytes] = {}
    with debian_files(package) as archive:
        for member in archive:
            path = member.name.removeprefix(ROOT)
            stem, _, end = path.rpartition(".")
            if end not in ("png", "txt") or not any(path.startswith(folder) for folder in LABELS.values()):
                continue
            file = archive.extractfile(member)
            if file is not None:
                (pictures if end == "png" else texts)[stem] = file.read()
    found = []
    for name in sorted(pictures.keys() & texts.keys()):
        label = next(label for label, folder in LABELS.items() if name.startswith(folder))
        picture = _opened(pictures[name])
        if picture is not None:
            found.append(Stamp(name, label, _caption(texts[name]), picture))
    return found


def _opened(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Cut to what is seen and made small enough; None where nothing is see-through."""
    from PIL import Image

    image = Image.open(io.BytesIO(data)).convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    if alpha.min() > 127 or not (alpha > 127).any():
        return None
    image = image.crop(box_of(alpha > 127))
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return np.asarray(image)


def _caption(text: bytes) -> str:
    """The first line, which is English: "A frog." is "a frog"."""
    line = text.decode("utf-8", "replace").splitlines()[0].strip().rstrip(".!")
    first, _, rest = line.partition(" ")
    return f"{first.lower()} {rest}".strip()


def composition(seed: int, stamps: Sequence[Stamp], size: int = SIZE) -> Composition:
    """One stamp to three on a background of its own, each label as likely as any, each stamp seen nearly whole."""
    random = np.random.default_rng(seed)
    picture, placed = background(random, size), list[Placed]()
    labels = sorted({stamp.label for stamp in stamps})
    wanted = 1 + int(random.choice(len(COUNTS), p=COUNTS))
    for _ in range(12 * wanted):
        label = labels[random.integers(len(labels))]
        of_label = [stamp for stamp in stamps if stamp.label == label]
        stamp = of_label[random.integers(len(of_label))]
        colours, covered = _whole(random, size, _pose(random, stamp.picture))
        mask = covered >= 0.5
        hidden = [(other.mask & mask).sum() > MOST_HIDDEN * other.mask.sum() for other in placed]
        if any(hidden) or np.abs(picture[mask] - colours[mask]).sum(axis=1).mean() < 90:  # or hardly seen
            continue
        placed = [Placed(each.stamp, each.mask & ~mask) for each in placed] + [Placed(stamp, mask)]
        picture += covered[..., None] * (colours - picture)
        if len(placed) == wanted:
            break
    if not placed:
        return composition(seed + (1 << 50), stamps, size)
    things = sorted(placed, key=lambda thing: (thing.box[1], thing.box[0]))
    return Composition(np.clip(np.rint(picture), 0, 255).astype(np.uint8), tuple(things))


def _pose(random: np.random.Generator, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """In a size of its own, and every other one as in a mirror."""
    from PIL import Image

    longer = max(picture.shape[:2])
    side = random.uniform(min(SMALLEST, longer), longer)
    rows, columns = (max(1, round(edge * side / longer)) for edge in picture.shape[:2])
    small = np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR), np.float64)
    return small[:, ::-1] if random.random() < 0.5 else small


def _whole(random: np.random.Generator, size: int, part: npt.NDArray[np.float64]) -> tuple[Any, Any]:
    """A stamp somewhere in a picture, all of it inside: its colours [size, size, 3], and how much it covers."""
    rows, columns = part.shape[:2]
    top, left = int(random.integers(0, size - rows + 1)), int(random.integers(0, size - columns + 1))
    whole = np.zeros((size, size, 4))
    whole[top : top + rows, left : left + columns] = part
    return whole[..., :3], whole[..., 3] / 255


# Rows -----------------------------------------------------------------------------------------------------------------


def rows(
    made: Composition, image: str, random: np.random.Generator, codec: MaskCodec | None = None
) -> Iterator[dict[str, Any]]:
    """Its boxes, and with a codec of some scenes the masks, of others what it shows."""
    yield _objects_row(made, image, random, None)
    kind = random.random()
    if codec is not None and kind < MASKED:
        yield _objects_row(made, image, random, codec)
    elif codec is not None and kind < MASKED + CAPTIONED:
        *others, last = (thing.stamp.caption for thing in made.things)
        suffix = f"{', '.join(others)} and {last}" if others else last
        yield {"image": image, "prefix": "caption en", "suffix": suffix}


def _objects_row(made: Composition, image: str, random: np.random.Generator, codec: MaskCodec | None) -> dict[str, Any]:
    """All labels in their order, or some, of which the scene mostly has one."""
    labels = list(LABELS)
    if random.random() < 0.5:
        there = [thing.stamp.label for thing in made.things if random.random() < 0.7]
        labels = list(dict.fromkeys([*there, *random.choice(labels, random.integers(1, 3), replace=False).tolist()]))
        random.shuffle(labels)
    wanted = [thing for thing in made.things if thing.stamp.label in labels]
    objects: list[dict[str, Any]] = []
    for thing in sorted(wanted, key=lambda thing: labels.index(thing.stamp.label)):
        objects.append({"label": thing.stamp.label, "box": thing.box})
        if codec is not None:
            objects[-1]["mask"] = list(codec.encode(cut(thing.mask, thing.box)))
    task = "detect" if codec is None else "segment"
    return {"image": image, "prefix": f"{task} {' ; '.join(labels)}", "objects": objects}


def write(out: Path, name: str, count: int, stamps: Sequence[Stamp], codec: MaskCodec | None) -> int:
    """out/NAME.jsonl and its pictures in out/pictures/NAME/; how many rows there are."""
    from PIL import Image

    (out / "pictures" / name).mkdir(parents=True, exist_ok=True)
    written: list[dict[str, Any]] = []
    for number in range(count):
        seed, image = SEEDS[name] + number, f"pictures/{name}/{number:05d}.png"
        made = composition(seed, stamps)
        Image.fromarray(made.picture).save(out / image, compress_level=1)
        written += rows(made, image, np.random.default_rng([seed, 1]), codec)
    return write_rows(out / f"{name}.jsonl", written)


# Measuring ------------------------------------------------------------------------------------------------------------


def matched(made: Composition, completion: PictureCompletion) -> dict[str, Matched]:
    """Of every label that is in the scene or was found there."""
    found = {}
    for label in dict.fromkeys([*(thing.stamp.label for thing in made.things), *(b.label for b in completion.boxes)]):
        boxes = [box for box in completion.boxes if box.label == label]
        truths = [thing.box for thing in made.things if thing.stamp.label == label]
        overlaps = box_overlaps([box.xyxy for box in boxes], truths)
        found[label] = match([box.score or 0.0 for box in boxes], overlaps)
    return found


def measure(name: str, adapter: Path | None, sets: dict[str, list[Composition]]) -> dict[str, Any]:
    """mAP@0.5 of each set, every scene asked for all labels at once."""
    measured = {}
    with gemmary.load(name, **({"adapter": str(adapter)} if adapter else {})) as model:
        for each, scenes in sets.items():
            found: list[PictureCompletion] = []
            for start in range(0, len(scenes), TOGETHER):
                pictures = [made.picture for made in scenes[start : start + TOGETHER]]
                found += model.find_objects(pictures, list(LABELS))
            pairs = [matched(made, completion) for made, completion in zip(scenes, found, strict=True)]
            measured[each] = {key: round(value, 3) for key, value in interval(pairs, mean_precision).items()}
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("stamps"), metavar="FOLDER")
    parser.add_argument("--pictures", type=int, default=4000, help="to train on (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=200, help="pictures of each set that measures")
    parser.add_argument("--codec", type=Path, metavar="FILE", help="write rows with masks, and captions, too")
    parser.add_argument("--measure", metavar="MODEL")
    parser.add_argument("--adapter", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    every = stamps(fetch(TUXPAINT))
    known, new = ([stamp for stamp in every if stamp.is_apart == apart] for apart in (False, True))
    if arguments.measure is not None:
        sets = {
            name: [composition(SEEDS[name] + i, some) for i in range(arguments.held_out)]
            for name, some in (("known", known), ("new", new))
        }
        print(json.dumps(measure(arguments.measure, arguments.adapter, sets)))
        return
    codec = MaskCodec.open(arguments.codec) if arguments.codec else None
    print(f"{len(known)} stamps to learn from, {len(new)} to measure by")
    for name, count in (("train", arguments.pictures), ("valid", 100)):
        print(f"{arguments.out / name}.jsonl: {write(arguments.out, name, count, known, codec):,} rows")


if __name__ == "__main__":
    main()
