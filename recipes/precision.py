"""Average precision of boxes or masks as COCO has it, overlaps of masks, and intervals over resampled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
RECALLS = np.linspace(0, 1, 101)
SAMPLES = 1000


@dataclass(frozen=True)
class Matched:
    """What was found of one label in one picture."""

    scores: tuple[float, ...]
    right: tuple[bool, ...]
    """For each score, whether it is of a true object that nothing better was taken for."""
    truths: int
    """True objects."""


def match(scores: Sequence[float], overlaps: Float64, threshold: float = 0.5) -> Matched:
    """Takes what was found, the best score first, for the free true object that it overlaps most, from `threshold` on.

    overlaps: [found, true objects], intersections over unions.
    """
    free = np.ones(overlaps.shape[1], np.bool_)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    right = []
    for i in order:
        best = int(np.argmax(np.where(free, overlaps[i], -1.0))) if free.any() else -1
        is_right = best >= 0 and overlaps[i, best] >= threshold
        if is_right:
            free[best] = False
        right.append(is_right)
    return Matched(tuple(scores[i] for i in order), tuple(right), overlaps.shape[1])


def average_precision(pictures: Sequence[Matched]) -> float:
    """Of one label over many pictures: the mean over 101 recalls of the best precision at that recall or a higher one,
    0 where it is never reached. NaN where there is no true object."""
    truths = sum(each.truths for each in pictures)
    if truths == 0:
        return float("nan")
    scores = np.array([score for each in pictures for score in each.scores])
    right = np.array([is_right for each in pictures for is_right in each.right], np.float64)
    right = right[np.argsort(-scores, kind="stable")]
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(hits / truths, RECALLS - 1e-12)
    return float(np.mean(np.concatenate([best, [0.0]])[np.minimum(reached, len(best))]))


def mean_precision(pictures: Sequence[dict[str, Matched]]) -> float:
    """The mean over the labels that occur. pictures: label -> what was found of it, for each picture."""
    labels = list(dict.fromkeys(label for each in pictures for label in each))
    found = [average_precision([each[label] for each in pictures if label in each]) for label in labels]
    return float(np.nanmean(found))


def box_overlaps(found: Sequence[Sequence[float]], truths: Sequence[Sequence[float]]) -> Float64:
    """[found, truths]: intersections over unions of boxes, each left, top, right, bottom."""
    a = np.array(found, np.float64).reshape(-1, 1, 4)
    b = np.array(truths, np.float64).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    both = sides.prod(axis=-1)
    areas = [np.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (a, b)]
    overlaps: Float64 = both / (areas[0] + areas[1] - both)
    return overlaps


def mask_overlaps(found: Sequence[npt.NDArray[np.bool_]], truths: Sequence[npt.NDArray[np.bool_]]) -> Float64:
    """[found, truths]: the same of masks of one size."""
    pairs = [[(a & b).sum() / max(1, (a | b).sum()) for b in truths] for a in found]
    return np.array(pairs, np.float64).reshape(len(found), len(truths))


def covered(overlaps: Float64) -> list[float]:
    """For each true object the overlap of what was found for it, each taken once, the best pair first; 0 for none."""
    left = overlaps.copy()
    shares = [0.0] * left.shape[1]
    while left.size and left.max() > 0:
        i, j = np.unravel_index(int(left.argmax()), left.shape)
        shares[int(j)] = float(left[i, j])
        left[i, :], left[:, j] = 0, 0
    return shares


def interval(
    pictures: Sequence[Any], statistic: Callable[[Sequence[Any]], float], seed: int = 0
) -> dict[str, float | int]:
    """The statistic, and the 95 % interval of it over bootstrap samples of the pictures."""
    random = np.random.default_rng(seed)
    drawn = (random.integers(0, len(pictures), len(pictures)) for _ in range(SAMPLES))
    samples = [statistic([pictures[i] for i in some]) for some in drawn]
    low, high = np.nanpercentile(samples, (2.5, 97.5))
    return {"value": statistic(pictures), "low": float(low), "high": float(high), "pictures": len(pictures)}
