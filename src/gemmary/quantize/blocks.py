"""GGUF's block types in numpy, exactly as ggml defines them: what the bytes of a block mean, and blocks of 32 made
(those of 256: kquants.py).

A row of C weights is C / size blocks of `size` weights each. Scales are float16, widened before use; products and sums
are single float32 operations in ggml's order, so results equal its reference code bit for bit. Letters: B blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.kquants import make_q4_k, make_q6_k

Bytes = npt.NDArray[Any]
"""uint8. (The stubs of numpy call a shifted uint8 a signed integer.)"""
Float = npt.NDArray[np.float32]

BLOCK_SIZES: dict[str, tuple[int, int]] = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Weights and bytes of a block (ggml-common.h)."""

_CHUNK = 1 << 19
"""Weights handled at once, so that temporaries stay in the cache and small beside the result."""


def row_bytes(format: str, columns: int) -> int:
    """Bytes of a row of `columns` weights. Raises GemmaryError where they do not divide into blocks."""
    if format not in BLOCK_SIZES:
        raise GemmaryError(f"{format} is not a block type: choose {', '.join(BLOCK_SIZES)}")
    size, nbytes = BLOCK_SIZES[format]
    if columns % size:
        raise GemmaryError(f"rows of {columns} weights do not divide into {format} blocks of {size}")
    return columns // size * nbytes


