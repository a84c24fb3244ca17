"""Q4_K and Q6_K blocks of 256 weights made: a scale for each part of a block (in Q4_K a least value too), searched for.

A weight of Q4_K is d·s·q - e·m: q has 4 bits, s and m have 6 for each of eight parts of 32 weights, d and e float16.
One of Q6_K is d·s·q: q has 6 bits, s has 8 for each of sixteen parts of 16, both signed, d is float16 (ggml-common.h).
What is made small is the squared error of each part:

1. For each part alone a few shrunken ranges are tried. Each gives codes q, to which scale and least value are fitted by
   least squares; the best of these fits is kept.
2. The largest of a block set its float16s, in whose steps every part gets its integers, rounded to nearest.
3. In Q4_K, where those steps are coarse, each part takes the best of these integers and their neighbours.
4. With all that known, each weight gets the nearest code.

Letters: B blocks, P parts of a block, J weights of a part. Arrays are [J, B, P], so that one weight of all parts is
contiguous.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.grids import Grid, symmetric

Bytes = npt.NDArray[Any]
Float = npt.NDArray[np.float32]

_RANGES = ((1, 1), (0.93, 1), (1, 0.93), (0.93, 0.93), (0.86, 0.93), (0.93, 0.86), (0.86, 0.86), (0.8, 0.8))
"""Tried shares of a part's range, below zero and above."""
_NEIGHBOURS = tuple(product((0, -1, 1), repeat=2))
"""Steps from the integers of a scale and a least value; none first, so that it wins where nothing is gained."""
_VANISHING = np.float32(1e-30)
"""Scales below this have no reciprocal in float32, and are zero in float16 anyway."""
_SIX_BITS = Grid(-32, 31, False)


def make_q4_k(x: Float) -> Bytes:
    """Weights [B, 256] -> blocks uint8 [B, 144]. Raises GemmaryError for weights that float16 scales cannot reach."""
    x_JBP = _parts(x, 8, largest=65504 * 63 * 15)
    scale, least = _fitted_ranges(x_JBP)
    d, e = _half(scale.max(axis=1) / 63), _half(least.max(axis=1) / 63)
    s, m = _integers(scale, d, 0, 63), _integers(least, e, 0, 63)
    s, m = _best_neighbours(x_JBP, d, e, s, m)
    q = _codes(x_JBP, d[:, None] * s, e[:, None] * m).astype(np.uint8).transpose(1, 2, 0)
    return np.concatenate(
        [_bytes(d), _bytes(e), _six_bits(s, m), (q[:, 0::2] | q[:, 1::2] << np.uint8(4)).reshape(len(x), 128)], axis=1
    )


def make_q6_k(x: Float) -> Bytes:
    """Weights [B, 256] -> blocks uint8 [B, 210]. Raises GemmaryError for weights that float16 scales cannot reach."""
    x_JBP = _parts(x, 16, largest=65504 * 127 * 31)
    flat = x_JBP.reshape(16, -1)
    scale = symmetric(_SIX_BITS, flat, np.ones((16, 1), np.float32)).reshape(len(x), 16)
    d = _half(np.abs(scale).max(axis=1) / 127)
    s = _integers(scale, d, -127, 127)
    q = np.clip(np.rint(x_JBP * _inverse(d[:, None] * s)), -32, 31)
    raised = (q + 32).astype(np.uint8).transpose(1, 2, 0).reshape(len(x), 2, 4, 32)  # halves, and quarters of these
    nibbles = (raised[:, :, :2] & 15) | (raised[:, :, 2:] & 15) << np.uint8(4)
    high = raised >> 4
    pairs = high[:, :, 0] | high[:, :, 1] << np.uint8(2) | high[:, :, 2] << np.uint8(4) | high[:, :, 3] << np.uint8(6)
    return np.concatenate(
        [nibbles.reshape(len(x), 128), pairs.reshape(len(x), 64), s.astype(np.int8).view(np.uint8), _bytes(d)], axis=1
    )


def _parts(x: Float, count: int, largest: float) -> Float:
    """[B, 256] -> [J, B, count]. Weights beyond the largest are refused before their squares overflow."""
    if not np.all(np.abs(x) <= np.float32(largest)):  # false for NaN too
        raise GemmaryError("weights that are not finite, or too large for a float16 scale, cannot be quantized")
    return np.ascontiguousarray(x.reshape(len(x), count, -1).transpose(2, 0, 1))


