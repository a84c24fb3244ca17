"""The values that a block of 32 weights can hold, and which of these grids fits given weights best.

A grid is the integers [low, high] times one scale d, plus a least value m where the format has one. Formats of 32
weights only: the GGUF types Q4_0, Q5_0, Q8_0 (symmetric) and Q4_1, Q5_1 (with a least value). Letters: J the 32 weights
of a block, N blocks side by side. Arrays are [J, N], so that one weight of all blocks is contiguous.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError

Float = npt.NDArray[np.float32]
GROUP = 32
_UNFIT = "weights that are not finite, or too large for a float16 scale, cannot be quantized"


@dataclass(frozen=True)
class Grid:
    """The integers that a format multiplies by its scale."""

    low: int
    high: int
    has_least: bool
    """Whether a float16 is added, so that the integers need not lie around zero."""


GRIDS: dict[str, Grid] = {
    "Q4_0": Grid(-8, 7, False),
    "Q4_1": Grid(0, 15, True),
    "Q5_0": Grid(-16, 15, False),
    "Q5_1": Grid(0, 31, True),
    "Q8_0": Grid(-127, 127, False),
}

SHARES = (0.8, 0.87, 0.94, 1.0)
"""Tried shares of the scale at which the largest weight is reached. Below 1 it is cut off, and all others gain."""


def choose(format: str, x: Float, importance: Float) -> tuple[Float, Float]:
    """Scales and least values [N] (exactly float16, as float32) for weights x [J, N].

    They make the sum over J of importance [J, 1] times the squared error small: of the tried scales the best, and that
    one fitted by least squares to the codes that it gives. Raises GemmaryError for weights that float16 scales cannot
    reach.
    """
    grid = GRIDS[format]
    if not np.isfinite([x.min(), x.max()]).all():
        raise GemmaryError(_UNFIT)
    fitted = _affine(grid, x, importance) if grid.has_least else (symmetric(grid, x, importance), _zeros(x))
    with np.errstate(over="ignore"):
        scale, least = (each.astype(np.float16).astype(np.float32) for each in fitted)
    if not (np.isfinite(scale).all() and np.isfinite(least).all()):
        raise GemmaryError(_UNFIT)
    return scale, least


def codes(format: str, x: Float, scale: Float, least: Float) -> Float:
    """The integer of the grid that is nearest to each weight, as float32. Broadcasts; a scale of 0 gives 0."""
    grid = GRIDS[format]
    return _nearest(grid, x - least if grid.has_least else x, scale)


def pack(format: str, q: npt.NDArray[Any], scale: Float, least: Float) -> npt.NDArray[np.uint8]:
    """Codes [J, N] with their scales as GGUF blocks: uint8 [N, bytes of a block] (ggml-common.h)."""
    grid = GRIDS[format]
    parts = [scale.astype(np.float16)[:, None].view(np.uint8)]
    if grid.has_least:
        parts.append(least.astype(np.float16)[:, None].view(np.uint8))
    if format == "Q8_0":
        return np.concatenate([*parts, q.T.astype(np.int8).view(np.uint8)], axis=1)
    raised = (q.T - grid.low).astype(np.uint8)
    if grid.high - grid.low > 15:
        parts.append(np.packbits(raised >> 4, axis=1, bitorder="little"))
    low = raised & np.uint8(15)
    return np.concatenate([*parts, low[:, :16] | low[:, 16:] << np.uint8(4)], axis=1)


def _nearest(grid: Grid, x: Float, scale: Float) -> Float:
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(scale == 0, np.float32(0), np.float32(1) / scale)
        q: Float = x * inverse
    np.rint(q, out=q)
    return np.clip(q, np.float32(grid.low), np.float32(grid.high), out=q)


def _zeros(x: Float) -> Float:
    return np.zeros(x.shape[1], dtype=np.float32)


def symmetric(grid: Grid, x: Float, importance: Float) -> Float:
    """Scales [N] of a grid without a least value, for weights x [J, N] of importance [J, 1]: of the tried scales the
    best, fitted. Of either sign: a grid that reaches further below zero can be turned round."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=0)[None], axis=0)[0]
    best, scale = np.full(x.shape[1], np.float32(-1)), _zeros(x)
    ends = (grid.high,) if grid.high + grid.low == 0 else (grid.low, grid.high)
    for end in ends:
        for share in SHARES:
            q = _nearest(grid, x, peak * np.float32(share / end))
            weighted = q * importance
            along, length = np.einsum("jn,jn->n", weighted, x), np.einsum("jn,jn->n", weighted, q)
            with np.errstate(divide="ignore", invalid="ignore"):
                fit = np.where(length > 0, along / length, np.float32(0))  # least squares for these codes
            gain = fit * along  # what of the weights' (weighted) square is explained
            better = gain > best
            best, scale = np.where(better, gain, best), np.where(better, fit, scale)
    return scale


def _affine(grid: Grid, x: Float, importance: Float) -> tuple[Float, Float]:
    """Scales and least values [N]: the range shrunk from both sides, then a weighted line through codes and weights."""
    bottom, top = x.min(axis=0), x.max(axis=0)
    middle, half = (top + bottom) / 2, (top - bottom) / 2
    total = importance.sum()
    best, scale, least = np.full(x.shape[1], np.inf, np.float32), _zeros(x), _zeros(x)
    for share in SHARES:
        width = half * np.float32(share)
        q = _nearest(grid, x - (middle - width), width * np.float32(2 / grid.high))
        mean_q, mean_x = (importance * q).sum(axis=0) / total, (importance * x).sum(axis=0) / total
        spread = (importance * (q - mean_q) ** 2).sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(spread > 0, (importance * (q - mean_q) * x).sum(axis=0) / spread, np.float32(0))
        start = mean_x - slope * mean_q
        error = (importance * (slope * q + start - x) ** 2).sum(axis=0)
        better = error < best
        best = np.where(better, error, best)
        scale, least = np.where(better, slope, scale), np.where(better, start, least)
    return scale, least
