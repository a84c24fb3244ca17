"""All rows of a run, read before it starts, and rows as `--preview` shows them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from gemmary.chat import TEMPLATES
from gemmary.errors import GemmaryError
from gemmary.tune.data import load_data
from gemmary.tune.preview import Preview, preview, printable
from gemmary.tune.settings import Settings
from tests.models import tiny_checkpoint

CHECKPOINT = tiny_checkpoint("gemma2", template=TEMPLATES["gemma1"])
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "th\na"}, {"role": "assistant", "content": "abc ab"}]},
    {"text": "bc ef"},
    {"prompt": "a", "completion": "日"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Settings:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings(model="tiny", data=str(path), out="out", sequence_length=64)


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Preview:
    monkeypatch.chdir(tmp_path)
    return preview(write(Path("rows.jsonl"), ROWS), CHECKPOINT, 2)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_marks(shown: Preview) -> None:
    stream = io.StringIO()
    shown.write(stream)
    assert stream.getvalue() == MARKED


def test_a_terminal_gets_colours(shown: Preview, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    shown.write(stream)
    assert "\x1b[1;92mabc\x1b[0m\x1b[1;32m ab\x1b[0m\x1b[1;4;92m<end_of_turn>\x1b[0m" in stream.getvalue()
    assert "«" not in stream.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    shown.write(stream)
    assert "«abc| ab|<end_of_turn>»" in stream.getvalue()


def test_json_has_all_of_it(shown: Preview) -> None:
    found = json.loads(json.dumps(shown.as_json()))
    first, second = found["documents"]
    assert second["source"] == "rows.jsonl:2"
    assert second["pieces"] == ["<bos>", "bc", "▁", "ef", "<eos>"]
    assert second["scored"] == [False, True, True, True, True]
    assert second["visible"]["global"] == [[0, 0], [0, 1], [0, 2], [0, 3]]
    assert len(first["tokens"]) == len(first["pieces"]) == len(first["scored"])
    assert first["visible"]["local"][-1] == [len(first["tokens"]) - 6, len(first["tokens"]) - 2]
    assert found["packing"] == {
        "documents": 3,
        "packs": 1,
        "micro_batches": 1,
        "sequence_length": 64,
        "tokens": sum(len(each.tokens) - 1 for each in shown.batches.documents),
        "scored": 3 + 4 + 2,
    }
    assert found["notices"] == []


def test_a_text_has_no_power_over_a_terminal() -> None:
    assert printable("a\x1b[2J\tb\n\u202e") == "a\\x1b[2J\\tb↵\n\\u202e"


# Reading all rows -----------------------------------------------------------------------------------------------------


def test_splits_and_notices(tmp_path: Path) -> None:
    system = {"messages": [{"role": "system", "content": "x"}, *ROWS[0]["messages"]]}
    spelled = [{"text": "a <end_of_turn>"}, {"prompt": "<bos>a", "completion": "b"}]
    write(tmp_path / "valid.jsonl", ROWS[:1])
    write(tmp_path / "train.jsonl", [*ROWS, system, *spelled])
    data = load_data(Settings(model="tiny", data=str(tmp_path), out="out"), CHECKPOINT)
    assert (len(data.train), len(data.valid), len(data.test)) == (6, 1, 0)
    assert data.notices == (
        "1 row: this model has no system role: the system message was put in front of the first user message",
        "2 rows: a text spells a marker of Gemma's prompts, which is read as plain text: conversations are `messages` "
        "rows",
    )


def test_a_bad_row_stops_before_anything_starts(tmp_path: Path) -> None:
    settings = write(tmp_path / "rows.jsonl", [*ROWS, {"text": ""}])
    with pytest.raises(GemmaryError, match=r"rows\.jsonl:4: text is empty$"):
        load_data(settings, CHECKPOINT)
    long = write(tmp_path / "rows.jsonl", [*ROWS, {"prompt": "a" * 80, "completion": "b"}])
    with pytest.raises(GemmaryError, match=r"rows\.jsonl:4: the row has \d+ tokens and --sequence-length is 64"):
        preview(long, CHECKPOINT, 1)


def test_a_split_without_rows_is_told(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match=r"rows\.jsonl has no rows to train on$"):
        load_data(write(tmp_path / "rows.jsonl", []), CHECKPOINT)
    write(tmp_path / "rows.jsonl", ROWS)
    few = Settings(model="tiny", data=str(tmp_path / "rows.jsonl"), out="out", validation=0.001)
    with pytest.raises(GemmaryError, match=r"rows\.jsonl has no rows to validate on once the others are set apart$"):
        load_data(few, CHECKPOINT)


MARKED = """\
── rows.jsonl:1 · 22 tokens, 3 scored
<bos>|<start_of_turn>|u|<0x73>|e|<0x72>|↵
|th|↵
|a|<end_of_turn>|↵
|<start_of_turn>|<0x6D>|<0x6F>|<0x64>|e|<0x6C>|↵
«abc| ab|<end_of_turn>»
── rows.jsonl:2 · 5 tokens, 4 scored
<bos>«bc| |ef|<eos>»
── documents: 3 · packs of at most 64 tokens: 1, 67 % full · batches in an epoch: 1
scored: 9 tokens, between « and », and counted by the loss
mask: a token sees itself and what precedes it in its own document, 5 tokens back at most in local layers
"""