def dequantize(format: str, data: Bytes) -> Float:
    """uint8 [rows, bytes a row] -> float32 [rows, columns]."""
    size, nbytes = BLOCK_SIZES[format]
    rows, width = data.shape
    if width % nbytes:
        raise GemmaryError(f"rows of {width} bytes do not divide into {format} blocks of {nbytes}")
    out = np.empty((rows, width // nbytes * size), dtype=np.float32)
    step = max(1, _CHUNK // max(1, out.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):  # a hostile file may hold infinite scales; they stay as they are
        for start in range(0, rows, step):
            chunk = np.ascontiguousarray(data[start : start + step]).reshape(-1, nbytes)
            out[start : start + step] = _DEQUANTIZE[format](chunk).reshape(-1, out.shape[1])
    return out


def quantize(format: str, array: npt.NDArray[Any]) -> Bytes:
    """float32 [rows, columns] -> uint8 [rows, bytes a row]. Formats: those of `MADE`. Blocks of 32 weights are those
    of ggml's reference rounding; for blocks of 256 there is no such reference, and a search finds the scales.

    Raises GemmaryError for another format, rows that do not divide into blocks, and weights that are not finite or
    too large for a float16 scale.
    """
    if format not in _QUANTIZE:
        raise GemmaryError(f"quantizing to {format} is not supported: choose {', '.join(_QUANTIZE)}")
    rows, columns = array.shape
    size, _ = BLOCK_SIZES[format]
    out = np.empty((rows, row_bytes(format, columns)), dtype=np.uint8)
    step = max(1, _CHUNK // max(1, columns))
    for start in range(0, rows, step):
        blocks = np.asarray(array[start : start + step], dtype=np.float32).reshape(-1, size)
        out[start : start + step] = _QUANTIZE[format](blocks).reshape(-1, out.shape[1])
    return out


# Making blocks ----------------------------------------------------------------------------------------------------


def _scales(d: Float) -> tuple[Bytes, Float]:
    """float32 scales [B, 1] -> their float16 bytes [B, 2] and their reciprocals (0 where there is none)."""
    if not np.all(np.abs(d) <= np.float32(65504.0)):  # false for NaN too
        raise GemmaryError("weights that are not finite, or too large for a float16 scale, cannot be quantized")
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        inverse = np.float32(1.0) / d
        half = d.astype(np.float16)
    return half.view(np.uint8), np.where(np.isfinite(inverse), inverse, np.float32(0.0))


def _make_q8_0(x: Float) -> Bytes:
    """d = max |x| / 127; q = x / d, halves rounded away from zero (C's roundf)."""
    half, inverse = _scales(np.abs(x).max(axis=1, keepdims=True) / np.float32(127.0))
    scaled = x * inverse
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    q = np.copysign(whole + (magnitude - whole >= np.float32(0.5)), scaled).astype(np.int8)
    return np.concatenate([half, q.view(np.uint8)], axis=1)


def _make_q4_0(x: Float) -> Bytes:
    """d = (the x of largest magnitude) / -8, so that it becomes 0; q = trunc(x / d + 8.5), at most 15."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    half, inverse = _scales(peak / np.float32(-8.0))
    q = np.minimum(x * inverse + np.float32(8.5), np.float32(15.0)).astype(np.uint8)
    return np.concatenate([half, q[:, :16] | q[:, 16:] << 4], axis=1)


def _make_q5_0(x: Float) -> Bytes:
    """As Q4_0, with d = (the x of largest magnitude) / -16; the fifth bits stand together as one 32-bit word."""
    peak = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    half, inverse = _scales(peak / np.float32(-16.0))
    q = np.minimum(x * inverse + np.float32(16.5), np.float32(31.0)).astype(np.uint8)
    return np.concatenate([half, *_five_bits(q)], axis=1)


def _make_q4_1(x: Float) -> Bytes:
    """d = (largest x - least x) / 15, m = least x; q = trunc((x - m) / d + 0.5), at most 15."""
    halves, q = _from_least(x, 15)
    return np.concatenate([*halves, q[:, :16] | q[:, 16:] << 4], axis=1)


def _make_q5_1(x: Float) -> Bytes:
    """As Q4_1, with 31 for 15, and the fifth bits as in Q5_0."""
    halves, q = _from_least(x, 31)
    return np.concatenate([*halves, *_five_bits(q)], axis=1)


def _from_least(x: Float, most: int) -> tuple[tuple[Bytes, Bytes], Bytes]:
    """The bytes of d and m, and codes from 0 to `most`."""
    least = x.min(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        half, inverse = _scales((x.max(axis=1, keepdims=True) - least) / np.float32(most))
    low, _ = _scales(least)
    q = np.minimum((x - least) * inverse + np.float32(0.5), np.float32(most)).astype(np.uint8)
    return (half, low), q


def _five_bits(q: Bytes) -> tuple[Bytes, Bytes]:
    """Codes below 32 -> their fifth bits [B, 4], their nibbles [B, 16]."""
    low = q & np.uint8(15)
    return np.packbits(q >> 4, axis=1, bitorder="little"), low[:, :16] | low[:, 16:] << np.uint8(4)


_QUANTIZE: dict[str, Callable[[Float], Bytes]] = {
    "Q8_0": _make_q8_0,
    "Q4_0": _make_q4_0,
    "Q4_1": _make_q4_1,
    "Q5_0": _make_q5_0,
    "Q5_1": _make_q5_1,
    "Q4_K": make_q4_k,
    "Q6_K": make_q6_k,
}
MADE = tuple(_QUANTIZE)
"""The block types that `quantize` makes."""


# Reading blocks: each takes uint8 [B, bytes] and gives float32 [B, size] ------------------------------------------


def _half(b: Bytes, at: int) -> Float:
    """The float16 at byte `at` of each block, widened: [B, 1]."""
    return np.ascontiguousarray(b[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(qs: Bytes) -> Bytes:
    """[B, n] bytes -> [B, 2n]: the low nibbles of all, then the high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=1)


def _bits(words: Bytes) -> Bytes:
    """[B, n] bytes -> [B, 8n] bits, the lowest of a byte first."""
    return np.unpackbits(words, axis=1, bitorder="little")


def _planes(qs: Bytes, width: int, shifts: tuple[int, ...], mask: int) -> Bytes:
    """Fields of `mask` at each shift, plane after plane within every `width` bytes: [B, n] -> [B, n * len(shifts)]."""
    groups = qs.reshape(len(qs), -1, 1, width) >> np.array(shifts, dtype=np.uint8)[:, None]
    return (groups & np.uint8(mask)).reshape(len(qs), -1)


def _signed(q: Bytes, zero: int) -> Float:
    return (q.astype(np.int8) - np.int8(zero)).astype(np.float32)


def _q4_0(b: Bytes) -> Float:
    return _half(b, 0) * _signed(_nibbles(b[:, 2:]), 8)


def _q4_1(b: Bytes) -> Float:
    return _half(b, 0) * _nibbles(b[:, 4:]).astype(np.float32) + _half(b, 2)


def _q5_0(b: Bytes) -> Float:
    return _half(b, 0) * _signed(_nibbles(b[:, 6:]) | _bits(b[:, 2:6]) << 4, 16)


def _q5_1(b: Bytes) -> Float:
    q: Float = (_nibbles(b[:, 8:]) | _bits(b[:, 4:8]) << 4).astype(np.float32)
    return _half(b, 0) * q + _half(b, 2)


def _q8_0(b: Bytes) -> Float:
    return _half(b, 0) * np.ascontiguousarray(b[:, 2:]).view(np.int8).astype(np.float32)


def _affine(d: Float, dmin: Float, scales: Bytes, mins: Bytes, q: Bytes) -> Float:
    """(d * scale) * q - (dmin * min), with a scale and a min for each equal share of the 256 weights."""
    groups = q.reshape(len(q), scales.shape[1], -1).astype(np.float32)
    slope, offset = d * scales.astype(np.float32), dmin * mins.astype(np.float32)
    return (slope[:, :, None] * groups - offset[:, :, None]).reshape(len(q), -1)


def _q2_k(b: Bytes) -> Float:
    """scales[16] (low nibble scale, high nibble min), qs[64], d, dmin."""
    q = _planes(b[:, 16:80], 32, (0, 2, 4, 6), 3)
    return _affine(_half(b, 80), _half(b, 82), b[:, :16] & 15, b[:, :16] >> 4, q)


def _q3_k(b: Bytes) -> Float:
    """hmask[32], qs[64], scales[12] (sixteen of 6 bits), d. A clear bit of hmask takes 4 off."""
    low = _nibbles(b[:, 96:104])
    high = _planes(b[:, 104:108], 4, (0, 2, 4, 6), 3)
    scales = _half(b, 108) * _signed(low | high << 4, 32)
    bits = _planes(b[:, :32], 32, tuple(range(8)), 1)
    q = _signed(_planes(b[:, 32:96], 32, (0, 2, 4, 6), 3) | bits << 2, 4)
    return (scales[:, :, None] * q.reshape(len(b), 16, 16)).reshape(len(b), -1)


def _k_scales(s: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes that hold eight 6-bit scales and eight 6-bit mins of Q4_K and Q5_K."""
    a, m, tops = s[:, 0:4], s[:, 4:8], s[:, 8:12]
    scales = np.concatenate([a & 63, tops & 15 | a >> 6 << 4], axis=1)
    mins = np.concatenate([m & 63, tops >> 4 | m >> 6 << 4], axis=1)
    return scales, mins


def _q4_k(b: Bytes) -> Float:
    """d, dmin, scales[12], qs[128]: 32 low nibbles, then the same 32 bytes' high nibbles, four times."""
    return _affine(_half(b, 0), _half(b, 2), *_k_scales(b[:, 4:16]), _planes(b[:, 16:], 32, (0, 4), 15))


def _q5_k(b: Bytes) -> Float:
    """d, dmin, scales[12], qh[32] (bit g of byte i: the fifth bit of weight i of group g), qs[128]."""
    fifth = _planes(b[:, 16:48], 32, tuple(range(8)), 1)
    q = _planes(b[:, 48:], 32, (0, 4), 15) | fifth << 4
    return _affine(_half(b, 0), _half(b, 2), *_k_scales(b[:, 4:16]), q)


def _q6_k(b: Bytes) -> Float:
    """ql[128], qh[64], scales[16] (int8), d."""
    q = _signed(_planes(b[:, :128], 64, (0, 4), 15) | _planes(b[:, 128:192], 32, (0, 2, 4, 6), 3) << 4, 32)
    scales = _half(b, 208) * np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return (scales[:, :, None] * q.reshape(len(b), 16, 16)).reshape(len(b), -1)


_DEQUANTIZE: dict[str, Callable[[Bytes], Float]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
