"""What the native engine's tests share: leaves in every way of storing, and runs cut into steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from tests.tiny import random_leaves

Array = npt.NDArray[Any]
Lookup = Callable[[str], Leaf]


def stored(config: Config, format: str, seed: int = 0) -> Lookup:
    """Random leaves whose matrices are stored as `format`: F32, BF16, F16, Q8_0 or Q4_0."""
    lookup = random_leaves(config, seed)

    def convert(name: str) -> Leaf:
        leaf = lookup(name)
        if len(leaf.shape) == 1 or format == "F32":
            return leaf
        array = leaf.dequantize()
        if format in ("BF16", "F16"):
            return Dense(array.astype(ml_dtypes.bfloat16 if format == "BF16" else np.float16))
        return Blocks(format, (leaf.shape[0], leaf.shape[1]), blocks.quantize(format, array))

    return convert


def in_steps(engine: Any, tokens: Sequence[int], sizes: Sequence[int], capacity: int | None = None) -> Array:
    """Logits of every position of one sequence fed in steps of `sizes`, the last size repeated as often as needed."""
    cache, rows, start = engine.new_cache(capacity or len(tokens)), [], 0
    while start < len(tokens):
        size = sizes[min(len(rows), len(sizes) - 1)]
        chunk = Chunk(tokens[start : start + size], start=start, outputs="all")
        rows.append(engine.step(Batch.of(engine.config, [chunk]), [cache]))
        start += size
    return np.concatenate(rows)


def together(engine: Any, sequences: Sequence[Sequence[int]]) -> list[Array]:
    """Logits of every position of every sequence, all in one step."""
    batch = Batch.of(engine.config, [Chunk(tokens, outputs="all") for tokens in sequences])
    logits = engine.step(batch, [engine.new_cache(len(tokens)) for tokens in sequences])
    return np.split(logits, np.cumsum([len(tokens) for tokens in sequences])[:-1])


def same_bits(a: Array, b: Array) -> bool:
    return a.shape == b.shape and bool(np.array_equal(a.view(np.uint32), b.view(np.uint32)))
