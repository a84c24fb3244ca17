"""Models to write: tiny configurations with random leaves, in the shape that `save_checkpoint` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from tests.tiny import TINY, random_leaves


@dataclass
class TinySource:
    """A `gemmary.checkpoints.Source` without a tokenizer."""

    config: Config
    lookup: Callable[[str], Leaf]
    name: str = "tiny"
    tokenizer: Any = None
    chat_template: str | None = None
    mask_codec_file: Path | None = None
    seen: list[str] = field(default_factory=list)


def tiny(name: str, seed: int = 0) -> TinySource:
    return TinySource(TINY[name], random_leaves(TINY[name], seed))


def rounded(source: TinySource, dtype: npt.DTypeLike) -> TinySource:
    """The same source with its matrices stored as `dtype`, and norms as a checkpoint of that dtype gives them."""
    norms = {t.name for t in tensors(source.config) if t.is_norm}

    def lookup(name: str) -> Leaf:
        array = source.lookup(name).dequantize().astype(dtype)
        return Dense(array.astype(np.float32) if name in norms else array)

    return TinySource(source.config, lookup)


def logits(config: Config, lookup: Callable[[str], Leaf], tokens: list[int]) -> npt.NDArray[np.float32]:
    """Every position's logits by the reference engine."""
    engine = open_engine("reference", config, lookup)
    return engine.step(Batch.of(config, [Chunk(tokens, outputs="all")]), [engine.new_cache(len(tokens))])


def same_leaves(checkpoint: Checkpoint, source: TinySource) -> None:
    """Asserts that every leaf of the checkpoint holds the source's bytes."""
    assert checkpoint.names() == [t.name for t in tensors(source.config)]
    for name in checkpoint.names():
        mine, theirs = checkpoint.lookup(name), source.lookup(name)
        assert mine.format == theirs.format, name
        assert mine.shape == theirs.shape, name
        a, b = _bytes(mine), _bytes(theirs)
        assert np.array_equal(a, b), name


def _bytes(leaf: Leaf) -> npt.NDArray[np.uint8]:
    array = leaf.data if isinstance(leaf, Blocks) else leaf.array if isinstance(leaf, Dense) else leaf.dequantize()
    return np.ascontiguousarray(array).view(np.uint8)


def files_of(folder: Path) -> list[str]:
    """Every file below a folder, hidden ones too."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
