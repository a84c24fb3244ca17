"""GPTQ: weights rounded column by column, each column's error made up for by the columns that are still to come.

Source: Frantar, Ashkboos, Hoefler, Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2023), which does for all rows at once what Optimal Brain Surgeon (Hassibi & Stork 1993) says of one.
What is kept small is not the error of the weights but that of the outputs on a calibration text, |X Wᵀ - X Qᵀ|², whose
curvature is the same for every row: H = XᵀX. With the upper Cholesky factor U of H⁻¹ = UᵀU, rounding column j costs
e = (w_j - q_j) / U_jj, and takes e U_jk off every later column k. The scale of a block is chosen when its first column
is reached, for the weights as they are by then, with 1 / U_jj² as the importance of column j.

Axes: R rows (outputs), C columns (inputs), J the 32 columns of a block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import row_bytes
from gemmary.quantize.grids import GRIDS, GROUP, choose, codes, pack
from gemmary.quantize.leaves import Leaf, slices

Float = npt.NDArray[np.float32]
Double = npt.NDArray[np.float64]

DAMPING = 0.01
"""What is added to H's diagonal, in means of the diagonal (the paper's): directions that the text never shows."""
_ROWS = 4096
"""Rows at once: a block of them stays in the cache."""
_COLUMNS = 8
"""Columns whose errors are passed on one by one; the others of a block get them together."""


def curvature(x: Float) -> Double:
    """H = XᵀX of inputs [T, C], summed in float32 a few hundred tokens at a time, and these in float64."""
    total = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 512):
        part = x[start : start + 512]
        total += part.T @ part
    return total


def inverse_factor(hessian: Double, damping: float = DAMPING) -> Float:
    """U [C, C], upper triangular, with UᵀU = (H + damping mean(diag H) I)⁻¹. A column that no text reaches is taken as
    of average importance.

    Raises GemmaryError where H is not the curvature of finite inputs.
    """
    if not np.isfinite(hessian).all():
        raise GemmaryError("the calibration text gave inputs that are not finite")
    diagonal = np.diag(hessian).copy()
    mean = diagonal.mean() or 1.0
    diagonal[diagonal == 0] = mean
    damped = hessian / mean
    np.fill_diagonal(damped, diagonal / mean + damping)
    # With the order of columns turned round, the Cholesky factor of H is triangular the way that H⁻¹'s must be.
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    _invert_lower(lower)
    return np.ascontiguousarray(lower[::-1, ::-1].astype(np.float32))


def _invert_lower(lower: Double) -> None:
    """Inverts a lower triangular matrix in place, by halves: a third of the work of a general inverse."""
    size = len(lower)
    if size <= 64:
        lower[:] = np.tril(np.linalg.inv(lower))  # the library leaves dust above the diagonal
        return
    half = size // 2
    _invert_lower(lower[:half, :half])
    _invert_lower(lower[half:, half:])
    lower[half:, :half] = -lower[half:, half:] @ lower[half:, :half] @ lower[:half, :half]


def compensated(format: str, weight: Float, factor: Float) -> npt.NDArray[np.uint8]:
    """Rows [R, C] in blocks of `format` (one of `GRIDS`): uint8 [R, bytes a row]. factor: `inverse_factor`.

    Raises GemmaryError where rows do not divide into blocks, or weights do not fit a float16 scale.
    """
    out = np.empty((len(weight), row_bytes(format, weight.shape[1])), dtype=np.uint8)
    width = row_bytes(format, GROUP)
    for start in range(0, len(weight), _ROWS):
        w_CR = weight[start : start + _ROWS].T.copy()
        for begin in range(0, len(w_CR), GROUP):
            block, end = slice(begin, begin + GROUP), begin + GROUP
            q_JR, scale, least, errors_JR = _round_block(format, w_CR[block], factor[block, block])
            out[start : start + _ROWS, begin // GROUP * width :][:, :width] = pack(format, q_JR, scale, least)
            w_CR[end:] -= factor[block, end:].T @ errors_JR
    return out


def _round_block(format: str, x_JR: Float, u_JJ: Float) -> tuple[Float, Float, Float, Float]:
    """Codes, scales, least values and scaled errors of 32 columns; changes x."""
    diagonal = np.diag(u_JJ)
    importance = np.square(1 / diagonal).astype(np.float32)
    scale, least = choose(format, x_JR, importance[:, None])
    q, errors = np.empty_like(x_JR), np.empty_like(x_JR)
    for first in range(0, GROUP, _COLUMNS):
        end = first + _COLUMNS
        for j in range(first, end):
            q[j] = codes(format, x_JR[j], scale, least)
            errors[j] = (x_JR[j] - (q[j] * scale + least)) / diagonal[j]
            x_JR[j + 1 : end] -= u_JJ[j, j + 1 : end, None] * errors[j]
        x_JR[end:] -= u_JJ[first:end, end:].T @ errors[first:end]
    return q, scale, least, errors


def pieces(format: str, leaf: Leaf, hessian: Double, damping: float = DAMPING) -> Iterator[npt.NDArray[np.uint8]]:
    """A leaf's rows as `compensated` gives them, a bounded number at a time."""
    if format not in GRIDS:
        raise GemmaryError(f"no calibrated method makes {format}: choose {', '.join(GRIDS)}")
    factor = inverse_factor(hessian, damping)
    for start, stop in slices(leaf):
        yield compensated(format, leaf.rows(np.arange(start, stop)), factor)
        leaf.release(start, stop)
