"""GPTQ against its definition, a row and a column at a time, and against plain rounding."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.errors import GemmaryError
from gemmary.quantize import gptq
from gemmary.quantize.blocks import dequantize, quantize
from gemmary.quantize.grids import GRIDS, choose, codes, pack

Floats = npt.NDArray[np.float32]


def correlated(tokens: int, columns: int, seed: int = 0) -> Floats:
    """Inputs that are alike in many columns and large in a few, as those of a language model."""
    rng = np.random.default_rng([seed, columns])
    mixing = rng.standard_normal((columns, columns)) * np.exp(rng.standard_normal(columns))
    found: Floats = (rng.standard_normal((tokens, columns)) @ mixing).astype(np.float32)
    return found


def weights(rows: int, columns: int) -> Floats:
    return np.random.default_rng([1, rows, columns]).standard_normal((rows, columns)).astype(np.float32)


def output_error(x: Floats, w: Floats, format: str, data: npt.NDArray[np.uint8]) -> float:
    return float(np.linalg.norm(x @ (w - dequantize(format, data)).T) / np.linalg.norm(x @ w.T))


def plain(format: str, weight: Floats, hessian: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Optimal Brain Surgeon by its definition: what is left of H is inverted anew for every column."""
    mean = np.diag(hessian).mean()
    damped = hessian + gptq.DAMPING * mean * np.eye(len(hessian))
    blocks = []
    for row in weight.astype(np.float64):
        w, row_blocks = row.copy(), []
        for begin in range(0, len(w), 32):
            inverses = [np.linalg.inv(damped[j:, j:]) for j in range(begin, begin + 32)]
            importance = np.array([mean / inverse[0, 0] for inverse in inverses])
            block = w[begin : begin + 32].astype(np.float32)[:, None]
            scale, least = choose(format, block, (importance / mean**2).astype(np.float32)[:, None])
            q = np.zeros((32, 1), np.float32)
            for j, inverse in enumerate(inverses):
                q[j] = codes(format, np.float32(w[begin + j]), scale, least)
                error = (w[begin + j] - float(q[j, 0] * scale[0] + least[0])) / inverse[0, 0]
                w[begin + j :] -= error * inverse[0]
            row_blocks.append(pack(format, q, scale, least)[0])
        blocks.append(np.concatenate(row_blocks))
    return np.stack(blocks)


@pytest.mark.parametrize("format", ["Q4_0", "Q4_1"])
def test_the_fast_one_is_the_definition(format: str) -> None:
    x, w = correlated(300, 96), weights(7, 96)
    hessian = gptq.curvature(x)
    expected = dequantize(format, plain(format, w, hessian))
    found = dequantize(format, gptq.compensated(format, w, gptq.inverse_factor(hessian)))
    # A code may fall to the other side of a tie by float32's rounding, and then moves those after it.
    assert np.mean(found == expected) > 0.95
    ours, theirs = (np.linalg.norm(x @ (w - each).T) for each in (found, expected))
    assert ours == pytest.approx(theirs, rel=0.02)


@pytest.mark.parametrize("format", GRIDS)
def test_outputs_are_nearer_than_by_rounding(format: str) -> None:
    x, w = correlated(500, 128), weights(48, 128)
    found = gptq.compensated(format, w, gptq.inverse_factor(gptq.curvature(x)))
    assert output_error(x, w, format, found) < 0.7 * output_error(x, w, format, quantize(format, w))
    other = correlated(400, 128)  # the same mixing, other tokens
    assert output_error(other, w, format, found) < 0.8 * output_error(other, w, format, quantize(format, w))


def test_rows_are_rounded_each_by_itself() -> None:
    w = weights(gptq._ROWS + 5, 32)
    factor = gptq.inverse_factor(gptq.curvature(correlated(100, 32)))
    whole = gptq.compensated("Q4_0", w, factor)
    assert np.array_equal(whole[-5:], gptq.compensated("Q4_0", w[-5:], factor))


@pytest.mark.parametrize("format", GRIDS)
def test_scales_are_chosen_no_worse_than_by_rounding(format: str) -> None:
    w = weights(64, 32)
    scale, least = choose(format, w.T.copy(), np.ones((32, 1), np.float32))
    q = codes(format, w.T, scale, least)
    assert q.min() >= GRIDS[format].low
    assert q.max() <= GRIDS[format].high
    searched = np.square(q * scale + least - w.T).sum()
    assert searched < np.square(dequantize(format, quantize(format, w)) - w).sum()


@pytest.mark.parametrize("format", GRIDS)
def test_blocks_hold_what_was_chosen(format: str) -> None:
    grid = GRIDS[format]
    rng = np.random.default_rng(2)
    q = rng.integers(grid.low, grid.high + 1, (32, 9)).astype(np.float32)
    scale = rng.standard_normal(9).astype(np.float16).astype(np.float32)
    least = rng.standard_normal(9).astype(np.float16).astype(np.float32) * np.float32(grid.has_least)
    found = dequantize(format, pack(format, q, scale, least).reshape(1, -1)).reshape(9, 32)
    assert np.array_equal(found, (q * scale + least).T)


@pytest.mark.parametrize("format", GRIDS)
def test_zeros_stay_zeros(format: str) -> None:
    factor = gptq.inverse_factor(np.zeros((64, 64)))  # and inputs that never were are no failure
    data = gptq.compensated(format, np.zeros((3, 64), np.float32), factor)
    assert np.array_equal(dequantize(format, data), np.zeros((3, 64), np.float32))


def test_a_column_without_inputs_is_rounded_like_the_others() -> None:
    x, w = correlated(200, 64), weights(4, 64)
    x[:, 5] = 0
    found = dequantize("Q8_0", gptq.compensated("Q8_0", w, gptq.inverse_factor(gptq.curvature(x))))
    assert np.abs(found[:, 5] - w[:, 5]).max() < 0.1


def test_the_factor_is_of_the_inverse() -> None:
    hessian = gptq.curvature(correlated(200, 48))
    factor = gptq.inverse_factor(hessian, 0.02).astype(np.float64)
    damped = hessian / np.diag(hessian).mean() + 0.02 * np.eye(48)
    assert np.array_equal(factor, np.triu(factor))
    expected = np.linalg.inv(damped)
    assert np.linalg.norm(factor.T @ factor - expected) < 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e9])
def test_weights_without_a_scale_are_refused(bad: float) -> None:
    w = weights(2, 32)
    w[1, 3] = bad
    with pytest.raises(GemmaryError, match="cannot be quantized"):
        gptq.compensated("Q4_0", w, np.eye(32, dtype=np.float32))


def test_inputs_that_are_not_finite_are_refused() -> None:
    with pytest.raises(GemmaryError, match="not finite"):
        gptq.inverse_factor(np.full((32, 32), np.nan))
