"""Objects as people want them: boxes and masks in the picture's own pixels, with scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gemmary.generate import Completion
from gemmary.tokenizer import Tokenizer
from gemmary.vision import objects
from gemmary.vision.masks import MaskCodec, paste
from gemmary.vision.objects import Object

XYXY = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """An object that a model has found."""

    label: str
    xyxy: XYXY
    """Left, top, right, bottom in pixels of the picture, from its upper left corner."""
    score: float | None
    """From 0 to 1: the geometric mean of the probabilities of its four location tokens, times the probability of its
    label behind them; all of them the model's own, over the whole vocabulary. It ranks objects and is not calibrated.
    None where the log-probabilities of the tokens are not known."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The pixels of an object."""

    label: str
    box: XYXY
    array: npt.NDArray[np.bool_]
    """[height, width] of the whole picture, true inside."""
    score: float | None
    """As `Box.score`; the codes of the mask do not count."""


Found = TypeVar("Found", Box, Mask)


def score(tokenizer: Tokenizer, completion: Completion, found: Object) -> float | None:
    """See `Box.score`."""
    if completion.logprobs is None:
        return None
    locations: list[float] = []
    label: list[float] = []
    begin, end = found.span
    label_end = completion.text.index(found.label, end) + len(found.label)
    stream, at = tokenizer.stream(), 0
    for each in completion.logprobs:
        start, at = at, at + len(stream.push(each.token))
        if at > begin and start < end and len(locations) < 4:
            locations.append(each.logprob)
        elif end <= start < label_end:
            label.append(each.logprob)
    return math.exp(sum(locations) / 4 + sum(label))


def boxes(tokenizer: Tokenizer, completion: Completion, width: int, height: int) -> list[Box]:
    """The objects that a text names, in its order; without those that are malformed (`objects.parse`)."""
    found, _ = objects.parse(completion.text)
    return [Box(each.label, each.box(width, height), score(tokenizer, completion, each)) for each in found]


def masks(
    tokenizer: Tokenizer, completion: Completion, width: int, height: int, codec: Callable[[], MaskCodec]
) -> list[Mask]:
    """The objects of a text that have masks. codec: called if there is one to decode."""
    found = []
    for each in objects.parse(completion.text)[0]:
        if each.codes:
            box = each.box(width, height)
            array = paste(codec().decode(each.codes), box, width, height)
            found.append(Mask(each.label, box, array, score(tokenizer, completion, each)))
    return found


def merge(found: Sequence[Found], iou: float) -> list[Found]:
    """Without those whose box overlaps that of a better one of the same label by `iou` or more, in the same order.

    Where scores are not known, the earlier one is the better.
    """
    kept: list[int] = []
    for index in sorted(range(len(found)), key=lambda index: -(found[index].score or 0.0)):
        mine = found[index]
        rivals = [found[other] for other in kept if found[other].label == mine.label]
        if all(overlap(_xyxy(mine), _xyxy(other)) < iou for other in rivals):
            kept.append(index)
    return [found[index] for index in sorted(kept)]


def overlap(a: XYXY, b: XYXY) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _xyxy(found: Box | Mask) -> XYXY:
    return found.xyxy if isinstance(found, Box) else found.box
