"""The engines that the parity tests run, each at each of its precisions, and how near they must come.

An engine joins by a line in `ENGINES`. It is opened through `gemmary.engines.open_engine`, as a user's program does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.engines import Engine, open_engine
from gemmary.quantize.leaves import Dense, Leaf

Array = npt.NDArray[Any]
Lookup = Callable[[str], Leaf]


@dataclass(frozen=True)
class Precision:
    """An engine at one precision. `worst` bounds relative_error of its logits, `typical` their relative_rms."""

    engine: str
    dtype: str
    worst: float
    typical: float

    @property
    def name(self) -> str:
        return f"{self.engine}-{self.dtype}"

    def open(self, config: Config, lookup: Lookup) -> Engine:
        reason = why_absent(self.engine)
        if reason:
            pytest.skip(reason)
        return open_engine(self.engine, config, lookup, dtype=self.dtype)


FLOAT32 = [
    Precision("reference", "float32", 2e-5, 1e-5),
    Precision("torch", "float32", 2e-5, 1e-5),
    Precision("native", "float32", 2e-5, 1e-5),
]
BFLOAT16 = [
    Precision("torch", "bfloat16", 0.08, 0.025),
    Precision("native", "bfloat16", 0.08, 0.025),
]
"""The bounds are on weights that are bfloat16 already: what is left is the rounding of activations, which the tiny
models, with their enlarged weights and bent softcaps, make large. `test_bfloat16.py` holds transformers to them too."""
ENGINES = FLOAT32 + BFLOAT16

each_float32 = pytest.mark.parametrize("precision", FLOAT32, ids=lambda p: p.name)
each_bfloat16 = pytest.mark.parametrize("precision", BFLOAT16, ids=lambda p: p.name)


def why_absent(engine: str) -> str | None:
    """Why an engine cannot be run here; None if it can."""
    needs = {"torch": "torch", "native": "gemmary._core"}.get(engine)
    try:
        importlib.import_module(f"gemmary.engines.{engine}")
        if needs:
            importlib.import_module(needs)
    except ModuleNotFoundError as error:
        return f"the {engine} engine is not here: {error}"
    return None


def run(engine: Engine, sequences: Sequence[Sequence[int]], prefixes: Sequence[int] | None = None) -> list[Array]:
    """Logits of every position of every sequence, all of them in one step."""
    lengths = [len(tokens) for tokens in sequences]
    each = prefixes or [0] * len(sequences)
    chunks = [Chunk(tokens, prefix=prefix, outputs="all") for tokens, prefix in zip(sequences, each, strict=True)]
    logits = engine.step(Batch.of(engine.config, chunks), [engine.new_cache(n) for n in lengths])
    return np.split(logits, np.cumsum(lengths)[:-1])


def run_in_chunks(engine: Engine, tokens: Sequence[int], sizes: Sequence[int]) -> Array:
    """Logits of every position of one sequence, fed in steps of the sizes given; they sum to its length."""
    assert sum(sizes) == len(tokens)
    cache, rows, start = engine.new_cache(len(tokens)), [], 0
    for size in sizes:
        chunk = Chunk(tokens[start : start + size], start=start, outputs="all")
        rows.append(engine.step(Batch.of(engine.config, [chunk]), [cache]))
        start += size
    return np.concatenate(rows)


def rounded(lookup: Lookup) -> Lookup:
    """The same leaves, stored in bfloat16."""
    return lambda name: Dense(lookup(name).dequantize().astype(ml_dtypes.bfloat16))


def relative_error(actual: Array, expected: Array) -> float:
    """The largest difference over the largest expected magnitude."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    wide = expected.astype(np.float64)
    return float(np.abs(actual - wide).max() / np.abs(wide).max())


def relative_rms(actual: Array, expected: Array) -> float:
    """The root mean square of the differences over that of the expected values."""
    wide = expected.astype(np.float64)
    return float(np.sqrt(np.mean((actual - wide) ** 2) / np.mean(wide**2)))
