"""Objects in the terms of COCO's files: boxes as left, top, width, height; masks as run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.vision.boxes import Box, Mask


def entries(boxes: Sequence[Box], masks: Sequence[Mask]) -> list[dict[str, Any]]:
    """One for each object: `category` (its label), `bbox`, `area` (of the mask where there is one, in pixels), `score`,
    `iscrowd`, and `segmentation` for those with masks."""
    found: list[dict[str, Any]] = []
    if masks:
        for mask in masks:
            entry = _entry(mask.label, mask.box, int(mask.array.sum()), mask.score)
            found.append({**entry, "segmentation": rle(mask.array)})
        return found
    for box in boxes:
        left, top, right, bottom = box.xyxy
        found.append(_entry(box.label, box.xyxy, (right - left) * (bottom - top), box.score))
    return found


def numbered(found: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The annotations of image 1 with the numbers that COCO's tools want, and the list of categories."""
    names = list(dict.fromkeys(entry["category"] for entry in found))
    numbers = {name: number for number, name in enumerate(names, 1)}
    ids = [{"id": i, "image_id": 1, "category_id": numbers[e["category"]], **e} for i, e in enumerate(found, 1)]
    return ids, [{"id": number, "name": name} for name, number in numbers.items()]


def rle(mask: npt.NDArray[np.bool_]) -> dict[str, list[int]]:
    """[height, width] as COCO's uncompressed run lengths: column by column, pixels outside first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"counts": [int(count) for count in counts], "size": [int(side) for side in mask.shape]}


def _entry(label: str, xyxy: tuple[float, float, float, float], area: float, score: float | None) -> dict[str, Any]:
    left, top, right, bottom = xyxy
    box = [left, top, right - left, bottom - top]
    return {"category": label, "bbox": box, "area": area, "score": score, "iscrowd": 0}
