"""Shapes as outlines that fill the square from -1 to 1, and their colours: what scenes are composed of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
FINENESS = 4
"""Points a pixel side at which a shape is drawn, before it is averaged to pixels."""


def _circle(radius: float = 1.0) -> Float64:
    angles = np.arange(48) * (2 * np.pi / 48)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross() -> Float64:
    arm = 0.36
    quarter = np.array([(arm, 1.0), (arm, arm), (1.0, arm)])
    corners = [quarter]
    for _ in range(3):
        corners.append(np.stack([corners[-1][:, 1], -corners[-1][:, 0]], axis=1))  # a quarter turn
    return np.concatenate(corners)


def _heart() -> Float64:
    t = np.arange(64) * (2 * np.pi / 64)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 16, y / 16], axis=1)


def _star() -> Float64:
    angles = np.arange(10) * (2 * np.pi / 10) - np.pi / 2
    radii = np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


@dataclass(frozen=True)
class Shape:
    outline: Callable[[], Float64]
    """[points, 2], x and y, y downwards."""
    turn: float
    """Degrees that it may be turned by, either way: what leaves it told apart from the others."""
    hole: float = 0.0
    """Radius of a round hole in its middle."""


SHAPES = {
    "circle": Shape(_circle, 0),
    "square": Shape(lambda: 0.9 * np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]), 15),
    "triangle": Shape(lambda: np.array([(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]), 180),
    "cross": Shape(_cross, 45),
    "ring": Shape(_circle, 0, hole=0.55),
    "heart": Shape(_heart, 25),
}
"""What the vision starter is trained on."""
NEW = {"star": Shape(_star, 36)}
"""What it has never seen (`recipes.new_object`)."""

COLOURS = {
    "red": (225, 30, 30),
    "green": (30, 190, 45),
    "blue": (35, 55, 225),
    "yellow": (245, 225, 35),
    "brown": (140, 75, 35),
    "teal": (0, 130, 130),
    "gray": (128, 128, 128),
    "black": (15, 15, 15),
}
"""Those of easy-vqa, by about its values."""


def coverage(shape: Shape, radius: float, stretch: float, degrees: float) -> npt.NDArray[np.float32]:
    """How much of each pixel a shape covers, cut to its extent: [rows, columns] from 0 to 1.

    radius: pixels, of the square that the outline fills. stretch: width over height is multiplied by its square.
    """
    from PIL import Image, ImageDraw

    angle = np.deg2rad(degrees)
    turned = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])

    def placed(points: Float64) -> Float64:
        scaled: Float64 = (points * (stretch, 1 / stretch)) @ turned * radius
        return scaled

    outline = placed(shape.outline())
    low = np.floor(outline.min(axis=0)) - 1
    width, height = (np.ceil(outline.max(axis=0)) + 1 - low).astype(int)
    fine = Image.new("L", (int(width) * FINENESS, int(height) * FINENESS))
    draw = ImageDraw.Draw(fine)
    draw.polygon([tuple(point) for point in (outline - low) * FINENESS], fill=255)
    if shape.hole:
        draw.polygon([tuple(point) for point in (placed(_circle(shape.hole)) - low) * FINENESS], fill=0)
    blocks = np.asarray(fine, dtype=np.float32).reshape(height, FINENESS, width, FINENESS)
    covered: npt.NDArray[np.float32] = blocks.mean(axis=(1, 3)) / 255
    inside = covered >= 0.5
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    return covered[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
