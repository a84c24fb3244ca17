"""Objects drawn over their picture: a colour for each label, masks as a veil, boxes as frames, labels with scores."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.vision.boxes import Box, Mask

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

RGB: TypeAlias = tuple[int, int, int]

COLOURS = ((230, 75, 53), (77, 187, 213), (0, 160, 135), (240, 180, 40), (60, 84, 200), (160, 90, 200), (145, 209, 95))
_VEIL = 0.45
"""Opacity of a mask."""
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def draw(image: Image, boxes: Sequence[Box], masks: Sequence[Mask] = ()) -> Image:
    """A copy of an RGB picture with these objects; where there are masks, boxes need not be given again."""
    from PIL import Image as images
    from PIL import ImageDraw as pens
    from PIL import ImageFont

    framed = [(m.label, m.box, m.score) for m in masks] or [(b.label, b.xyxy, b.score) for b in boxes]
    names = list(dict.fromkeys(label for label, _, _ in framed))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    shown = np.asarray(image, dtype=np.float32).copy()
    for mask in masks:
        shown[mask.array] = (1 - _VEIL) * shown[mask.array] + _VEIL * np.array(colours[mask.label], dtype=np.float32)
    drawn = images.fromarray(shown.round().astype(np.uint8))
    pen = pens.Draw(drawn)
    width = max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(size=max(10, round(min(image.size) / 28)))
    for label, (left, top, right, bottom), score in framed:
        pen.rectangle((left, top, right - 1, bottom - 1), outline=colours[label], width=width)
        text = label if score is None else f"{label} {score:.2f}"
        if text:
            _write(pen, font, text, (left, top), image.size, colours[label])
    return drawn


def save(image: Image, path: Path) -> None:
    """As PNG, JPEG or WebP, by the name's ending. Raises GemmaryError for another, or where it cannot be written."""
    data = encoded(image, format_of(path))
    with atomic_file(path) as file:
        file.write(data)


def format_of(path: Path) -> str:
    """What a file of this name is to be. Raises GemmaryError where its ending says nothing."""
    if path.suffix.lower() not in _FORMATS:
        raise GemmaryError(f"{path} is to be a picture: end its name in .png, .jpg or .webp")
    return _FORMATS[path.suffix.lower()]


def encoded(image: Image, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **({"quality": 92} if format != "PNG" else {}))
    return buffer.getvalue()


def _write(
    pen: ImageDraw, font: Any, text: str, corner: tuple[float, float], size: tuple[int, int], colour: RGB
) -> None:
    """A label above the box's corner, or inside where there is no room above."""
    _, _, wide, high = pen.textbbox((0, 0), text, font=font)
    left = max(0, min(corner[0], size[0] - wide - 4))
    top = corner[1] - high - 4 if corner[1] >= high + 4 else corner[1]
    pen.rectangle((left, top, left + wide + 4, top + high + 4), fill=colour)
    ink = (0, 0, 0) if 0.3 * colour[0] + 0.6 * colour[1] + 0.1 * colour[2] > 125 else (255, 255, 255)
    pen.text((left + 2, top + 1), text, fill=ink, font=font)