def _fitted_ranges(x: Float) -> tuple[Float, Float]:
    """Scales and least values [B, P], none below zero, of the best of the tried ranges."""
    bottom, top = np.minimum(x.min(axis=0), 0), x.max(axis=0)
    count, sum_x = np.float32(len(x)), x.sum(axis=0)
    best, scale, least = np.full(bottom.shape, np.inf, np.float32), np.zeros_like(bottom), np.zeros_like(bottom)
    for below, above in _RANGES:
        low = bottom * np.float32(below)
        q = _codes(x, (top * np.float32(above) - low) / 15, -low)
        sum_q, sum_qq, sum_qx = q.sum(axis=0), np.einsum("jbp,jbp->bp", q, q), np.einsum("jbp,jbp->bp", q, x)
        spread = count * sum_qq - sum_q**2
        with np.errstate(divide="ignore", invalid="ignore"):
            line = np.where(spread > 0, (count * sum_qx - sum_q * sum_x) / spread, np.float32(0))
            through_zero = np.where(sum_qq > 0, sum_qx / sum_qq, np.float32(0))
        offset = (line * sum_q - sum_x) / count
        slope = np.maximum(np.where(offset >= 0, line, through_zero), 0)
        offset = np.maximum(offset, 0)
        error = slope**2 * sum_qq + count * offset**2 - 2 * (slope * offset * sum_q + slope * sum_qx - offset * sum_x)
        better = error < best
        best = np.where(better, error, best)
        scale, least = np.where(better, slope, scale), np.where(better, offset, least)
    return scale, least


def _best_neighbours(x: Float, d: Float, e: Float, s: Float, m: Float) -> tuple[Float, Float]:
    """Integers [B, P] of scales and least values that are at most one off and give each part its least error."""
    best, chosen_s, chosen_m = np.full(s.shape, np.inf, np.float32), s, m
    for more_s, more_m in _NEIGHBOURS:
        tried_s, tried_m = np.clip(s + more_s, 0, 63), np.clip(m + more_m, 0, 63)
        scale, least = d[:, None] * tried_s, e[:, None] * tried_m
        residue = _codes(x, scale, least)
        residue *= scale
        residue -= least
        residue -= x
        error = np.einsum("jbp,jbp->bp", residue, residue)
        better = error < best
        best = np.where(better, error, best)
        chosen_s, chosen_m = np.where(better, tried_s, chosen_s), np.where(better, tried_m, chosen_m)
    return chosen_s, chosen_m


def _codes(x: Float, scale: Float, least: Float) -> Float:
    """The integer of 0 to 15 that is nearest to each weight: [J, B, P]. A scale of 0 gives 0."""
    q: Float = x + least
    q *= _inverse(scale)
    np.rint(q, out=q)
    np.clip(q, np.float32(0), np.float32(15), out=q)
    return q


def _inverse(scale: Float) -> Float:
    """Reciprocals; of a scale that vanishes 0."""
    found = np.zeros_like(scale)
    np.divide(np.float32(1), scale, out=found, where=np.abs(scale) > _VANISHING)
    return found


def _integers(values: Float, unit: Float, low: int, high: int) -> Float:
    """Values [B, P] in units [B], rounded to nearest."""
    found: Float = np.clip(np.rint(values * _inverse(unit)[:, None]), np.float32(low), np.float32(high))
    return found


def _half(values: Float) -> Float:
    """The least float16s that are not below values [B], as float32: were they below, the integers would not reach the
    largest part's scale. (Where float16 is coarsest that is no small matter: weights of 0.001 have d = 2.5e-7.)"""
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
        found = np.where(half < values, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)
    if not np.isfinite(found).all():
        raise GemmaryError("weights that are too large for a float16 scale cannot be quantized")
    return found


def _bytes(values: Float) -> Bytes:
    """float32 [B] that float16 holds -> its bytes [B, 2]."""
    return values.astype(np.float16)[:, None].view(np.uint8)


def _six_bits(s: Float, m: Float) -> Bytes:
    """Eight scales and eight least values below 64 [B, 8] -> their 12 bytes (`blocks._k_scales` reads them)."""
    scales, mins = s.astype(np.uint8), m.astype(np.uint8)
    tops = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, mins)]
    return np.concatenate([*tops, scales[:, 4:] & 15 | mins[:, 4:] << 4], axis=1)
