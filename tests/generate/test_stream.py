"""Requests as callers see them: pieces, stops, endings, cancellation by dropping the stream."""

from __future__ import annotations

import gc
import math
from collections import deque
from typing import Any

import pytest

from gemmary.batch import Batch
from gemmary.engines import Logits
from gemmary.errors import GemmaryError
from gemmary.generate import Piece, Scheduler, Stream
from tests.generate.toys import ScriptedEngine, ToyTokenizer, reference, request, spell

TOKENIZER = ToyTokenizer()
PROMPT = [2, 6, 7]


def scripted(tokens: list[int], **options: Any) -> tuple[Stream, Scheduler]:
    """A stream whose answer begins with these tokens."""
    scheduler = Scheduler(ScriptedEngine([0] * (len(PROMPT) - 1) + tokens))
    return Stream(scheduler, request(PROMPT, **options)), scheduler


def read(tokens: list[int], **options: Any) -> tuple[list[Piece], Stream]:
    stream, scheduler = scripted(tokens, **options)
    pieces = list(stream)
    assert not scheduler.running
    assert [piece.finish_reason is None for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert [piece.token for piece in pieces] == tokens[: len(pieces)]
    return pieces, stream


def test_a_stop_string_may_span_tokens_and_is_not_in_the_text() -> None:
    tokens = TOKENIZER.ids("a", "ST", "b", "ST", "OP", "c")
    pieces, stream = read(tokens, stop="STOP")
    assert [piece.text for piece in pieces] == ["a", "", "STb", "", ""]
    assert stream.completion.text == "aSTb"
    assert stream.completion.finish_reason == "stop"
    assert stream.completion.tokens == tuple(tokens[:5])  # those of the stop string too


def test_a_stop_string_inside_a_token_cuts_it() -> None:
    pieces, _ = read(TOKENIZER.ids("a", "pping", "b"), stop=["pin", "zzz"])
    assert "".join(piece.text for piece in pieces) == "ap"
    assert pieces[-1].finish_reason == "stop"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    pieces, _ = read(TOKENIZER.ids("sto", "pping", " stop"), stop=["ing", "top", " stop"])
    assert "".join(piece.text for piece in pieces) == "s"


def test_text_held_for_a_stop_string_that_does_not_come_is_given_at_the_end() -> None:
    pieces, _ = read(TOKENIZER.ids("a", "b", "ST"), stop="STOP", max_tokens=3)
    assert [piece.text for piece in pieces] == ["a", "b", "ST"]
    assert pieces[-1].finish_reason == "length"


@pytest.mark.parametrize("options", [{}, {"stop": [7]}])
def test_a_stop_token_ends_the_text_and_is_among_the_tokens(options: dict[str, Any]) -> None:
    end = options["stop"][0] if options else TOKENIZER.eos_id
    pieces, stream = read([8, 9, end, 10], **options)
    assert [piece.text for piece in pieces] == ["c", "d", ""]
    assert stream.completion.finish_reason == "stop"
    assert stream.completion.tokens == (8, 9, end)


def test_ignore_eos_goes_on_but_keeps_the_callers_own_stops() -> None:
    pieces, _ = read([8, 1, 9, 7, 10], ignore_eos=True, stop=[7])
    assert [piece.token for piece in pieces] == [8, 1, 9, 7]
    assert "".join(piece.text for piece in pieces) == "cd"


def test_pieces_hold_whole_characters() -> None:
    pieces, _ = read(spell("é🙂x€", TOKENIZER), max_tokens=10)
    assert [piece.text for piece in pieces] == ["", "é", "", "", "", "🙂", "x", "", "", "€"]
    pieces, _ = read(spell("x🙂", TOKENIZER), max_tokens=3)
    assert [piece.text for piece in pieces] == ["x", "", "\N{REPLACEMENT CHARACTER}" * 2]


def test_logprobs_of_pieces_and_completion() -> None:
    scheduler = Scheduler(reference())
    stream = Stream(scheduler, request(PROMPT, logprobs=83, temperature=1.3, seed=3, ignore_eos=True))
    pieces = list(stream)
    completion = stream.completion
    assert completion.logprobs is not None
    for piece, logprob in zip(pieces, completion.logprobs, strict=True):
        assert (piece.token, piece.logprob, piece.top_logprobs) == (logprob.token, logprob.logprob, logprob.top)
        values = dict(logprob.top)
        assert len(values) == 83
        assert sum(math.exp(value) for value in values.values()) == pytest.approx(1, abs=1e-5)
        assert list(values.values()) == sorted(values.values(), reverse=True)
        assert values[piece.token] == piece.logprob
    assert len({piece.token for piece in pieces}) > 2
    plain = Stream(scheduler, request(PROMPT))
    assert all(piece.logprob is None for piece in plain)
    assert plain.completion.logprobs is None


def fail(piece: Piece) -> None:
    raise ZeroDivisionError(piece)


def test_streams_of_one_scheduler_share_steps() -> None:
    scheduler = Scheduler(reference())
    first = Stream(scheduler, request(PROMPT, ignore_eos=True))
    second = Stream(scheduler, request([2, 9], ignore_eos=True))
    together = [(a.token, b.token) for a, b in zip(first, second, strict=True)]
    alone = [list(Stream(Scheduler(reference()), request(p, ignore_eos=True))) for p in (PROMPT, [2, 9])]
    assert together == [(a.token, b.token) for a, b in zip(*alone, strict=True)]


@pytest.mark.parametrize("how", ["close", "with", "drop", "error"])
def test_leaving_a_stream_frees_its_slot(how: str) -> None:
    stream, scheduler = scripted([6] * 40, max_tokens=40)
    next(stream)
    assert len(scheduler.running) == 1
    if how == "close":
        stream.close()
        assert list(stream) == []
        assert stream.completion.finish_reason == "cancelled"
        assert stream.completion.text == "a"
    elif how == "with":
        with stream:
            next(stream)
    elif how == "drop":
        del stream
        gc.collect()
    else:
        with pytest.raises(ZeroDivisionError), stream:
            fail(next(stream))
    assert scheduler.running == []
    assert scheduler.kv_used == 0


def test_ctrl_c_in_a_step_cancels_and_leaves_the_scheduler_usable() -> None:
    class Interrupted(ScriptedEngine):
        left = 3

        def step(self, batch: Batch, caches: Any, taps: dict[str, Logits] | None = None) -> Logits:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
            return super().step(batch, caches, taps)

    scheduler = Scheduler(Interrupted([6] * 60))
    stream = Stream(scheduler, request(PROMPT))
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        pieces.extend(stream)
    assert scheduler.running == []
    assert stream.completion.finish_reason == "cancelled"
    assert stream.stats.completion_tokens == 2
    assert len(list(Stream(scheduler, request(PROMPT)))) == 8


def test_an_error_reaches_every_stream_of_the_step_not_only_the_one_that_ran_it() -> None:
    class Failing(ScriptedEngine):
        def step(self, batch: Batch, caches: Any, taps: dict[str, Logits] | None = None) -> Logits:
            if batch.positions.max() >= len(PROMPT):
                raise MemoryError("no room")
            return super().step(batch, caches, taps)

    scheduler = Scheduler(Failing([6] * 64))
    first, second = (Stream(scheduler, request(PROMPT)) for _ in range(2))
    assert (next(first).token, next(second).token) == (6, 6)
    with pytest.raises(MemoryError):
        next(first)
    with pytest.raises(MemoryError):
        next(second)
    with pytest.raises(MemoryError):  # and does not turn into a short text afterwards
        second.read()


def test_a_request_has_not_ended_before_its_last_piece_is_there() -> None:
    """Another thread reads `unread` and `finish_reason` without a lock, in this order."""
    one = request(PROMPT, max_tokens=1)
    ended: list[bool] = []

    class Watched(deque[Piece]):
        def append(self, piece: Piece, /) -> None:
            ended.append(one.finish_reason is not None)
            super().append(piece)

    one.unread = Watched()
    scheduler = Scheduler(ScriptedEngine([6] * 8))
    scheduler.submit(one)
    scheduler.step()
    assert ended == [False]
    assert one.unread[-1].finish_reason == one.finish_reason == "length"


def test_a_refused_request_leaves_nothing_behind() -> None:
    scheduler = Scheduler(reference())
    with pytest.raises(GemmaryError):
        Stream(scheduler, request([2] * 100))
    gc.collect()
    assert not scheduler.waiting
