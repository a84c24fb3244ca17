"""The published test vectors and id tables (spec 2.2, 2.3, 2.8)."""

from __future__ import annotations

import pytest

from gemmary.tokenizer import Tokenizer

GEMMA2 = {
    "hello world": [17534, 2134],
    "12345": [235274, 235284, 235304, 235310, 235308],
    " <mask>  <pad>": [235248, 4, 139, 235322, 8939, 235313],
    "<table><th></th></table>": [169, 175, 183, 177],
    "one line\nand another line": [785, 2017, 108, 639, 2550, 2017],
    "ҔӌԐڎ": [427, 365, 428, 357, 429, 361, 435, 359],
    "Bienvenido a este proyecto": [176831, 476, 4004, 25431],
    "if allow == true { return x;} else {return x+y;}": [
        *(648, 2765, 1159, 1382, 612, 2203, 1141, 22505, 1354, 612, 773, 1141, 235340, 235267, 22505)
    ],
    "hi <td> bye": [544, 235248, 176, 44788],
    "Where is the cow standing?\n": [6006, 603, 573, 13910, 9980, 235336, 108],
    "  hello": [139, 17534],
    "\t\r": [226, 235316],
    "": [],
}


@pytest.mark.parametrize("text", GEMMA2)
def test_the_256k_vocabulary_encodes_the_published_vectors(gemma2: Tokenizer, paligemma: Tokenizer, text: str) -> None:
    assert gemma2.encode(text) == GEMMA2[text]
    assert paligemma.encode(text) == GEMMA2[text]


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ([3, 3, 1000, 3], " \u2047  \u2047 ew \u2047 "),
        ([349, 349, 349], "\ufffd\ufffd\ufffd"),
        ([2, 411, 380, 0, 1], "£"),
        ([139, 17534, 235248], "  hello "),
        ([], ""),
    ],
)
def test_the_256k_vocabulary_decodes_the_published_vectors(gemma2: Tokenizer, ids: list[int], text: str) -> None:
    assert gemma2.decode(ids) == text


def test_the_256k_vocabulary_has_the_published_ids(gemma2: Tokenizer) -> None:
    assert gemma2.vocab_size == 256_000
    assert (gemma2.pad_id, gemma2.eos_id, gemma2.bos_id, gemma2.unk_id) == (0, 1, 2, 3)
    assert gemma2.turn_ids == (106, 107)
    assert gemma2.image_ids is None
    assert [gemma2.id("\n" * n) for n in range(1, 32)] == list(range(108, 139))
    assert [gemma2.encode(" " * n) for n in range(2, 32)] == [[i] for i in range(139, 169)]
    assert [gemma2.token_bytes(217 + n) for n in range(256)] == [bytes([n]) for n in range(256)]
    assert gemma2.piece(67) == "<unused60>"
    assert gemma2.infill_ids is None


def test_the_paligemma_vocabulary_has_the_published_ids(paligemma: Tokenizer) -> None:
    assert paligemma.vocab_size == 257_152
    assert paligemma.encode("<loc0000><loc1023><seg000><seg127>") == [256_000, 257_023, 257_024, 257_151]


def test_the_262k_vocabulary_has_the_published_ids(gemma3: Tokenizer) -> None:
    assert gemma3.vocab_size == 262_144
    assert (gemma3.pad_id, gemma3.eos_id, gemma3.bos_id, gemma3.unk_id) == (0, 1, 2, 3)
    assert gemma3.turn_ids == (105, 106)
    assert gemma3.image_ids == (255_999, 256_000)
    assert [gemma3.encode("\n" * n) for n in range(1, 32)] == [[i] for i in range(107, 138)]
    assert [gemma3.encode(" " * n) for n in range(2, 32)] == [[i] for i in range(138, 168)]
    assert [gemma3.encode("\t" * n) for n in range(1, 32)] == [[i] for i in range(255_968, 255_999)]
    assert [gemma3.token_bytes(238 + n) for n in range(256)] == [bytes([n]) for n in range(256)]
    assert gemma3.encode("<unused99>") == [256_001]
    assert gemma3.encode("<unused6241>") == [262_143]
    assert gemma3.encode("<mask>[multimodal]<table>") == [4, 5, 168]
    digits = [236771, 236770, 236778, 236800, 236812, 236810, 236825, 236832, 236828, 236819]
    assert gemma3.encode("0123456789") == digits
    words = {"Yes": 10784, "No": 3771, "▁Yes": 8438, "▁No": 2301, "user": 2364, "model": 4368, "▁": 236743}
    assert {word: gemma3.id(word) for word in words} == words


def test_bos_and_eos_come_once_and_only_when_asked_for(gemma2: Tokenizer, gemma3: Tokenizer) -> None:
    for tokenizer in (gemma2, gemma3):
        text = "<bos>hello<eos>"
        bare = tokenizer.encode(text)
        assert not {tokenizer.bos_id, tokenizer.eos_id} & set(bare)
        assert tokenizer.encode(text, bos=True, eos=True) == [2, *bare, 1]
        assert tokenizer.decode(tokenizer.encode(text, bos=True, eos=True)) == text
        assert tokenizer.decode([2, *bare, 1, 0, 3], skip_special=False) == "<bos><bos>hello<eos><eos><pad><unk>"
        assert tokenizer.add_bos
