"""Where two models first differ: the named intermediates of one short text, side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.engines import EngineInfo

if TYPE_CHECKING:
    from gemmary.loaded import Model

Floats = npt.NDArray[Any]

TAP_TOKENS = 48
"""How much of the text the intermediates are compared over."""
EXACT_NOISE = 1e-4
ROUNDED_NOISE = 1e-2
"""Normalised errors of intermediates that are rounding: between float32 engines, and where one of them rounds
activations or keys and values to bfloat16 or to 8 bits (the starter's attention outputs then differ by 2 to 4 %)."""
TAP_JUMP = 5.0
"""The first difference is where the error is this many times that of everything before it (or of the noise)."""


@dataclass(frozen=True)
class FirstDifference:
    """The first named intermediate that is off. Errors are |a - b| / |b|, Euclidean norms over the text's beginning."""

    tap: str
    error: float
    error_before: float


def compare_taps(model: Model, against: Model, ids: Sequence[int]) -> list[tuple[str, float]]:
    """Normalised errors over `ids` of the intermediates that both engines name, in the order of computation."""
    taps: list[dict[str, Floats]] = []
    for each in (model, against):
        found: dict[str, Floats] = {}
        batch = Batch.of(each.config, [Chunk(ids, outputs="all", adapter=each.adapter_number())])
        with each.scheduler.lock:
            if each.config.bidirectional:
                each.engine.embed(batch, found)
            else:
                each.engine.step(batch, [each.engine.new_cache(len(ids))], found)
        taps.append(found)
    ours, theirs = taps
    result = "sentence_embedding" if model.config.bidirectional else "logits"  # engines may put it first
    names = [name for name in theirs if name in ours and name != result]
    return [(name, normalized_error(ours[name], theirs[name])) for name in (*names, result)]


def normalized_error(found: Floats, expected: Floats) -> float:
    """|found - expected| / |expected|, infinite where something is not a number or the shapes differ."""
    if found.shape != expected.shape:
        return math.inf
    difference = float(np.linalg.norm(found.astype(np.float64) - expected))
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    error = difference / norm if norm else float(difference > 0)
    return error if math.isfinite(error) else math.inf


def noise_of(*engines: EngineInfo) -> float:
    """What rounding alone may make of the intermediates of these engines."""
    exact = all(e.dtype == "float32" and all(f.split()[0] == "F32" for f in e.formats) for e in engines)
    return EXACT_NOISE if exact else ROUNDED_NOISE


def first_difference(taps: Sequence[tuple[str, float]], noise: float, *, failed: bool) -> FirstDifference | None:
    """The first tap whose error jumps; when the comparison failed without a jump, the tap that comes nearest to one."""
    before, nearest, ratio = 0.0, None, 0.0
    for name, error in taps:
        jump = error / max(before, noise)
        if jump > ratio:
            nearest, ratio = FirstDifference(name, error, before), jump
        if jump >= TAP_JUMP:
            return nearest
        before = max(before, error)
    return nearest if failed else None
