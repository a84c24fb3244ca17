"""Stop strings and whole characters, however the text is cut."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.generate.text import StopScanner, TextStream
from tests.generate.toys import ToyTokenizer, spell


def scan(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.finish(), scanner.stopped


def by_hand(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first end of any stop string cuts at that string's beginning."""
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


@settings(max_examples=400, deadline=None)
@given(
    st.text("abc", max_size=20),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 20), max_size=6),
)
def test_the_cut_does_not_depend_on_the_pieces(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert scan(pieces, stops) == by_hand(text, stops)


def test_text_is_held_back_only_while_a_stop_string_may_begin() -> None:
    scanner = StopScanner(["STOP"])
    assert [scanner.push(piece) for piece in ("go ", "S", "TO", "RM", " ST", "OP rest", "more")] == [
        "go ", "", "", "STORM", " ", "", "",
    ]  # fmt: skip
    assert scanner.stopped
    assert scanner.finish() == ""


def test_characters_come_whole() -> None:
    tokenizer = ToyTokenizer()
    stream = TextStream(tokenizer.stream())
    pieces = [stream.push(token) for token in spell("aé€🙂b", tokenizer)]
    assert pieces == ["a", "", "é", "", "", "€", "", "", "", "🙂", "b"]
    assert stream.finish() == ""


def test_a_character_that_is_cut_off_is_replaced() -> None:
    tokenizer = ToyTokenizer()
    stream = TextStream(tokenizer.stream())
    text = "".join(stream.push(token) for token in spell("🙂", tokenizer)[:3])
    assert text == ""
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}" * 3


def test_a_stop_string_may_be_made_of_bytes() -> None:
    tokenizer = ToyTokenizer()
    stream = TextStream(tokenizer.stream(), ["€"])
    text = "".join(stream.push(token) for token in spell("a é€🙂", tokenizer))
    assert text == "a é"
    assert stream.stopped
    assert stream.finish() == ""
