"""A vocabulary trained on a text: Gemma's layout and switches, the same bytes each time, the same ids elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.errors import GemmaryError
from gemmary.tokenizer import PieceType, Tokenizer
from gemmary.tune.vocabulary import MARKERS, SMALLEST, USER_DEFINED, train_tokenizer
from gemmary.verify import builtin_text

TEXTS = [builtin_text(), "Ein Café in der Straße,\n\tum 12:45 Uhr."]
HARD = "  zwei  Leerzeichen\n\n\nund 1234 Zeilen\n\t<end_of_turn> ☃ é naïve"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXTS, 700)


def test_the_layout_is_gemmas(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 700
    assert [tokenizer.piece(i) for i in range(4)] == ["<pad>", "<eos>", "<bos>", "<unk>"]
    types = tokenizer.to_pieces().types
    assert [tokenizer.piece(i) for i in range(4, 4 + len(USER_DEFINED))] == list(USER_DEFINED)
    assert (types[4 : 4 + len(USER_DEFINED)] == PieceType.USER_DEFINED).all()
    assert (types[4 + len(USER_DEFINED) : SMALLEST] == PieceType.BYTE).all()
    assert (types[SMALLEST:] == PieceType.NORMAL).all()
    assert tokenizer.turn_ids == tuple(map(tokenizer.find, MARKERS))


def test_every_text_comes_back_as_it_was(tokenizer: Tokenizer) -> None:
    for text in (*TEXTS, HARD, ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    digits = [tokenizer.piece(i) for i in tokenizer.encode("1234")]
    assert digits == list("1234")
    assert tokenizer.encode("e\u0301") != tokenizer.encode("\u00e9")  # nothing is normalised


def test_the_same_text_gives_the_same_bytes(tokenizer: Tokenizer) -> None:
    assert train_tokenizer(iter(TEXTS), 700).to_model_bytes() == tokenizer.to_model_bytes()


def test_transformers_reads_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer.save(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in (*TEXTS, HARD):
        assert theirs.encode(text, add_special_tokens=False).ids == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (9000, r"too little in it for a vocab_size above \d"),
        (SMALLEST, r"needs a vocab_size of \d+ for its characters"),
    ],
)
def test_a_size_that_does_not_fit_the_text_is_told(size: int, message: str) -> None:
    with pytest.raises(GemmaryError, match=message):
        train_tokenizer(["hello, world"], size)
