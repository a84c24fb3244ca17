"""Pictures side by side, each with what was found in it and a text below."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemmary.vision.boxes import Mask
from gemmary.vision.draw import draw

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 2
ACROSS = 4
LINES, LINE = 3, 14
"""Lines of text below a picture, and pixels of each."""


def sheet(shown: Sequence[tuple[npt.NDArray[np.uint8], Sequence[Mask], str]]) -> Image:
    """shown: pictures of one size, masks in their pixels, texts."""
    from PIL import Image, ImageDraw, ImageFont

    side = shown[0][0].shape[0] * SCALE
    high = side + LINES * LINE + 8
    whole = Image.new("RGB", (ACROSS * (side + 8), -(-len(shown) // ACROSS) * high), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=LINE - 3)
    for number, (picture, masks, text) in enumerate(shown):
        left, top = number % ACROSS * (side + 8) + 4, number // ACROSS * high + 4
        enlarged = Image.fromarray(picture.repeat(SCALE, axis=0).repeat(SCALE, axis=1))
        whole.paste(draw(enlarged, (), [_enlarged(mask) for mask in masks]), (left, top))
        for line, words in enumerate(textwrap.wrap(text, 44)[:LINES]):
            pen.text((left, top + side + 2 + line * LINE), words, fill="black", font=font)
    return whole


def _enlarged(mask: Mask) -> Mask:
    left, top, right, bottom = (SCALE * edge for edge in mask.box)
    array = mask.array.repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    return replace(mask, box=(left, top, right, bottom), array=array)
