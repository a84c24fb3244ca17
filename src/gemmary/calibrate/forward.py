"""The model run over a text for the sake of what arrives at its matrices.

The reference operations and `model/decoder.py` do it, layer by layer, so nothing of the model but the matrix at hand is
ever held in float32, and the only thing that grows with the text is its hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.model import decoder
from gemmary.model.leaves import Leaves
from gemmary.ops.reference import ReferenceOps, SequenceCache, StepCache
from gemmary.quantize.gptq import curvature
from gemmary.quantize.leaves import Leaf

Array = npt.NDArray[Any]
Arrival = Callable[[str, Leaf, Array], Leaf]
"""Called with a matrix's name, its leaf and H = XᵀX [C, C] (float64) of the inputs X that arrived: the leaf to go on
with."""

SEQUENCE = 1024
"""Tokens of a sequence: the text is cut into as many as it fills."""


@dataclass(frozen=True)
class Waiting:
    """A matrix that the text has not reached."""

    name: str
    leaf: Leaf

    @property
    def shape(self) -> tuple[int, ...]:
        return self.leaf.shape


class Arriving(ReferenceOps):
    """The reference operations, which tell `arrival` of a waiting matrix before they multiply by what it gives."""

    def __init__(self, arrival: Arrival) -> None:
        super().__init__()
        self._arrival = arrival
        self._inputs: Array | None = None
        self._curvature: Array | None = None

    def linear(self, x: Array, weight: Leaf | Waiting) -> Array:
        if isinstance(weight, Waiting):
            if (
                self._inputs is not x or self._curvature is None
            ):  # query, key and value have the same inputs, and so have gate and up
                self._inputs, self._curvature = x, curvature(x)
            weight = self._arrival(weight.name, weight.leaf, self._curvature)
        return super().linear(x, weight)


def run(
    config: Config,
    lookup: Callable[[str], Leaf],
    ids: Sequence[int],
    waiting: set[str],
    arrival: Arrival,
    sequence: int = SEQUENCE,
) -> Array:
    """The final hidden states [T, D] of a text, which tells `arrival` of every matrix in `waiting` on its way.

    What comes later sees what `arrival` gave, so that it is calibrated on inputs that are already off. The text is
    cut into sequences of `sequence` tokens.
    """
    ops = Arriving(arrival)

    def leaf(name: str) -> Leaf | Waiting:
        return Waiting(name, lookup(name)) if name in waiting else lookup(name)

    chunks = [Chunk(ids[start : start + sequence], outputs="none") for start in range(0, len(ids), sequence)]
    batch = Batch.of(config, chunks)
    cache = StepCache([SequenceCache() for _ in batch.sequences], batch.sequences)
    step = decoder.Step(batch.tokens, batch.positions, dict(batch.visible), batch.outputs)
    hidden, _ = decoder.hidden_states(ops, config, Leaves(leaf), step, cache)
    result: Array = np.asarray(hidden)
    return result
