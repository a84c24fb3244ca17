"""Guessing from the text changes how fast it comes, and never what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemmary.engines import Engine, open_engine
from gemmary.generate import Scheduler
from gemmary.generate.request import Request
from gemmary.generate.speculate import StepCosts
from tests.generate.toys import request
from tests.runs import why_absent
from tests.tiny import TINY, random_leaves, random_tokens


def native(name: str) -> Engine:
    if reason := why_absent("native"):
        pytest.skip(reason)
    return open_engine("native", TINY[name], random_leaves(TINY[name], seed=3), threads=2)


def written(engine: Engine, requests: list[Request]) -> list[tuple[Any, ...]]:
    scheduler = Scheduler(engine, step_tokens=32, costs=StepCosts(learn=False))
    for each in requests:
        scheduler.submit(each)
    while scheduler.step():
        pass
    return [(each.generated, each.finish_reason, [lp.logprob for lp in each.logprobs]) for each in requests]


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0])
def test_the_text_is_the_same_to_the_bit(name: str, temperature: float) -> None:
    engine = native(name)
    base = random_tokens(TINY[name], 7, seed=5)
    prompts = [base * 4, base * 2 + random_tokens(TINY[name], 9, seed=6), random_tokens(TINY[name], 20, seed=7)]

    def requests(speculate: bool) -> list[Request]:
        made = [
            request(prompt, temperature=temperature, seed=11, max_tokens=34, logprobs=0, speculate=speculate)
            for prompt in prompts
        ]
        assert all(each.params.speculate == speculate for each in made)
        return made

    with_guesses, without = requests(True), requests(False)
    assert written(engine, with_guesses) == written(engine, without)
    assert sum(each.guessed for each in without) == 0
    if temperature == 0:  # greedy text of a tiny model soon goes in circles
        assert sum(each.guessed_right for each in with_guesses) > 0


@pytest.mark.parametrize("engine", ["reference", "torch", "native"])
def test_a_cut_cache_goes_on_as_if_nothing_had_been(engine: str) -> None:
    """Past a window too: what a ring has overwritten is not needed any more."""
    if reason := why_absent(engine):
        pytest.skip(reason)
    from gemmary.batch import Batch, Chunk

    config = TINY["gemma3"]
    tokens = random_tokens(config, 40, seed=1)
    other = random_tokens(config, 6, seed=2)
    built = open_engine(engine, config, random_leaves(config, seed=3))

    def last(caches: list[Any], piece: list[int], start: int) -> Any:
        return built.step(Batch.of(config, [Chunk(piece, start)]), caches)

    cache = built.new_cache(len(tokens))
    last([cache], tokens[:30], 0)
    last([cache], other, 30)
    cache.truncate(30)
    again = last([cache], tokens[30:], 30)
    whole = last([built.new_cache(len(tokens))], tokens, 0)
    np.testing.assert_allclose(again, whole, rtol=1e-4, atol=1e-5 * float(np.abs(whole).max()))


def test_an_engine_whose_rows_depend_on_their_company_is_left_alone() -> None:
    engine = open_engine("reference", TINY["gemma3"], random_leaves(TINY["gemma3"], seed=3))
    assert not engine.info.batch_invariant
    each = request(random_tokens(TINY["gemma3"], 4, seed=5) * 4, temperature=0.0, max_tokens=8)
    written(engine, [each])
    assert each.guessed == 0


def test_stop_tokens_inside_a_guess_end_the_text() -> None:
    engine = native("gemma3")
    prompt = random_tokens(TINY["gemma3"], 7, seed=5) * 4
    free = request(prompt, temperature=0.0, max_tokens=34)
    written(engine, [free])
    stop = free.generated[20]
    runs = [request(prompt, temperature=0.0, max_tokens=34, stop=[stop], speculate=guess) for guess in (True, False)]
    results = written(engine, runs[:1]) + written(engine, runs[1:])
    assert results[0] == results[1]
    assert results[0][1] == "stop"
    assert results[0][0][-1] == stop
    assert replace(runs[0].params, speculate=False) == runs[1].params
