"""A draft model changes how soon text comes: the same bits, followed caches, clear failures, rest where it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch
from gemmary.config import Config
from gemmary.engines import Engine, Logits, open_engine
from gemmary.errors import GemmaryError
from gemmary.generate import Request, SamplingParams, Scheduler
from gemmary.generate.draft import Draft
from gemmary.generate.sampling import distribution
from gemmary.generate.speculate import StepCosts
from gemmary.loaded import Model
from gemmary.quantize.leaves import Dense, Leaf
from tests.generate.toys import RecordingEngine, request
from tests.models import tiny_checkpoint
from tests.runs import why_absent
from tests.tiny import TINY, random_leaves, random_tokens


def nearly(config: Config, seed: int, error: float) -> Callable[[str], Leaf]:
    """The leaves of that seed with every number a little off."""
    exact, other = random_leaves(config, seed), random_leaves(config, seed + 1)

    def lookup(name: str) -> Leaf:
        return Dense((exact(name).dequantize() + np.float32(error) * other(name).dequantize()).astype(np.float32))

    return lookup


@lru_cache
def target(name: str = "gemma3") -> Engine:
    if reason := why_absent("native"):
        pytest.skip(reason)
    return open_engine("native", TINY[name], random_leaves(TINY[name], seed=3), threads=2)


@lru_cache
def small(name: str = "gemma3", error: float = 0.03, max_chunk: int = 512) -> Engine:
    """A draft model that is mostly right; with a small max_chunk its windowed layers keep rings."""
    from gemmary.engines.native import NativeEngine

    return NativeEngine(TINY[name], nearly(TINY[name], 3, error), threads=1, max_chunk=max_chunk)


def unlike() -> Engine:
    """A draft model of another family and other weights, that is mostly wrong."""
    config = replace(TINY["gemma2"], vocab_size=TINY["gemma3"].vocab_size)
    return open_engine("native", config, random_leaves(config, seed=8), threads=1)


class Cheap(StepCosts):
    """Rows that cost next to nothing: much is guessed, and the same in every run."""

    def __init__(self) -> None:
        super().__init__(learn=False)

    @staticmethod
    def assumed(rows: int) -> float:
        return 1 + 0.01 * rows


def scheduler(engine: Engine, draft: Engine | None, **options: Any) -> Scheduler:
    guessers = [] if draft is None else [Draft(draft, 0.02, learn=False)]
    return Scheduler(engine, costs=Cheap(), guessers=guessers, **options)


def written(scheduler: Scheduler, requests: Sequence[Request]) -> list[tuple[Any, ...]]:
    for each in requests:
        scheduler.submit(each)
    while scheduler.step():
        pass
    assert scheduler.kv_used == 0
    return [(each.generated, each.finish_reason, each.logprobs) for each in requests]


def several(name: str, **options: Any) -> list[Request]:
    lengths = (6, 1, 13, 30, 9)
    given: dict[str, Any] = {"max_tokens": 30, "logprobs": 2, "ignore_eos": True, "seed": 5, **options}
    return [request(random_tokens(TINY[name], n, i), **given) for i, n in enumerate(lengths)]


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.7, "repetition_penalty": 1.3},
    ],
    ids=["greedy", "sampled", "hot", "penalty"],
)
def test_the_text_is_the_same_to_the_bit(name: str, options: dict[str, Any]) -> None:
    """Several requests at once, in steps that also read prompts, with and without."""
    with_draft, without = several(name, **options), several(name, **options, speculate=False)
    found = written(scheduler(target(name), small(name), step_tokens=8, max_sequences=3), with_draft)
    assert found == written(scheduler(target(name), None), without)
    drafted, right = sum(r.drafted for r in with_draft), sum(r.drafted_right for r in with_draft)
    assert drafted > (40 if options["temperature"] else 3)  # greedy text of a tiny model soon goes in circles
    assert right > drafted / 3


def test_fewer_steps_of_the_large_model() -> None:
    """Batched: however many requests draft, the small model runs once for each token ahead."""
    alone, helped, helper = RecordingEngine(target()), RecordingEngine(target()), RecordingEngine(small())
    written(scheduler(alone, None), several("gemma3", temperature=0, speculate=False))
    written(scheduler(helped, helper), several("gemma3", temperature=0))
    assert len(helped.batches) < 0.7 * len(alone.batches)
    assert max(len(batch.sequences) for batch in helper.batches) > 2


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_windowed_layers_that_keep_rings_are_cut_back_too(temperature: float) -> None:
    """The target's and the draft's rings, past several windows, with guesses that are often wrong."""
    from gemmary.engines.native import NativeEngine

    config = replace(TINY["gemma3"], context_length=256)
    if reason := why_absent("native"):
        pytest.skip(reason)
    ringed = NativeEngine(config, random_leaves(config, 3), threads=2, max_chunk=16)
    draft = NativeEngine(config, nearly(config, 3, 0.3), threads=1, max_chunk=16)
    prompt = random_tokens(config, 9)
    options: dict[str, Any] = {"temperature": temperature, "seed": 2, "max_tokens": 150, "ignore_eos": True}
    one, plain = request(prompt, **options), request(prompt, **options, speculate=False)
    found = written(scheduler(ringed, draft, step_tokens=16), [one])
    assert found == written(scheduler(ringed, None, step_tokens=16), [plain])
    assert 0 < one.drafted_right < one.drafted


def test_the_drafts_cache_holds_the_text_and_nothing_else() -> None:
    """What it would say next is what it says of the text read anew, after right guesses and wrong ones."""
    held = scheduler(target(), small(error=0.3))
    one = request(random_tokens(TINY["gemma3"], 9), max_tokens=50, ignore_eos=True, temperature=1.0, seed=4)
    held.submit(one)
    draft = held.speculation.guessers[-1]
    assert isinstance(draft, Draft)
    while held.step() and one.finish_reason is None:
        follower = draft._followers[one]
        if follower.sure:
            follower.follow(one)
            assert follower.sure <= one.length
            assert follower.cache.length == follower.sure
    assert one.drafted > one.drafted_right > 0


def test_stops_and_limits_inside_a_guess() -> None:
    free = written(scheduler(target(), None), several("gemma3", temperature=1.2))
    stop = free[1][0][15]
    for options in ({"max_tokens": 1}, {"max_tokens": 2}, {"max_tokens": 7}, {"stop": [stop]}, {"stop": ["a", "b"]}):
        given: dict[str, Any] = {"temperature": 1.2, "max_tokens": 30, **options}
        found = written(scheduler(target(), small()), several("gemma3", **given))
        assert found == written(scheduler(target(), None), several("gemma3", **given, speculate=False))
        assert all(len(tokens) <= given["max_tokens"] for tokens, _, _ in found)
        assert "stop" not in options or any(reason == "stop" for _, reason, _ in found)


def test_cancelling_in_the_middle_leaves_the_others_as_they_were() -> None:
    requests = several("gemma3", temperature=1.0)
    running = scheduler(target(), small())
    for each in requests:
        running.submit(each)
    for _ in range(4):
        running.step()
    running.cancel(requests[1])
    draft = running.speculation.guessers[-1]
    assert isinstance(draft, Draft)
    assert requests[1] not in draft._followers
    while running.step():
        pass
    assert not draft._followers
    alone = written(scheduler(target(), None), several("gemma3", temperature=1.0, speculate=False))
    kept = [0, 2, 3, 4]
    assert [requests[i].generated for i in kept] == [alone[i][0] for i in kept]
    assert requests[1].finish_reason == "cancelled"


def test_a_draft_that_is_mostly_wrong_is_left_to_rest() -> None:
    helper = RecordingEngine(unlike())
    one = request(random_tokens(TINY["gemma3"], 5), max_tokens=58, temperature=1.0, ignore_eos=True)
    engine = RecordingEngine(target())
    dearer = Scheduler(engine, costs=StepCosts(learn=False), guessers=[Draft(helper, 0.2, learn=False)])
    written(dearer, [one])
    assert one.drafted < 12
    assert len(helper.batches) < len(engine.batches) / 2


def test_nothing_is_drafted_where_a_draft_costs_what_it_saves() -> None:
    running = scheduler(target(), None)
    one = request(random_tokens(TINY["gemma3"], 5), max_tokens=50, ignore_eos=True)
    dear = Scheduler(target(), costs=StepCosts(learn=False), guessers=[Draft(small(), 1.0, learn=False)])
    plain = written(running, [request(one.prompt, max_tokens=50, ignore_eos=True, speculate=False)])
    assert [each[0] for each in written(dear, [one])] == [each[0] for each in plain]
    assert one.drafted <= 3  # a probe now and then


def test_past_the_drafts_own_context_it_is_silent() -> None:
    config = replace(TINY["gemma3"], context_length=20)
    short = open_engine("native", config, nearly(config, 3, 0.03), threads=1) if not why_absent("native") else None
    one = request(random_tokens(config, 9), max_tokens=50, temperature=1.0, ignore_eos=True)
    plain = request(one.prompt, max_tokens=50, temperature=1.0, ignore_eos=True, speculate=False)
    assert written(scheduler(target(), short), [one]) == written(scheduler(target(), None), [plain])
    assert one.drafted > 0


def test_its_cache_counts() -> None:
    both = target().cache_bytes(40) + small().cache_bytes(40)
    one = request(random_tokens(TINY["gemma3"], 10), max_tokens=30)
    scheduler(target(), small(), kv_bytes=both).submit(one)
    assert one.kv_bytes == both
    with pytest.raises(GemmaryError, match="key-value cache"):
        scheduler(target(), small(), kv_bytes=both - 1).submit(one)
    plain = request(one.prompt, max_tokens=30, speculate=False)
    scheduler(target(), small(), kv_bytes=both - 1).submit(plain)
    assert plain.kv_bytes == target().cache_bytes(40)


def test_a_failing_draft_is_named_and_ends_what_it_was_drafting_for() -> None:
    class Failing(RecordingEngine):
        def step(self, batch: Batch, caches: Sequence[Any], taps: dict[str, Logits] | None = None) -> Logits:
            raise MemoryError("no room")

    running = scheduler(target(), Failing(small()))
    one, other = several("gemma3")[:2]
    plain = several("gemma3", speculate=False)[2]
    for each in (one, other, plain):
        running.submit(each)
    running.step()
    with pytest.raises(GemmaryError, match="the draft model failed while guessing: no room") as error:
        running.step()
    assert "\n" not in str(error.value)
    for each in (one, other):
        with pytest.raises(GemmaryError, match="draft model"):
            running.advance(each)
    while running.step():
        pass
    assert plain.finish_reason == "length"
    assert running.kv_used == 0


def test_a_drafts_cache_that_cannot_be_had_fails_its_own_request() -> None:
    class Small(RecordingEngine):
        def new_cache(self, capacity: int) -> Any:
            raise GemmaryError("there is not enough memory for a cache")

    running = scheduler(target(), Small(small()))
    one = several("gemma3")[0]
    running.submit(one)
    with pytest.raises(GemmaryError, match="the draft model failed while guessing: there is not enough memory"):
        running.advance(one)
    assert not running.running


def test_sampled_text_keeps_its_distribution() -> None:
    """The first two tokens over many seeds against the exact probabilities: chi-square over all pairs."""
    engine, prompt = target(), random_tokens(TINY["gemma3"], 5)
    options: dict[str, Any] = {"temperature": 1.0, "top_k": 4, "top_p": 1.0}
    params = SamplingParams(**options)
    seeds = 800
    requests = [request(prompt, seed=seed, max_tokens=6, ignore_eos=True, **options) for seed in range(seeds)]
    written(scheduler(engine, small(error=0.15), max_sequences=8), requests)
    assert sum(r.drafted_right for r in requests) > 100
    assert sum(r.drafted - r.drafted_right for r in requests) > 100

    def following(ids: list[int]) -> dict[int, float]:
        from gemmary.batch import Chunk

        row = engine.step(Batch.of(engine.config, [Chunk(ids)]), [engine.new_cache(16)])[0]
        tokens, weights = distribution(row, params)
        return dict(zip(tokens.tolist(), (weights / weights.sum()).tolist(), strict=True))

    for begin in range(2):  # the token after one that may have been guessed, in the second round
        expected: dict[tuple[int, int], float] = {}
        heads: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(begin):
            heads = {(*h, t): p * q for h, p in heads.items() for t, q in following([*prompt, *h]).items()}
        for head, p in heads.items():
            for first, q in following([*prompt, *head]).items():
                for second, r in following([*prompt, *head, first]).items():
                    expected[first, second] = expected.get((first, second), 0.0) + p * q * r
        counts = dict.fromkeys(expected, 0)
        for each in requests:
            counts[each.generated[begin], each.generated[begin + 1]] += 1
        cells = [(counts[pair], seeds * p) for pair, p in expected.items() if seeds * p >= 5]
        chi2 = sum((n - mean) ** 2 / mean for n, mean in cells)
        assert chi2 < len(cells) + 3.5 * (2 * len(cells)) ** 0.5, (chi2, len(cells))


def test_another_vocabulary_is_refused_in_one_line() -> None:
    if reason := why_absent("native"):
        pytest.skip(reason)

    def model(draft: Model | None = None, engine: str = "native", **changes: Any) -> Model:
        checkpoint = tiny_checkpoint(called="big" if draft else "little", **changes)
        built = open_engine(engine, replace(checkpoint.config, **changes), checkpoint.lookup)
        return Model(checkpoint, built, draft=draft)

    little = model()
    with model(little) as big:
        plain = little.generate("ab", temperature=1.0, seed=3, max_tokens=12, speculate=False)
        assert big.generate("ab", temperature=1.0, seed=3, max_tokens=12).tokens == plain.tokens
        assert big.draft is little
    with pytest.raises(GemmaryError, match="reference engine cannot check guesses") as error:
        model(little, engine="reference")
    other = tiny_checkpoint(called="other")
    pieces = other.tokenizer.to_arrays()
    changed = replace(pieces, blob=pieces.blob[:-1] + bytes([pieces.blob[-1] ^ 1]))
    assert not pieces.same_tokens(changed, len(pieces))
    assert pieces.same_tokens(changed, len(pieces) - 1)
    smaller = tiny_checkpoint(called="smaller")
    config = replace(smaller.config, vocab_size=smaller.config.vocab_size - 3)
    few = Model(smaller, open_engine("native", config, random_leaves(config)))
    with pytest.raises(GemmaryError, match="smaller cannot be the draft model of big: its vocabulary has") as error:
        model(few)
    assert "\n" not in str(error.value)
