"""Q4_K and Q6_K as we make them: read by the `gguf` package as by us, and near to what was meant."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, dequantize, quantize

MADE = ("Q4_K", "Q6_K")
Float = npt.NDArray[np.float32]


def weights(kind: str) -> Float:
    rng = np.random.default_rng(5)
    shape = (24, 768)
    drawn = {
        "normal": rng.standard_normal(shape),
        "long tails": rng.standard_t(3, shape),
        "all above zero": rng.uniform(1, 2, shape),
        "rows of any size": rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, (24, 1)),
    }
    return (drawn[kind] * 0.02).astype(np.float32)


def made(format: str, x: Float) -> Float:
    return dequantize(format, quantize(format, x))


def squared(format: str, x: Float) -> float:
    """The squared error over that of zeros."""
    return float(np.square(made(format, x) - x).sum() / np.square(x).sum())


@pytest.mark.parametrize("kind", ["normal", "long tails", "all above zero", "rows of any size"])
def test_the_error_is_below_that_of_as_many_bits(kind: str) -> None:
    x = weights(kind)
    assert squared("Q4_K", x) < 0.75 * squared("Q4_0", x)
    assert squared("Q6_K", x) < 0.35 * squared("Q5_0", x)


@pytest.mark.parametrize("format", MADE)
@pytest.mark.parametrize("kind", ["normal", "long tails"])
def test_no_other_code_is_nearer(format: str, kind: str) -> None:
    """Of every part: what its scale reaches is within half of a step of it, so each error is at most that of the two
    values that stand around it in the part."""
    x = weights(kind)
    found = made(format, x)
    length = 32 if format == "Q4_K" else 16
    for part, values in zip(x.reshape(-1, length), found.reshape(-1, length), strict=True):
        nearest = np.abs(part[:, None] - values[None]).min(axis=1)
        assert np.array_equal(np.abs(part - values), nearest)


@pytest.mark.parametrize("format", MADE)
def test_the_gguf_package_reads_the_same(format: str) -> None:
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    for kind in ("normal", "rows of any size"):
        data = quantize(format, weights(kind))
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format])
        assert np.array_equal(dequantize(format, data).view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("format", MADE)
def test_rows_of_one_value(format: str) -> None:
    assert not made(format, np.zeros((2, 512), np.float32)).any()
    for value in (1.0, -1.0, 1e-3, -300.0):  # for 1e-3 float16 is so coarse that only the integers can be near
        found = made(format, np.full((1, 256), value, np.float32))
        assert np.abs(found / np.float32(value) - 1).max() < (0.5 / 63 if abs(value) < 0.01 else 1e-3)


@pytest.mark.parametrize("format", MADE)
@pytest.mark.parametrize("large", [3.0, -3.0])
def test_one_outlier_spoils_its_part_alone(format: str, large: float) -> None:
    """It is kept, and the other parts are no worse than steps of one part in 63 of the largest allow."""
    x = weights("normal")[:1, :256].copy()
    x[0, 100] = large
    found = made(format, x)
    assert abs(found[0, 100] / large - 1) < 0.01
    others = np.r_[0:96, 128:256]
    assert np.abs(found - x)[0, others].max() < abs(large) / 63
    assert np.abs(found - x)[0, others].max() < np.abs(x[0, others]).max()


@pytest.mark.parametrize("format", MADE)
def test_half_a_block_of_zeros_stays_zero(format: str) -> None:
    x = weights("normal")[:1, :256].copy()
    x[0, 128:] = 0
    assert not made(format, x)[0, 128:].any()


@pytest.mark.parametrize("format", MADE)
def test_vanishing_weights_become_zero(format: str) -> None:
    for value in (1e-44, 1e-38, 1e-20, -1e-20):
        assert not made(format, np.full((1, 256), value, np.float32)).any()


@pytest.mark.parametrize("format", MADE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38, 1e9])
def test_weights_without_a_scale_are_refused(format: str, bad: float) -> None:
    x = np.zeros((2, 256), dtype=np.float32)
    x[1, 5] = bad
    with pytest.raises(GemmaryError, match="cannot be quantized"):
        quantize(format, x)


@pytest.mark.parametrize("format", MADE)
def test_a_row_is_the_same_among_others(format: str) -> None:
    """Loading, writing and checking take rows in pieces of different sizes."""
    x = weights("normal")
    whole = quantize(format, x)
    assert whole.shape == (24, 3 * BLOCK_SIZES[format][1])
    for rows in (slice(0, 1), slice(5, 12), slice(23, 24)):
        assert np.array_equal(quantize(format, x[rows]), whole[rows])


@pytest.mark.parametrize("format", MADE)
def test_rows_that_do_not_divide_are_refused(format: str) -> None:
    with pytest.raises(GemmaryError, match=f"rows of 640 weights do not divide into {format} blocks of 256"):
        quantize(format, np.zeros((1, 640), np.float32))
