"""Prompts that begin like something that was read or written before: the same text to the bit, and less to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from gemmary.adapters import wrapped
from gemmary.chat import TEMPLATES
from gemmary.generate import Request, Scheduler
from gemmary.generate.prefixes import LEAST_SHARED, MOST_KEPT
from gemmary.generate.sight import Picture
from gemmary.generate.text import TextStream
from tests.checkpoints.adapters import random_adapter
from tests.generate.toys import reference, request
from tests.models import tiny_model
from tests.runs import why_absent
from tests.tiny import TINY, random_leaves, random_tokens
from tests.vision import tiny_gemma3
from tests.vision.tiny_paligemma import leaves

MAX_CHUNK = 16
"""Of the engines here: rings of windowed layers hold some 40 tokens, and every conversation is longer."""
Text = tuple[list[int], list[Any]]


@lru_cache
def native(name: str = "gemma3", kv_dtype: str = "auto", adapters: int = 0) -> Any:
    if reason := why_absent("native"):
        pytest.skip(reason)
    from gemmary.engines.native import NativeEngine

    config = replace(TINY[name], context_length=512)
    lookup = wrapped(random_leaves(config, 3), config, [random_adapter(config, seed=n) for n in range(adapters)])
    return NativeEngine(config, lookup, kv_dtype=kv_dtype, threads=2, max_chunk=MAX_CHUNK)


@lru_cache
def seeing() -> Any:
    if reason := why_absent("native"):
        pytest.skip(reason)
    from gemmary.engines.native import NativeEngine

    return NativeEngine(tiny_gemma3.CONFIG, leaves(tiny_gemma3.CONFIG), threads=2, max_chunk=MAX_CHUNK)


def scheduler(engine: Any, **options: Any) -> Scheduler:
    return Scheduler(engine, step_tokens=MAX_CHUNK, **options)


def words(count: int, seed: int = 0) -> list[int]:
    return random_tokens(TINY["gemma"], count, seed)  # the smallest vocabulary


def asked(prompt: Sequence[int], *pictures: Picture, adapter: int = 0, **options: Any) -> Request:
    made = request(prompt, **{"max_tokens": 20, "logprobs": 1, "ignore_eos": True, "seed": 5, **options})
    made.adapter, made.pictures = adapter, pictures
    if pictures:  # of a larger vocabulary than the toys'
        made.text = TextStream(tiny_gemma3.tokenizer().stream())
    return made


def run(scheduler: Scheduler, *requests: Request) -> list[Text]:
    for each in requests:
        scheduler.submit(each)
    while scheduler.step():
        pass
    assert [each.error for each in requests] == [None] * len(requests)
    return [(each.generated, each.logprobs) for each in requests]


def anew(engine: Any, *requests: Request) -> list[Text]:
    """What requests say that share nothing with any other."""
    fresh = [asked(each.prompt, *each.pictures, adapter=each.adapter, seed=each.seed) for each in requests]
    for each, like in zip(fresh, requests, strict=True):
        each.params = replace(like.params, cache_prompt=False)
    found = run(scheduler(engine), *fresh)
    assert [each.cached for each in fresh] == [0] * len(fresh)
    return found


@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_a_conversation_reads_what_is_new(name: str, kv_dtype: str) -> None:
    engine = native(name, kv_dtype)
    for temperature, speculate in ((0.0, True), (1.2, False)):
        going, said, held = scheduler(engine), words(30), 0
        for turn in range(4):
            one = asked(said, temperature=temperature, speculate=speculate)
            assert run(going, one) == anew(engine, one)
            # What was written last is not read before it is asked for, unless it was guessed.
            assert one.cached == held or (speculate and one.cached == held + 1)
            assert one.stats().cached_tokens == one.cached
            held = len(said) + len(one.generated) - 1
            said = [*said, *one.generated, *words(9, turn + 1)]
        assert len(said) > 3 * MAX_CHUNK + 60


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_what_differs_is_read_anew(name: str) -> None:
    """Wherever a prompt departs from what was said: from there, or all of it where rings have lost what is needed."""
    engine, said = native(name), words(60)
    shared = {}
    for count in (0, LEAST_SHARED - 1, LEAST_SHARED, 33, 48, 60, 70):
        going, first = scheduler(engine), asked(said)
        run(going, first)
        whole = [*said, *first.generated]
        other = asked([*whole[:count], 9 if whole[count] != 9 else 8, *words(9, 1)])
        assert run(going, other) == anew(engine, other)
        shared[count] = other.cached
    if engine.config.sliding_window is None:
        assert shared == {0: 0, LEAST_SHARED - 1: 0, **{n: n for n in (LEAST_SHARED, 33, 48, 60, 70)}}
    else:
        assert shared == {0: 0, LEAST_SHARED - 1: 0, LEAST_SHARED: 0, 33: 0, **{n: n for n in (48, 60, 70)}}


@pytest.mark.parametrize("name", ["gemma", "gemma3"])
def test_a_prompt_that_lies_within_what_was_said(name: str) -> None:
    engine, said = native(name), words(60)
    for count in (60, 55):
        going = scheduler(engine)
        run(going, asked(said))
        again = asked(said[:count], temperature=0.9)
        assert run(going, again) == anew(engine, again)
        assert again.cached == count - 1


def test_an_adapters_keys_are_its_own() -> None:
    engine, said = native(adapters=2), words(40)
    going = scheduler(engine)
    for adapter, cached in ((0, 0), (1, 0), (2, 0), (1, 39), (0, 39), (2, 39)):
        one = asked(said, adapter=adapter)
        assert run(going, one) == anew(engine, one)
        assert one.cached == cached


def square(seed: int) -> Picture:
    side = tiny_gemma3.SIZE
    return Picture(np.random.default_rng(seed).uniform(-1, 1, (side, side, 3)).astype(np.float32), 40, 30)


def test_a_second_question_about_a_picture_reads_the_question() -> None:
    engine, one, other = seeing(), square(0), square(1)
    before = [2, *range(10, 22)]
    prompt = [*before, *tiny_gemma3.PICTURE, 30, 31, 32]
    begins = len(before) + 1  # the marker before it is text
    going = scheduler(engine)
    run(going, asked(prompt, one))
    cases: list[tuple[list[int], list[Picture], int]] = [
        ([*prompt[:-2], 40, 41], [one], len(prompt) - 2),
        ([*prompt[:-2], 40, *tiny_gemma3.PICTURE, 50], [one, other], len(prompt) - 1),  # goes on from the one before
        ([*prompt[:-2], 40, *tiny_gemma3.PICTURE, 51], [one, one], len(prompt)),
        (prompt, [other], begins),
        ([*before, *tiny_gemma3.PICTURE[:-1], *tiny_gemma3.PICTURE[1:], 30], [one, one], begins),  # they see each other
    ]
    for said, pictures, cached in cases:
        asking = asked(said, *pictures, max_tokens=3)
        assert run(going, asking) == anew(engine, asking)
        assert asking.cached == cached


def test_a_cache_serves_one_request_at_a_time() -> None:
    engine, going = native(), scheduler(native())
    first = asked(words(40))
    run(going, first)
    said = [*first.prompt, *first.generated, *words(5, 1)]
    pair = [asked(said, seed=seed, temperature=1.0) for seed in (1, 2)]
    assert run(going, *pair) == anew(engine, *pair)
    assert [each.cached for each in pair] == [59, 0]


def test_conversations_that_begin_alike_do_not_take_from_each_other() -> None:
    engine, going, system = native("gemma"), scheduler(native("gemma")), words(20)
    said = [[*system, *words(40, seed)] for seed in (1, 2)]
    cached = []
    for _ in range(3):
        for number in (0, 1):
            one = asked(said[number])
            assert run(going, one) == anew(engine, one)
            cached.append(one.cached)
            said[number] += [*one.generated, *words(6, 3)]
    assert cached == [0, 20, 79, 79, 105, 105]


def test_the_last_few_are_kept() -> None:
    going = scheduler(native())
    for seed in range(MOST_KEPT + 1):
        run(going, asked(words(30, seed)))
    assert going.prefixes.nbytes == MOST_KEPT * native().cache_bytes(50)
    found = [asked(words(30, seed)) for seed in range(MOST_KEPT + 1)]
    run(going, *found)
    assert [each.cached for each in found] == [0, 29, 29, 29, 29]
    going.close()
    assert going.prefixes.nbytes == 0


@pytest.mark.parametrize(("room", "cached"), [(1, 0), (2, 59)])
def test_a_longer_cache_is_a_copy_where_both_have_room(room: int, cached: int) -> None:
    engine = native("gemma")
    going = scheduler(engine, kv_bytes=room * engine.cache_bytes(100))
    first = asked(words(40), max_tokens=20)
    run(going, first)
    second = asked([*first.prompt, *first.generated, *words(10, 1)], max_tokens=30)
    assert run(going, second) == anew(engine, second)
    assert second.cached == cached
    assert (going.kv_used, going.prefixes.nbytes) == (0, engine.cache_bytes(100))


def test_where_only_one_cache_has_room_it_goes_on_itself() -> None:
    engine = native("gemma")
    going = scheduler(engine, context=200, kv_bytes=engine.cache_bytes(200))
    first = asked(words(40), max_tokens=160)
    run(going, first)
    second = asked([*words(40), *words(10, 2)], max_tokens=40)
    assert run(going, second) == anew(engine, second)
    assert second.cached == 40  # a fifth of it: a copy would leave the rest for others
    assert (going.kv_used, going.prefixes.nbytes) == (0, engine.cache_bytes(200))


def test_a_request_that_has_to_wait_anyway_drops_nothing() -> None:
    engine = native("gemma")
    going = scheduler(engine, kv_bytes=2 * engine.cache_bytes(100))
    first = asked(words(40), max_tokens=20)
    run(going, first)
    kept = going.prefixes.nbytes
    busy, waiting = asked(words(90, 1), max_tokens=10), asked(words(150, 2), max_tokens=30)
    for each in (busy, waiting):
        going.submit(each)
    going.step()
    assert list(going.waiting) == [waiting]
    assert going.prefixes.nbytes == kept > 0


def test_what_was_read_before_a_cancellation_is_kept() -> None:
    going, said = scheduler(native()), words(60)
    first = asked(said)
    going.submit(first)
    going.step()
    going.step()
    going.cancel(first)
    again = asked(said)
    assert run(going, again) == anew(native(), again)
    assert again.cached == 2 * MAX_CHUNK


def test_who_wants_none_of_it_leaves_nothing() -> None:
    going, said = scheduler(native()), words(40)
    run(going, asked(said, cache_prompt=False))
    assert going.prefixes.nbytes == 0
    run(going, asked(said))
    plain = asked(said, cache_prompt=False)
    run(going, plain)
    assert plain.stats().cached_tokens == 0
    rows_vary = Scheduler(reference())
    run(rows_vary, request(random_tokens(TINY["gemma3-mqa"], 30)))
    assert rows_vary.prefixes.nbytes == 0


def test_speed_counts_what_was_computed() -> None:
    going, said = scheduler(native()), words(40)
    run(going, asked(said))
    again = asked(said)
    run(going, again)
    stats = again.stats()
    assert (stats.prompt_tokens, stats.cached_tokens) == (40, 39)
    assert stats.prefill_tokens_per_s == pytest.approx(1 / stats.prefill_s)


def test_a_chat_goes_on() -> None:
    if reason := why_absent("native"):
        pytest.skip(reason)
    model = tiny_model(engine="native", template=TEMPLATES["gemma3"], context_length=256)
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0}
    messages = [{"role": "user", "content": "fetch a cab, then a bee, and a decade of bad cafe"}]
    first = model.chat(messages, **options)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "add a bead"}]
    second = model.chat(messages, **options)
    assert second.stats.cached_tokens >= first.stats.prompt_tokens - 1
    assert second.tokens == model.chat(messages, cache_prompt=False, **options).tokens
