"""Writing a tokenizer and reading it back, here and in transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import transformers

from gemmary.errors import GemmaryError
from gemmary.tokenizer import PieceType, Tokenizer
from tests.tokenizer import small
from tests.tokenizer.starter import Arrays

TEXTS = [
    "hello world",
    "  two\t\ttabs\n\n\nx",
    "<start_of_turn>user\nhi<end_of_turn>\n",
    "<mask><unused5><td>",
    "ҔӌԐڎ 𝔹 12345",
]


def test_gguf_arrays_come_back_bit_for_bit(gemma3: Tokenizer, starter_arrays: Arrays) -> None:
    ours, theirs = gemma3.to_arrays(), starter_arrays
    assert ours.blob == theirs.blob
    np.testing.assert_array_equal(ours.offsets, theirs.offsets)
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.types, theirs.types)
    assert {name: getattr(ours, name) for name in theirs.special_ids} == theirs.special_ids


def test_gguf_types_are_put_back_to_the_originals(gemma3: Tokenizer, gemma2: Tokenizer) -> None:
    def of(tokenizer: Tokenizer, piece: str) -> PieceType:
        return PieceType(tokenizer.to_pieces().types[tokenizer.id(piece)])

    shared_pieces = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "<mask>",
        "<unused0>",
        "<unused99>",
        "<start_of_turn>",
        "▁▁",
        "<0x41>",
        "in",
    ]
    assert [of(gemma3, piece) for piece in shared_pieces] == [of(gemma2, piece) for piece in shared_pieces]
    assert of(gemma2, "<unused99>") == of(gemma2, "<start_of_turn>") == PieceType.USER_DEFINED


def test_a_gguf_file_that_calls_the_end_of_turn_its_end_has_the_same_tokens() -> None:
    """Chat models are often stored with <end_of_turn> as eos_token_id."""
    found = Tokenizer.from_pieces(small.PIECES, small.SCORES, small.TYPES, eos_id=small.PIECES.index("<end_of_turn>"))
    expected = small.build()
    assert found.eos_id == expected.eos_id == small.PIECES.index("<eos>")
    text = "<start_of_turn>ab<end_of_turn>\n<eos>"
    assert found.encode(text, eos=True) == expected.encode(text, eos=True)
    assert found.to_model_bytes() == expected.to_model_bytes()


def test_a_model_file_is_kept_byte_for_byte(shared: Path, gemma2: Tokenizer) -> None:
    assert gemma2.to_model_bytes() == (shared / "tokenizers" / "gemma2" / "tokenizer.model").read_bytes()


def test_json_has_the_scores_and_types_of_the_model(shared: Path, tmp_path: Path, gemma2: Tokenizer) -> None:
    (tmp_path / "tokenizer.json").symlink_to(shared.resolve() / "tokenizers" / "gemma2" / "tokenizer.json")
    ours, theirs = Tokenizer.from_folder(tmp_path).to_pieces(), gemma2.to_pieces()
    assert ours.blob == theirs.blob
    np.testing.assert_array_equal(ours.scores, theirs.scores)
    np.testing.assert_array_equal(ours.types, theirs.types)


def test_the_json_we_write_is_the_original(shared: Path, gemma2_folder: Path) -> None:
    ours = json.loads((gemma2_folder / "tokenizer.json").read_bytes())
    assert ours == json.loads((shared / "tokenizers" / "gemma2" / "tokenizer.json").read_bytes())
    theirs = json.loads((shared / "tokenizers" / "gemma2" / "tokenizer_config.json").read_bytes())
    config = json.loads((gemma2_folder / "tokenizer_config.json").read_bytes())
    skipped = ("model_max_length", "chat_template")
    assert {k: theirs[k] for k in config if k not in skipped} == {k: v for k, v in config.items() if k not in skipped}


def test_transformers_loads_what_we_save(gemma3: Tokenizer, gemma3_folder: Path) -> None:
    tokenizer = gemma3
    loaded = transformers.AutoTokenizer.from_pretrained(gemma3_folder)
    assert [loaded(text)["input_ids"] for text in TEXTS] == [tokenizer.encode(text, bos=True) for text in TEXTS]
    assert len(loaded) == tokenizer.vocab_size
    special = (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id, loaded.unk_token_id)
    assert special == (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id)
    assert loaded.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "<bos>hi"


def test_the_model_file_wins_over_the_json_file(tmp_path: Path) -> None:
    small.build().save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("not read")
    assert Tokenizer.from_folder(tmp_path).encode("abc") == small.build().encode("abc")


def test_saving_leaves_nothing_else_and_replaces_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"old")
    small.build().save(tmp_path)
    names = ["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_saving_to_no_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match=r"cannot write .*tokenizer\.model: No such file or directory"):
        small.build().save(tmp_path / "missing")


def test_a_tokenizer_without_bos_policy_keeps_it(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pieces(small.PIECES, small.SCORES, small.TYPES, add_bos=False)
    assert not tokenizer.add_bos
    tokenizer.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_bytes())
    assert document["post_processor"]["single"] == [{"Sequence": {"id": "A", "type_id": 0}}]
    assert json.loads((tmp_path / "tokenizer_config.json").read_bytes())["add_bos_token"] is False


def test_a_piece_is_found_by_its_spelling() -> None:
    tokenizer = small.build()
    assert tokenizer.piece(tokenizer.id("▁th")) == "▁th"
    assert tokenizer.find("<unk>") == 3
    assert tokenizer.find("nothing") is None
    with pytest.raises(GemmaryError, match="no piece 'nothing'"):
        tokenizer.id("nothing")
