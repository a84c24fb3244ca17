"""Leaves of quantized blocks: what an engine computes from them against the oracle on the same blocks.

The native engine rounds activations to integers too: its bounds stand in tests/engines/test_engine.py.
"""

from __future__ import annotations

import pytest

from gemmary.config import Config
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Blocks, Leaf
from tests.runs import FLOAT32, Lookup, Precision, relative_error, run
from tests.tiny import TINY, random_leaves, random_tokens


def quantized(config: Config, format: str) -> Lookup:
    """Every matrix in blocks, norms dense."""
    lookup = random_leaves(config)

    def blocked(name: str) -> Leaf:
        leaf = lookup(name)
        if len(leaf.shape) == 1:
            return leaf
        return Blocks(format, (leaf.shape[0], leaf.shape[1]), blocks.quantize(format, leaf.dequantize()))

    return blocked


@pytest.mark.parametrize("precision", [each for each in FLOAT32 if each.engine != "native"], ids=str)
@pytest.mark.parametrize("format", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["gemma-q32", "gemma2-q32", "gemma3-q32"])
def test_blocks(name: str, format: str, precision: Precision) -> None:
    config = TINY[name]
    tokens = random_tokens(config, 23)
    (expected,) = run(Precision("reference", "float32", 0, 0).open(config, quantized(config, format)), [tokens])
    (logits,) = run(precision.open(config, quantized(config, format)), [tokens])
    assert relative_error(logits, expected) < precision.worst
    (full,) = run(precision.open(config, random_leaves(config)), [tokens])
    assert relative_error(logits, full) > 0.001
