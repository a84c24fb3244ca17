"""Decoding, whole and streamed."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

BYTES_OF_CHARACTERS = ["é", "日", "🙂", "\ud7ff", "\ufffd", "\U0010ffff", "a"]
BAD_BYTES = [
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\xf4\x90\x80\x80",
    b"\xe2\x82",
    b"\xf0\x9f\x99",
    b"\x80",
    b"\xff",
    b"\xf0\x80\x80",
]


def id_lists(vocab_size: int, first_byte: int) -> st.SearchStrategy[list[int]]:
    """Any ids, mixed with byte runs that spell characters, parts of characters, or nothing valid."""
    any_id = st.integers(0, vocab_size - 1).map(lambda i: [i])
    special = st.integers(0, 7).map(lambda i: [i])
    spelled = st.sampled_from([c.encode() for c in BYTES_OF_CHARACTERS] + BAD_BYTES) | st.binary(max_size=5)
    run = spelled.map(lambda data: [first_byte + byte for byte in data])
    return st.lists(any_id | special | run | run, max_size=12).map(lambda parts: [i for part in parts for i in part])


@functools.cache
def library_of(tokenizer: Tokenizer) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=tokenizer.to_model_bytes())


def check_stream(tokenizer: Tokenizer, ids: list[int]) -> None:
    stream = tokenizer.stream()
    pieces = [stream.push(i) for i in ids]
    text = "".join(pieces) + stream.finish()
    assert text == tokenizer.decode(ids) == library_of(tokenizer).decode(ids)
    for piece in pieces:
        piece.encode()  # whole characters only: a lone surrogate would raise
    assert stream.finish() == ""


@SETTINGS
@given(data=st.data())
def test_a_stream_of_the_262k_vocabulary_is_its_decoding(gemma3: Tokenizer, data: st.DataObject) -> None:
    check_stream(gemma3, data.draw(id_lists(262_144, 238)))


@SETTINGS
@given(data=st.data())
def test_a_stream_of_the_256k_vocabulary_is_its_decoding(gemma2: Tokenizer, data: st.DataObject) -> None:
    check_stream(gemma2, data.draw(id_lists(256_000, 217)))


@SETTINGS
@given(text=st.text())
def test_any_text_survives(gemma3: Tokenizer, text: str) -> None:
    ids = gemma3.encode(text)
    assert gemma3.decode(ids) == text.replace("\u2581", " ")
    assert b"".join(map(gemma3.token_bytes, ids)).decode() == text.replace("\u2581", " ")


def test_a_character_appears_with_its_last_byte(gemma3: Tokenizer) -> None:
    stream = gemma3.stream()
    assert [stream.push(238 + byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]


def test_a_cut_off_character_is_one_replacement_for_each_byte(gemma3: Tokenizer) -> None:
    stream = gemma3.stream()
    assert [stream.push(i) for i in (238 + 0xE2, 238 + 0x82, gemma3.id("a"), 238 + 0xE2)] == [
        "",
        "",
        "\ufffd\ufffda",
        "",
    ]
    assert stream.finish() == "\ufffd"


def test_control_pieces_end_a_run_of_bytes(gemma3: Tokenizer) -> None:
    assert gemma3.decode([238 + 0xC3, 0, 238 + 0xA9]) == "\ufffd\ufffd"


def test_markers_stay_visible(gemma3: Tokenizer) -> None:
    assert gemma3.decode([105, 2364, 106]) == "<start_of_turn>user<end_of_turn>"


def test_numpy_ids_are_taken(gemma3: Tokenizer) -> None:
    ids = gemma3.encode("numpy é")
    assert gemma3.decode(np.array(ids, np.int32)) == "numpy é"


@pytest.mark.parametrize("bad", [-1, 262_144, 1 << 40])
def test_an_id_outside_the_vocabulary_is_refused(gemma3: Tokenizer, bad: int) -> None:
    with pytest.raises(GemmaryError, match=f"token id {bad} is outside the vocabulary"):
        gemma3.decode([bad])


def test_a_lone_surrogate_is_refused(gemma3: Tokenizer) -> None:
    with pytest.raises(GemmaryError, match="lone surrogate at character 2"):
        gemma3.encode("ab\ud800")
