"""Requests with pictures: what they see, what is seen once only, and prompts whose keys serve again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemmary.adapters import wrapped
from gemmary.batch import Batch, Chunk
from gemmary.errors import GemmaryError
from gemmary.generate import Request, SamplingParams, Scheduler
from gemmary.generate.sight import Picture, Sight
from gemmary.generate.text import TextStream
from tests.checkpoints.adapters import random_adapter
from tests.runs import Array, relative_error
from tests.vision.tiny_paligemma import CONFIG, PATCHES, SIZE, CountingEngine, leaves, tokenizer

PLACE = CONFIG.image_token_id


def picture(seed: int = 0) -> Picture:
    pixels = np.random.default_rng([seed, 1]).uniform(-1, 1, (SIZE, SIZE, 3)).astype(np.float32)
    return Picture(pixels, 40, 30)


def request(words: list[int], *pictures: Picture, adapter: int = 0, **options: Any) -> Request:
    prompt = [PLACE] * (PATCHES * len(pictures)) + words
    params = SamplingParams.of({"temperature": 0, "max_tokens": 5, **options})
    text = TextStream(tokenizer().stream())
    return Request(prompt, params, text, prefix=len(prompt), pictures=pictures, adapter=adapter)


def finish(scheduler: Scheduler, *requests: Request) -> list[list[int]]:
    for each in requests:
        scheduler.submit(each)
    while scheduler.step():
        pass
    for each in requests:
        if each.error:
            raise each.error
    return [each.generated for each in requests]


def by_hand(words: list[int], *pictures: Picture) -> list[int]:
    """The same with the engine alone, the whole sequence anew for every token."""
    engine = CountingEngine()
    seen = engine.see(np.stack([each.pixels for each in pictures])) if pictures else None
    prompt, made = [PLACE] * (PATCHES * len(pictures)) + words, list[int]()
    for _ in range(5):
        cache = engine.new_cache(99)
        chunk = Chunk(prompt, prefix=len(prompt), pictures=seen, outputs="last" if not made else "none")
        row = engine.step(Batch.of(CONFIG, [chunk]), [cache])
        if made:
            row = engine.step(Batch.of(CONFIG, [Chunk(made, len(prompt))]), [cache])
        made.append(int(row[-1].argmax()))
    return made


@pytest.mark.parametrize("step_tokens", [512, 7, 1])
def test_a_prompt_is_one_chunk_beside_others(step_tokens: int) -> None:
    one, other = picture(0), picture(1)
    scheduler = Scheduler(CountingEngine(), step_tokens=step_tokens)
    requests = [request([2, 60, 61], one), request([2, 62], one, other), request([2, 5, 9, 44, 3])]
    expected = [by_hand([2, 60, 61], one), by_hand([2, 62], one, other), by_hand([2, 5, 9, 44, 3])]
    assert finish(scheduler, *requests) == expected
    assert by_hand([2, 60, 61], other) != expected[0]


def test_a_picture_is_seen_once() -> None:
    engine = CountingEngine()
    scheduler = Scheduler(engine)
    finish(scheduler, request([2, 60], picture(0)), request([2, 61], picture(0)))
    finish(scheduler, request([2, 62], picture(0), picture(1)))
    assert engine.pictures_seen == 2
    changed = picture(0)
    changed.pixels[3, 3, 0] += np.float32(0.001)
    finish(scheduler, request([2, 60], Picture(changed.pixels, 40, 30)))
    assert engine.pictures_seen == 3


def test_what_one_adapter_saw_is_not_used_for_another() -> None:
    lookup = wrapped(leaves(), CONFIG, [random_adapter(CONFIG), random_adapter(CONFIG, seed=1)])
    engine = CountingEngine(exact=True, lookup=lookup)
    sight = Sight(engine)
    seen = [sight.see([picture(0)], number) for number in (0, 1, 2)]
    assert engine.pictures_seen == 3
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert relative_error(seen[one], seen[other]) > 0.05
    for number in (0, 1, 2):
        np.testing.assert_array_equal(sight.see([picture(0)], number), seen[number])
        np.testing.assert_array_equal(engine.see(picture(0).pixels[None], adapter=number), seen[number])
    assert engine.pictures_seen == 6  # each once more, by hand

    sight = Sight(engine, tower_adapters={2})  # the first is told to be of the decoder alone: it sees as the base does
    for number, expected in ((0, 0), (1, 0), (2, 2)):
        np.testing.assert_array_equal(sight.see([picture(0)], number), seen[expected])
    assert engine.pictures_seen == 8

    scheduler = Scheduler(engine)
    for number in (0, 1, 0, 2, 1):
        asked = request([2, 60], picture(0), adapter=number)
        alone = Scheduler(CountingEngine(lookup=lookup))
        assert finish(scheduler, asked) == finish(alone, request([2, 60], picture(0), adapter=number))
    assert engine.pictures_seen == 11


def test_what_was_seen_takes_so_many_bytes_at_most() -> None:
    engine = CountingEngine()
    size = PATCHES * CONFIG.hidden_size * 4
    sight = Sight(engine, most_bytes=2 * size)
    sight.see([picture(0), picture(1)])
    sight.see([picture(0)])
    sight.see([picture(2)])  # in place of 1, which was not asked for since
    assert engine.pictures_seen == 3
    sight.see([picture(0), picture(2)])
    assert engine.pictures_seen == 3
    sight.see([picture(1)])
    assert engine.pictures_seen == 4
    none = Sight(CountingEngine(), most_bytes=0)
    np.testing.assert_array_equal(none.see([picture(0), picture(1)]), sight.see([picture(0), picture(1)]))


def prefill(engine: CountingEngine, scheduler: Scheduler, asked: Request) -> int:
    """Tokens of the step that gives the first token."""
    engine.computed.clear()
    finish(scheduler, asked)
    return engine.computed[0]


def test_the_same_prompt_is_not_read_again() -> None:
    engine = CountingEngine(exact=True)
    scheduler = Scheduler(engine)
    first = request([2, 60], picture(0), max_tokens=8)
    assert prefill(engine, scheduler, first) == PATCHES + 2
    again = request([2, 60], picture(0), max_tokens=5)
    assert prefill(engine, scheduler, again) == 1
    assert again.generated == first.generated[:5]
    third = request([2, 60], picture(0), max_tokens=8, temperature=1.0, seed=3)
    assert prefill(engine, scheduler, third) == 1
    fresh = request([2, 60], picture(0), max_tokens=8, temperature=1.0, seed=3)
    assert finish(Scheduler(CountingEngine(exact=True)), fresh) == [third.generated]
    longer = request([2, 60], picture(0), max_tokens=12)  # than there was room for
    assert prefill(engine, scheduler, longer) == 1
    assert longer.generated[:8] == first.generated


@pytest.mark.parametrize(
    "other",
    [
        lambda: request([2, 61], picture(0)),
        lambda: request([2, 60, 61], picture(0)),
        lambda: request([2, 60], picture(1)),
    ],
    ids=["another question", "a longer one", "another picture"],
)
def test_any_other_prompt_is_read_whole(other: Callable[[], Request]) -> None:
    engine = CountingEngine(exact=True)
    scheduler = Scheduler(engine)
    finish(scheduler, request([2, 60], picture(0)))
    asked = other()
    assert prefill(engine, scheduler, asked) == len(asked.prompt)
    assert finish(Scheduler(CountingEngine(exact=True)), other()) == [asked.generated]


def test_keys_of_an_adapter_are_its_own() -> None:
    scheduler = Scheduler(CountingEngine(exact=True))
    finish(scheduler, request([2, 60], picture(0)))
    adapted = request([2, 60], picture(0))
    adapted.adapter, adapted.capacity = 1, len(adapted.prompt) + 5
    assert [start.length for start in scheduler.prefixes.starts(adapted)] == [0]
    adapted.adapter = 0
    assert [start.length for start in scheduler.prefixes.starts(adapted)] == [PATCHES + 1]


def test_where_rows_depend_on_the_step_nothing_is_kept() -> None:
    engine = CountingEngine(exact=False)
    scheduler = Scheduler(engine)
    finish(scheduler, request([2, 60], picture(0)))
    assert prefill(engine, scheduler, request([2, 60], picture(0))) == PATCHES + 2
    assert scheduler.prefixes.nbytes == 0


def test_two_at_once_do_not_share_a_cache() -> None:
    engine = CountingEngine(exact=True)
    scheduler = Scheduler(engine)
    (first,) = finish(scheduler, request([2, 60], picture(0)))
    assert finish(scheduler, request([2, 60], picture(0)), request([2, 60], picture(0))) == [first, first]


def test_a_cancelled_request_leaves_its_prompt_behind() -> None:
    engine = CountingEngine(exact=True)
    scheduler = Scheduler(engine)
    asked = request([2, 60], picture(0), max_tokens=20)
    scheduler.submit(asked)
    scheduler.step()
    scheduler.step()
    scheduler.cancel(asked)
    assert prefill(engine, scheduler, request([2, 60], picture(0))) == 1


def test_what_is_kept_makes_way_for_requests() -> None:
    engine = CountingEngine(exact=True)
    one = engine.cache_bytes(PATCHES + 2 + 5)
    scheduler = Scheduler(engine, kv_bytes=2 * one)
    finish(scheduler, request([2, 60], picture(0)))
    assert scheduler.prefixes.nbytes == one
    finish(scheduler, request([2, 61], picture(0)), request([2, 62], picture(0)))
    assert scheduler.kv_used == 0
    assert scheduler.prefixes.nbytes == 2 * one
    for word in range(63, 70):
        finish(scheduler, request([2, word], picture(0)))
        assert scheduler.kv_used + scheduler.prefixes.nbytes <= 2 * one
    scheduler.close()
    assert scheduler.prefixes.nbytes == 0


def test_a_failed_request_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = CountingEngine(exact=True)
    scheduler = Scheduler(engine)

    def fail(*_: Any, **__: Any) -> Array:
        raise GemmaryError("the tower broke")

    asked = request([2, 60], picture(0))
    monkeypatch.setattr(engine, "see", fail)
    scheduler.submit(asked)
    with pytest.raises(GemmaryError, match="the tower broke"):
        scheduler.step()
    assert asked.finish_reason == "cancelled"
    assert scheduler.prefixes.nbytes == 0


def test_places_and_pictures_have_to_agree() -> None:
    scheduler = Scheduler(CountingEngine())
    asked = request([2, 60], picture(0), picture(1))
    asked.pictures = asked.pictures[:1]
    with pytest.raises(GemmaryError, match=rf"18 places \(id {PLACE}\) for tokens of pictures; 1 pictures need 9"):
        scheduler.submit(asked)
    with pytest.raises(GemmaryError, match="outside the vocabulary"):
        scheduler.submit(request([2, PLACE + 1], picture(0)))


def test_a_repetition_penalty_passes_over_places() -> None:
    (plain,) = finish(Scheduler(CountingEngine()), request([2, 60], picture(0), repetition_penalty=1.5))
    assert len(plain) == 5


def test_allowed_tokens_are_chosen_from_and_log_probabilities_stay() -> None:
    asked = request([2, 60], picture(0), logprobs=0)
    asked.allowed = lambda tokens: [70 + len(tokens), 90] if len(tokens) < 3 else None
    (tokens,) = finish(Scheduler(CountingEngine()), asked)
    assert all(token in (70 + index, 90) for index, token in enumerate(tokens[:3]))
    free = request([2, 60], picture(0), logprobs=0)
    finish(Scheduler(CountingEngine()), free)
    assert asked.logprobs[0].logprob < free.logprobs[0].logprob


@pytest.mark.parametrize("ids", [[], [CONFIG.vocab_size], [-1, 5]])
def test_something_has_to_be_allowed(ids: list[int]) -> None:
    asked = request([2, 60], picture(0))
    asked.allowed = lambda tokens: ids
    with pytest.raises(GemmaryError, match="`allowed` has to leave at least one token of the vocabulary"):
        finish(Scheduler(CountingEngine()), asked)
