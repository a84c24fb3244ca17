"""Documents out of files, and their split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemmary.errors import GemmaryError
from gemmary.tune.corpus import Document, read_documents, split


def test_files_folders_and_globs_are_read_in_the_order_of_their_paths(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_bytes(b"zwei\r\nZeilen")
    (tmp_path / "a.txt").write_text("\ufeffeins", encoding="utf-8")
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "drei\r\n"}) + "\n\n" + json.dumps({"text": "vier"}) + "\n")
    (tmp_path / "notes.md").write_text("not text to learn")
    found, notices = read_documents([str(tmp_path)])
    assert [(d.text, Path(d.source).name) for d in found] == [
        ("eins", "a.txt"), ("drei\n", "c.jsonl:1"), ("vier", "c.jsonl:3"), ("zwei\nZeilen", "b.txt")
    ]  # fmt: skip
    assert notices == []
    assert read_documents([str(tmp_path / "*.txt"), str(tmp_path / "a.txt")])[0] == [found[0]]
    assert read_documents([str(tmp_path / "**" / "*.txt"), str(tmp_path / "c.jsonl")])[0] == found


def test_blank_and_repeated_documents_are_left_out_and_told(tmp_path: Path) -> None:
    rows = ["same", " same\n", " ", "other"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    found, notices = read_documents([str(tmp_path / "rows.jsonl")])
    assert [document.text for document in found] == ["same", "other"]
    assert notices == ["2 blank or repeated documents are left out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "good"}\n{"text": 5}\n', "rows.jsonl:2 has no text"),
        (b'{"text": "good"}\n["text"]\n', "rows.jsonl:2 has no text"),
        (b'{"text": "good"\n', "rows.jsonl:1 is not valid JSON"),
        (b'{"text": "\\ud800"}\n', "rows.jsonl:1 is not valid Unicode"),
        (b"\xff\xfe", "rows.jsonl is not UTF-8 text: byte 0"),
        (b"\n \n", "there is no text in"),
    ],
)
def test_a_bad_row_is_told_by_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(GemmaryError, match=message):
        read_documents([str(tmp_path / "rows.jsonl")])


def test_a_place_without_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"")
    with pytest.raises(GemmaryError, match=r"there is no text at .*nowhere"):
        read_documents([str(tmp_path / "nowhere")])
    with pytest.raises(GemmaryError, match=r"picture.png is neither a .txt nor a .jsonl file"):
        read_documents([str(tmp_path / "picture.png")])


def test_the_split_depends_on_texts_and_seed_alone() -> None:
    documents = [Document(f"text {i}", f"file {i}") for i in range(40)]
    corpus = split(documents, 0.1, 0.2, seed=7)
    assert [len(part) for part in (corpus.train, corpus.validation, corpus.held_out)] == [28, 4, 8]
    assert {d.text for d in corpus.train + corpus.validation + corpus.held_out} == {d.text for d in documents}
    moved = [Document(d.text, "elsewhere") for d in reversed(documents)]
    again = split(moved, 0.1, 0.2, seed=7)
    assert [d.text for d in again.held_out] == [d.text for d in corpus.held_out]
    assert split(documents, 0.1, 0.2, seed=8).held_out != corpus.held_out


def test_a_split_that_leaves_nothing_to_train_on_is_refused() -> None:
    documents = [Document("one", "1"), Document("two", "2")]
    with pytest.raises(GemmaryError, match="2 documents are too few to hold 2 back"):
        split(documents, 0.1, 0.1, seed=0)
