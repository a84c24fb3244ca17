"""Continuous batching: what goes into a step, that nobody's neighbours change his text, and what is refused."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.engines import Logits
from gemmary.errors import GemmaryError
from gemmary.generate import Request, Scheduler
from tests.generate.toys import RecordingEngine, ScriptedEngine, reference, request
from tests.tiny import TINY, random_tokens

GEMMA3 = TINY["gemma3-mqa"]


def run(scheduler: Scheduler, *requests: Request) -> list[list[int]]:
    for each in requests:
        scheduler.submit(each)
    while scheduler.step():
        pass
    assert all(each.finish_reason in ("stop", "length") for each in requests)
    assert not scheduler.running
    assert not scheduler.waiting
    assert scheduler.kv_used == 0
    return [each.generated for each in requests]


def prompts(*lengths: int) -> list[list[int]]:
    return [random_tokens(GEMMA3, length, seed) for seed, length in enumerate(lengths)]


def test_a_step_mixes_decodes_and_pieces_of_prompts() -> None:
    engine = RecordingEngine(reference())
    scheduler = Scheduler(engine, step_tokens=8)
    first, second, third = (request(p, ignore_eos=True, max_tokens=5) for p in prompts(3, 12, 4))
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(second)
    scheduler.submit(third)
    while scheduler.step():
        pass
    assert engine.shapes == [
        [3],  # the first prompt alone
        [1, 7],  # it decodes; the second prompt begins with what is left of 8
        [1, 5, 2],  # … and ends; the third begins
        [1, 1, 2],
        [1, 1, 1],  # the first ends here
        [1, 1],
        [1, 1],
        [1],
    ]
    batch = engine.batches[2]
    assert batch.positions.tolist() == [4, 7, 8, 9, 10, 11, 0, 1]
    assert batch.outputs.tolist() == [0, 5]  # no logits for a prompt that goes on
    assert engine.batches[1].outputs.tolist() == [0]
    assert engine.capacities == [3 + 5, 12 + 5, 4 + 5]


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("step_tokens", [1, 3, 7, 512])
def test_greedy_text_is_that_of_the_whole_sequence_computed_anew(name: str, step_tokens: int) -> None:
    engine = reference(name)
    prompt = random_tokens(engine.config, 9)
    (found,) = run(Scheduler(engine, step_tokens=step_tokens), request(prompt, ignore_eos=True, max_tokens=12))
    ids = list(prompt)
    for _ in range(12):
        logits = engine.step(Batch.of(engine.config, [Chunk(ids)]), [engine.new_cache(64)])
        ids.append(int(logits[0].argmax()))
    assert found == ids[9:]


@pytest.mark.parametrize("step_tokens", [1, 5, 512])
@pytest.mark.parametrize("max_sequences", [1, 3, 64])
def test_same_seed_same_tokens_whatever_else_runs(step_tokens: int, max_sequences: int) -> None:
    sampled: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1, "seed": 77, "max_tokens": 15}
    given = prompts(6, 1, 13, 6, 20)
    given[3] = given[0]
    alone = [run(Scheduler(reference()), request(p, **sampled))[0] for p in given]
    together = run(
        Scheduler(reference(), step_tokens=step_tokens, max_sequences=max_sequences),
        *(request(p, **sampled) for p in given),
    )
    assert together == alone
    assert together[3] == together[0]
    assert len({tuple(tokens) for tokens in alone}) == 4
    other = run(Scheduler(reference()), request(given[0], **{**sampled, "seed": 78}))
    assert other[0] != alone[0]


@pytest.mark.parametrize("step_tokens", [1, 4, 512])
def test_logprobs_do_not_depend_on_the_batch(step_tokens: int) -> None:
    given = prompts(6, 11, 2)
    alone = request(given[0], logprobs=3)
    run(Scheduler(reference()), alone)
    together = [request(p, logprobs=3) for p in given]
    run(Scheduler(reference(), step_tokens=step_tokens), *together)
    for one, other in zip(alone.logprobs, together[0].logprobs, strict=True):
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
        np.testing.assert_allclose([x for _, x in one.top], [x for _, x in other.top], atol=2e-5)
        assert one.top[0] == (one.token, one.logprob)  # greedy


def test_admission_is_first_come_first_served_and_waits_for_memory() -> None:
    one = reference().cache_bytes(10 + 5)
    engine = RecordingEngine(reference())
    scheduler = Scheduler(engine, kv_bytes=2 * one)
    requests = [request(p, ignore_eos=True, max_tokens=5) for p in prompts(10, 10, 10, 2)]
    for each in requests:
        scheduler.submit(each)
    scheduler.step()
    assert engine.shapes == [[10, 10]]  # the fourth would fit into the rest, but it came after the third
    assert len(scheduler.waiting) == 2
    assert scheduler.kv_used == 2 * one
    while scheduler.step():
        assert scheduler.kv_used <= 2 * one
    assert [len(each.generated) for each in requests] == [5] * 4
    assert engine.shapes[5] == [10, 2]


def test_no_more_than_max_sequences_run() -> None:
    engine = RecordingEngine(reference())
    run(
        Scheduler(engine, max_sequences=2), *(request(p, max_tokens=3, ignore_eos=True) for p in prompts(2, 3, 4, 5, 6))
    )
    assert max(len(shape) for shape in engine.shapes) == 2


def test_a_prefix_that_sees_itself_is_never_cut() -> None:
    engine = RecordingEngine(reference("gemma"))
    scheduler = Scheduler(engine, step_tokens=6)
    given = [random_tokens(engine.config, n) for n in (4, 11, 12)]
    run(
        scheduler,
        request(given[0], max_tokens=2, ignore_eos=True),
        request(given[1], prefix=9, max_tokens=2, ignore_eos=True),  # waits for a step of its own: 9 > 6 - 4
        request(given[2], prefix=12, max_tokens=2, ignore_eos=True),
    )
    assert engine.shapes[:4] == [[4], [1, 9], [2], [1, 12]]
    assert engine.batches[1].visible["global"][1:, 1].tolist() == [8] * 9
    whole = run(Scheduler(engine, step_tokens=512), request(given[1], prefix=9, max_tokens=2, ignore_eos=True))
    causal = run(Scheduler(engine, step_tokens=512), request(given[1], max_tokens=2, ignore_eos=True))
    again = run(scheduler, request(given[1], prefix=9, max_tokens=2, ignore_eos=True))
    assert whole == again
    assert causal != whole


def test_a_bidirectional_prompt_goes_in_one_chunk() -> None:
    engine = RecordingEngine(reference("embeddinggemma"))
    scheduler = Scheduler(engine, step_tokens=4)
    scheduler.submit(request(random_tokens(engine.config, 15), max_tokens=1))
    scheduler.step()
    assert engine.shapes == [[15]]


def test_cancelling_frees_the_slot() -> None:
    scheduler = Scheduler(reference(), max_sequences=1)
    running, waiting, third = (request(p, max_tokens=40, ignore_eos=True) for p in prompts(3, 4, 5))
    for each in (running, waiting, third):
        scheduler.submit(each)
    scheduler.step()
    assert scheduler.running == [running]
    scheduler.cancel(running)
    scheduler.cancel(waiting)
    assert running.finish_reason == waiting.finish_reason == "cancelled"
    assert running.cache is None
    assert scheduler.kv_used == 0
    scheduler.step()
    assert scheduler.running == [third]
    assert len(running.generated) == 1
    scheduler.cancel(running)  # nothing more happens
    assert scheduler.running == [third]


def test_cancelling_from_within_a_step_waits_for_its_end() -> None:
    """As when the collector drops a stream in the middle of a step of the same thread."""

    class Cancelling(ScriptedEngine):
        def step(self, batch: Batch, caches: Any, taps: dict[str, Logits] | None = None) -> Logits:
            scheduler.cancel(dropped)
            assert scheduler.running == [dropped, kept]
            return super().step(batch, caches, taps)

    scheduler = Scheduler(Cancelling([6] * 64))
    dropped, kept = request([2, 6], max_tokens=9), request([2, 7], max_tokens=9)
    scheduler.submit(dropped)
    scheduler.submit(kept)
    scheduler.step()
    assert scheduler.running == [kept]
    assert dropped.finish_reason == "cancelled"


def test_cancelling_from_another_thread() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(ScriptedEngine):
        def step(self, batch: Batch, caches: Any, taps: dict[str, Logits] | None = None) -> Logits:
            entered.set()
            assert go_on.wait(60)
            return super().step(batch, caches, taps)

    scheduler = Scheduler(Slow([6] * 64))
    one = request([2, 6], max_tokens=50)
    scheduler.submit(one)
    stepper = threading.Thread(target=scheduler.step)
    stepper.start()
    assert entered.wait(60)
    canceller = threading.Thread(target=scheduler.cancel, args=(one,))
    canceller.start()
    while not one.cancelled:
        pass
    go_on.set()
    stepper.join(60)
    canceller.join(60)
    assert one.finish_reason == "cancelled"
    assert len(one.generated) == 1
    assert scheduler.running == []


def test_a_failing_engine_ends_the_requests_of_its_step_only() -> None:
    class Failing(ScriptedEngine):
        def step(self, batch: Batch, caches: Any, taps: dict[str, Logits] | None = None) -> Logits:
            if 7 in batch.tokens:
                raise MemoryError("no room")
            return super().step(batch, caches, taps)

    scheduler = Scheduler(Failing([6] * 64), max_sequences=1)
    bad, good = request([2, 7], max_tokens=3), request([2, 6], max_tokens=3)
    scheduler.submit(bad)
    scheduler.submit(good)
    with pytest.raises(MemoryError):
        scheduler.step()
    assert bad.finish_reason == "cancelled"
    assert isinstance(bad.error, MemoryError)
    with pytest.raises(MemoryError):
        scheduler.advance(bad)
    while scheduler.step():
        pass
    assert good.finish_reason == "length"


def test_a_cache_that_cannot_be_had_fails_its_own_request_only() -> None:
    class Small(ScriptedEngine):
        def new_cache(self, capacity: int) -> Any:
            if capacity > 20:
                raise GemmaryError("there is not enough memory for a cache")
            return super().new_cache(capacity)

    scheduler = Scheduler(Small([6] * 64))
    large, small = request([2, 6], max_tokens=30), request([2, 6], max_tokens=3)
    scheduler.submit(large)
    scheduler.submit(small)
    scheduler.advance(small)
    assert len(small.generated) == 1
    assert scheduler.running == [small]
    with pytest.raises(GemmaryError, match="not enough memory"):
        scheduler.advance(large)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "empty"),
        ([2] * 64, {"max_tokens": None}, "64 tokens and the context holds 64"),
        ([2] * 60, {"max_tokens": 5}, "max_tokens can be at most 4"),
        ([2, 83], {}, "token id 83 is outside the vocabulary"),
        ([2, -1], {}, "token id -1 is outside"),
        ([2] * 30, {"max_tokens": 30}, "60 tokens need .* key-value cache and .* are set aside"),
    ],
)
def test_what_can_never_run_is_refused_with_numbers(prompt: list[int], options: dict[str, Any], words: str) -> None:
    scheduler = Scheduler(reference(), kv_bytes=reference().cache_bytes(59))
    with pytest.raises(GemmaryError, match=words) as error:
        scheduler.submit(request(prompt, **options))
    assert "\n" not in str(error.value)
    assert not scheduler.waiting


def test_max_tokens_is_what_the_context_leaves_when_not_given() -> None:
    one = request([2] * 60, max_tokens=None, ignore_eos=True)
    run(Scheduler(reference()), one)
    assert len(one.generated) == 4
    assert one.finish_reason == "length"
    shorter = request([2] * 15, max_tokens=None, ignore_eos=True)
    run(Scheduler(reference(), context=20), shorter)
    assert len(shorter.generated) == 5


def test_stats_count() -> None:
    one = request(prompts(7)[0], max_tokens=4, ignore_eos=True)
    run(Scheduler(reference(), step_tokens=3), one)
    stats = one.stats()
    assert (stats.prompt_tokens, stats.completion_tokens) == (7, 4)
    assert stats.first_token_s >= stats.prefill_s > 0
    assert stats.decode_s > 0
    assert stats.decode_tokens_per_s == pytest.approx(3 / stats.decode_s)
    assert stats.prefill_tokens_per_s == pytest.approx(7 / stats.prefill_s)
