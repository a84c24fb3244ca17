"""Tiny loaded models with a small real tokenizer, for tests of the Python face and of `verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from gemmary.api import Model
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.quantize.leaves import Leaf
from gemmary.tokenizer import Tokenizer
from tests.tiny import TINY, leaf_shapes, random_leaves
from tests.tokenizer import small


@lru_cache
def tokenizer() -> Tokenizer:
    return small.build()


def random_model_leaves(config: Config) -> Callable[[str], Leaf]:
    """As tests.tiny.random_leaves, for a config that is not in TINY as it stands."""
    assert set(leaf_shapes(config)) == {tensor.name for tensor in tensors(config)}
    return random_leaves(config)


def tiny_checkpoint(
    name: str = "gemma3-mqa",
    *,
    lookup: Callable[[str], Leaf] | None = None,
    template: str | None = None,
    called: str = "tiny",
    **changes: Any,
) -> Checkpoint:
    """A checkpoint that was never on a disk: a TINY config with the small tokenizer's vocabulary and random leaves."""
    config = replace(TINY[name], vocab_size=tokenizer().vocab_size, **changes)
    lookup = lookup or random_model_leaves(config)
    leaves = {tensor.name: (lambda name=tensor.name: lookup(name)) for tensor in tensors(config)}
    return Checkpoint(Path(called), "safetensors", config, called, leaves, tokenizer, lambda: template)


def tiny_model(
    name: str = "gemma3-mqa", *, engine: str = "reference", context: int | None = None, **options: Any
) -> Model:
    """Options: those of tiny_checkpoint."""
    checkpoint = tiny_checkpoint(name, **options)
    return Model(checkpoint, open_engine(engine, checkpoint.config, checkpoint.lookup), context=context)
