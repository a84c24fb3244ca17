"""GGUF blocks against the `gguf` package, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, dequantize, quantize, row_bytes
from gemmary.quantize.leaves import Blocks

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

MADE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
"""The types whose making ggml's reference code defines; test_kquants.py has the others."""

SCALES = {  # bytes of a block that hold float16 scales
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(format: str, rows: int, blocks: int, seed: int) -> np.ndarray:
    """Random bytes everywhere, but finite float16 scales of either sign, denormal ones among them."""
    rng = np.random.default_rng(seed)
    nbytes = BLOCK_SIZES[format][1]
    data = rng.integers(0, 256, (rows * blocks, nbytes), dtype=np.uint8)
    for at in SCALES[format]:
        scales = (rng.standard_normal(len(data)) * 10.0 ** rng.integers(-7, 2, len(data))).astype(np.float16)
        data[:, at : at + 2] = scales[:, None].view(np.uint8)
    return data.reshape(rows, blocks * nbytes)


@pytest.mark.parametrize("format", BLOCK_SIZES)
def test_dequantize_equals_ggml(format: str) -> None:
    data = random_blocks(format, rows=7, blocks=3, seed=1)
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format])
    found = dequantize(format, data)
    assert found.dtype == np.float32
    assert found.shape == (7, 3 * BLOCK_SIZES[format][0])
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("format", BLOCK_SIZES)
def test_sizes_equal_ggml(format: str) -> None:
    assert BLOCK_SIZES[format] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[format]]


def test_many_rows_are_chunked_without_a_seam() -> None:
    data = random_blocks("Q4_K", rows=1100, blocks=2, seed=2)
    whole = dequantize("Q4_K", data)
    assert np.array_equal(whole[1023:1026], dequantize("Q4_K", data[1023:1026]))
    leaf = Blocks("Q4_K", (1100, 512), data)
    index = np.array([1099, 0, 1024, 1024])
    assert np.array_equal(leaf.rows(index), whole[index])


def hard_weights() -> np.ndarray:
    """Normal weights, zeros, exact ties, one large among small, tiny ones, both signs at the same magnitude."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((64, 96)).astype(np.float32) * (10.0 ** rng.integers(-4, 3, (64, 1))).astype(np.float32)
    x[0] = 0
    x[1, :32] = 0
    x[2] = np.arange(96) - 48
    x[3] = np.where(np.arange(96) % 2, 1.0, -1.0)
    x[4] = (np.arange(96) - 40) / 2
    x[5, :32] = np.linspace(-127, 127, 32).round() / 2
    x[6] *= 1e-30
    return x


@pytest.mark.parametrize("format", MADE)
def test_quantize_equals_ggml(format: str) -> None:
    x = hard_weights()
    expected = gguf.quants.quantize(x, gguf.GGMLQuantizationType[format])
    assert np.array_equal(quantize(format, x), expected)


@pytest.mark.parametrize(
    ("format", "bound"), [("Q8_0", 1 / 127), ("Q4_0", 1 / 8), ("Q4_1", 1 / 7), ("Q5_0", 1 / 16), ("Q5_1", 1 / 15)]
)
def test_quantize_error_is_within_a_step(format: str, bound: float) -> None:
    x = np.random.default_rng(4).standard_normal((5, 64)).astype(np.float32)
    error = np.abs(dequantize(format, quantize(format, x)) - x).reshape(5, 2, 32)
    step = np.abs(x).reshape(5, 2, 32).max(axis=2, keepdims=True) * bound
    assert np.all(error <= step * 1.001)


def test_denormal_weights_become_zero() -> None:
    x = np.full((1, 32), 1e-44, dtype=np.float32)
    for format in MADE:
        assert np.array_equal(dequantize(format, quantize(format, x)), np.zeros((1, 32), dtype=np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_weights_without_a_scale_are_refused(bad: float) -> None:
    x = np.zeros((2, 32), dtype=np.float32)
    x[1, 5] = bad
    for format in MADE:
        with pytest.raises(GemmaryError, match="cannot be quantized"):
            quantize(format, x)


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(GemmaryError, match="rows of 33 weights do not divide into Q8_0 blocks of 32"):
        quantize("Q8_0", np.zeros((2, 33), dtype=np.float32))
    with pytest.raises(GemmaryError, match="Q4_K blocks of 144"):
        dequantize("Q4_K", np.zeros((2, 145), dtype=np.uint8))
    with pytest.raises(GemmaryError, match="not a block type"):
        row_bytes("IQ4_XS", 256)
    with pytest.raises(GemmaryError, match="choose Q8_0, Q4_0, Q4_1"):
        quantize("Q5_K", np.zeros((1, 256), dtype=np.float32))
