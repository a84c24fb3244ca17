"""Rows with pictures: `image`, `prefix` and `suffix`; or, in place of the suffix, `objects`, whose boxes and masks
become the location and code tokens that stand for them.

The prefix, pictures included, sees itself whole and is not scored; the suffix and EOS are, each token after those
before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.tune.pictures import Picture, look
from gemmary.vision import objects
from gemmary.vision.masks import NUM_CODES, MaskCodec, cut
from gemmary.vision.preprocess import open_image
from gemmary.vision.prompt import prompt_ids

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

Box = tuple[float, float, float, float]
Codec = Callable[[], MaskCodec]
"""Opens the codec, the first time that it is asked."""


@dataclass(frozen=True)
class Thing:
    """An object of a row, as it stands in the picture."""

    label: str
    box: Box
    """Left, top, right, bottom in pixels."""
    codes: tuple[int, ...] = ()
    """16 codes of its mask, or none."""
    mirrored: tuple[int, ...] = ()
    """Those of the mask's mirror image, where they were asked for and there is a codec."""


@dataclass(frozen=True)
class ImageRow:
    """A row, its pictures looked at and its objects checked."""

    pictures: tuple[Picture, ...]
    prefix: str
    suffix: str
    """What is to be learnt; that of `things` where the row has them, empty where it has none."""
    things: tuple[Thing, ...] = ()


def read_image_row(row: Mapping[str, Any], folder: Path, codec: Codec | None, mirrors: bool = False) -> ImageRow:
    """folder: what the row's paths are relative to. codec: makes codes of masks that are pictures. mirrors: of their
    mirror images, too.

    Raises GemmaryError, without the row's place, for what is missing, malformed, or does not lie in the picture.
    """
    pictures = tuple(look(folder / path) for path in _paths(row["image"]))
    prefix = _text(row, "prefix")
    if row.get("objects") is None:
        suffix = _text(row, "suffix")
        if not suffix.strip():
            raise GemmaryError("suffix is empty")
        return ImageRow(pictures, prefix, suffix)
    if len(pictures) != 1:
        raise GemmaryError("boxes need one picture that they lie in: give one image, or a suffix in place of objects")
    if not isinstance(row["objects"], list):
        raise GemmaryError(f"objects is a list of objects, empty where there are none, not {row['objects']!r}")
    things = tuple(_thing(each, pictures[0], folder, codec, mirrors) for each in row["objects"])
    return ImageRow(pictures, prefix, suffix_of(things, pictures[0]), things)


def suffix_of(things: Sequence[Thing], picture: Picture) -> str:
    """The objects of a picture as the model writes them."""
    size = picture.width, picture.height
    return objects.write([objects.Object(t.label, objects.locations(t.box, *size), t.codes) for t in things])


def spans_of(row: ImageRow, tokenizer: Tokenizer, config: Config) -> list[tuple[list[int], bool]]:
    """The prefix and the suffix as ids, and whether they are scored. Raises GemmaryError for a vocabulary without the
    tokens of the row's objects."""
    if row.things:
        tokenizer.id("<loc0000>")
        if any(thing.codes for thing in row.things):
            tokenizer.id("<seg000>")
    prefix = prompt_ids(tokenizer, config, row.prefix, len(row.pictures))
    return [(prefix, False), (tokenizer.encode(row.suffix, escape_markers=True, eos=True), True)]


def texts_of(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row as it stands, for a vocabulary to be made from; what is malformed is left out."""
    things = row.get("objects")
    labels = [each.get("label") for each in things if isinstance(each, Mapping)] if isinstance(things, list) else []
    written = " ; ".join(f"<loc0000> {label}" for label in labels)
    return [text for text in (row.get("prefix"), row.get("suffix"), written) if isinstance(text, str) and text]


def _paths(value: Any) -> list[str]:
    found = value if isinstance(value, list) else [value]
    if not found or not all(isinstance(each, str) and each for each in found):
        raise GemmaryError("image must be the path of a picture, or a list of such paths")
    return found


def _text(row: Mapping[str, Any], key: str) -> str:
    if not isinstance(row[key], str):
        raise GemmaryError(f"{key} must be a text, not {type(row[key]).__name__}")
    text: str = row[key]
    return text


def _thing(value: Any, picture: Picture, folder: Path, codec: Codec | None, mirrors: bool) -> Thing:
    if not isinstance(value, Mapping) or not isinstance(value.get("label"), str):
        raise GemmaryError('an object is {"label": "…", "box": [left, top, right, bottom]}, and may have a "mask"')
    label = " ".join(value["label"].split())
    if not label or ";" in label or "<loc" in label or "<seg" in label:
        raise GemmaryError(f"an object's label is a text without ; and tokens, not {value['label']!r}")
    box = _box(value.get("box"), picture)
    codes, mask = _codes(value.get("mask"), box, picture, folder, codec)
    mirrored: tuple[int, ...] = ()
    if codes and codec is not None and mirrors:
        mask = (codec().decode(codes) > 0).astype(np.float32) if mask is None else mask
        mirrored = codec().encode(mask[:, ::-1])
    return Thing(label, box, codes, mirrored)


def _box(value: Any, picture: Picture) -> Box:
    sides = value if isinstance(value, list | tuple) else []
    if len(sides) != 4 or not all(isinstance(n, int | float) and math.isfinite(n) for n in sides):
        raise GemmaryError(f"a box is [left, top, right, bottom] in pixels, not {value!r}")
    left, top, right, bottom = (float(side) for side in sides)
    inside = 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
    y0, x0, y1, x1 = objects.locations((left, top, right, bottom), picture.width, picture.height)
    if not inside or y1 <= y0 or x1 <= x0:
        size = f"{picture.width} x {picture.height}"
        raise GemmaryError(f"the box {list(sides)} is empty or not within the picture of {size} pixels")
    return left, top, right, bottom


def _codes(
    value: Any, box: Box, picture: Picture, folder: Path, codec: Codec | None
) -> tuple[tuple[int, ...], npt.NDArray[np.float32] | None]:
    """The codes, and the mask in its box where it was a picture."""
    if value is None:
        return (), None
    if isinstance(value, list):
        if len(value) != objects.CODES or not all(type(n) is int and 0 <= n < NUM_CODES for n in value):
            raise GemmaryError(f"a mask is the path of a picture, or {objects.CODES} codes from 0 to {NUM_CODES - 1}")
        return tuple(value), None
    if not isinstance(value, str):
        raise GemmaryError(f"a mask is the path of a picture, or {objects.CODES} codes, not {type(value).__name__}")
    if codec is None:
        raise GemmaryError("a mask that is a picture needs a codec: name its .npz file with --mask-codec")
    drawn = np.asarray(open_image(folder / value).convert("L")) > 127
    if drawn.shape != (picture.height, picture.width):
        raise GemmaryError(f"the mask {value} is not of its picture's size, {picture.width} x {picture.height} pixels")
    mask = cut(drawn, box)
    return codec().encode(mask), mask
