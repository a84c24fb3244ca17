"""Pictures changed a little in every epoch, without making their row wrong: boxes and masks are changed with them.

- Another window of the picture, in which every box lies whole; of a row without boxes nothing is cut off. What lies
  outside the picture is black.
- A mirror image, but not of a row whose text says left or right (or something to read), or whose masks have no codec.
- Brightness, contrast and saturation, within a fifth: colours keep their names.

A change follows from (seed, epoch, document). It makes no document longer: locations and codes are single tokens.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemmary.tune.image_rows import Box, ImageRow, Thing
from gemmary.vision import objects
from gemmary.vision.masks import NUM_CODES

if TYPE_CHECKING:
    from PIL.Image import Image

    from gemmary.tokenizer import Tokenizer
    from gemmary.tune.rows import Example

OFTEN = 0.5
"""Probability of each of the three."""
OUTSIDE, CUT, COLOUR = 0.2, 0.25, 0.2
"""Shares of a side that a window goes beyond the picture or into it at most, and of a colour's strength."""
_SIDED = re.compile(r"\b(?:left|right|(?:counter|anti)?-?clockwise|east|west|ocr|read|text|letter|word)", re.IGNORECASE)


@dataclass(frozen=True)
class Change:
    """What is done to a picture."""

    window: tuple[int, int, int, int] | None
    """Left, top, right, bottom in its pixels; they may lie outside. None: all of it."""
    mirrored: bool
    brightness: float
    contrast: float
    saturation: float

    def applied(self, image: Image) -> Image:
        """An RGB picture -> the same, changed."""
        from PIL import Image as images
        from PIL import ImageEnhance

        if self.window is not None:
            image = image.crop(self.window)
        if self.mirrored:
            image = image.transpose(images.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Brightness(image).enhance(self.brightness)
        image = ImageEnhance.Contrast(image).enhance(self.contrast)
        return ImageEnhance.Color(image).enhance(self.saturation)

    def moved(self, box: Box) -> Box:
        """Where a box of the picture lies in the changed one, which is a window."""
        assert self.window is not None
        left, top, right, _ = self.window
        box = box[0] - left, box[1] - top, box[2] - left, box[3] - top
        return (right - left - box[2], box[1], right - left - box[0], box[3]) if self.mirrored else box


class Augment:
    """Changes documents with pictures. `tokenizer` tells the ids of locations and codes."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._seed = seed
        self._locations = tokenizer.find("<loc0000>")
        self._codes = tokenizer.find("<seg000>")

    def changed(self, example: Example, epoch: int, index: int) -> Example:
        """The document `index` as it is learnt in an epoch."""
        row = example.image_row
        if row is None:
            return example
        dice = random.Random(f"{self._seed} {epoch} {index}")
        change = _drawn(row, dice)
        tokens, things = example.tokens.copy(), tuple(_moved(thing, change) for thing in row.things)
        if things and change.window is not None:
            left, top, right, bottom = change.window
            placed = [objects.locations(thing.box, right - left, bottom - top) for thing in things]
            if any(y1 <= y0 or x1 <= x0 for y0, x0, y1, x1 in placed):
                return example  # a box so small that the window would leave nothing of it
            suffix = tokens[example.prefix :]
            _put(suffix, self._locations, objects.LOCATIONS, [n for each in placed for n in each])
            _put(suffix, self._codes, NUM_CODES, [code for thing in things for code in thing.codes])
        pictures = tuple(replace(picture, change=change) for picture in row.pictures)
        return replace(example, tokens=tokens, image_row=replace(row, pictures=pictures, things=things))


def _drawn(row: ImageRow, dice: random.Random) -> Change:
    placed = "<loc" in row.prefix or ("<loc" in row.suffix and not row.things)  # boxes that nobody has told of
    fixed = placed or len(row.pictures) > 1
    size = row.pictures[0].width, row.pictures[0].height
    window = (0, 0, *size) if len(row.pictures) == 1 else None
    if dice.random() < OFTEN and not fixed:
        boxes = np.array([thing.box for thing in row.things] or [(0, 0, *size)])
        left, top = (
            math.floor(dice.uniform(-OUTSIDE * side, min(first, CUT * side)))
            for first, side in zip(boxes.min(axis=0)[:2].tolist(), size, strict=True)
        )
        right, bottom = (
            math.ceil(dice.uniform(max(last, (1 - CUT) * side), (1 + OUTSIDE) * side))
            for last, side in zip(boxes.max(axis=0)[2:].tolist(), size, strict=True)
        )
        window = left, top, right, bottom
    masked = any(thing.codes and not thing.mirrored for thing in row.things)
    mirrored = dice.random() < OFTEN and not (fixed or masked or _SIDED.search(f"{row.prefix} {row.suffix}"))
    strengths = [1.0] * 3
    if dice.random() < OFTEN:
        strengths = [dice.uniform(1 - COLOUR, 1 + COLOUR) for _ in strengths]
    return Change(window, mirrored, *strengths)


def _moved(thing: Thing, change: Change) -> Thing:
    codes = thing.mirrored if change.mirrored else thing.codes
    return replace(thing, box=change.moved(thing.box), codes=codes, mirrored=())


def _put(tokens: npt.NDArray[np.int32], first: int | None, count: int, values: list[int]) -> None:
    """Puts values in the places of the tokens of one kind, in their order."""
    if first is not None:
        places = np.flatnonzero((tokens >= first) & (tokens < first + count))
        tokens[places] = np.array(values, np.int32) + first
