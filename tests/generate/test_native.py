"""On the native engine a request's tokens and log-probabilities have the same bits, whatever else runs beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

from gemmary.engines import Engine, open_engine
from gemmary.generate import Request, Scheduler
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Blocks, Leaf
from tests.generate.toys import request
from tests.runs import why_absent
from tests.tiny import TINY, random_leaves, random_tokens

LENGTHS = (6, 1, 13, 30, 2, 9, 6)


@lru_cache
def native(block_type: str, threads: int) -> Engine:
    if reason := why_absent("native"):
        pytest.skip(reason)
    original = random_leaves(TINY["gemma3-q32"])

    def lookup(name: str) -> Leaf:
        leaf = original(name)
        if block_type == "F32" or len(leaf.shape) == 1:
            return leaf
        rows, columns = leaf.shape
        return Blocks(block_type, (rows, columns), blocks.quantize(block_type, leaf.dequantize()))

    return open_engine("native", replace(TINY["gemma3-q32"]), lookup, threads=threads)


def requests() -> list[Request]:
    config = TINY["gemma3-q32"]
    sampled: dict[str, Any] = {"temperature": 1.4, "logprobs": 5, "max_tokens": 20, "ignore_eos": True}
    return [request(random_tokens(config, n, i), seed=i, **sampled) for i, n in enumerate(LENGTHS)]


def answers(scheduler: Scheduler, given: list[Request]) -> list[Any]:
    for each in given:
        scheduler.submit(each)
    while scheduler.step():
        pass
    return [(each.generated, each.logprobs) for each in given]


@pytest.mark.parametrize("block_type", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize(("step_tokens", "max_sequences", "threads"), [(1, 64, 2), (7, 3, 1), (512, 64, 2)])
def test_bits_do_not_depend_on_the_batch(block_type: str, step_tokens: int, max_sequences: int, threads: int) -> None:
    alone = [answers(Scheduler(native(block_type, 1)), [each])[0] for each in requests()]
    together = Scheduler(native(block_type, threads), step_tokens=step_tokens, max_sequences=max_sequences)
    assert answers(together, requests()) == alone
    assert len({tuple(tokens) for tokens, _ in alone}) == len(LENGTHS)
