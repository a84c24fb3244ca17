"""`gemmary chat`: turns, its own commands, and what Ctrl-C and Ctrl-D do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import gemmary
from gemmary import zoo
from gemmary.checkpoints import starter
from gemmary.checkpoints.peft import read_adapter
from gemmary.cli.chat import Chat
from tests.cli.conftest import Gemmary

QUICK = ("--engine", "reference", "--max-tokens", 6, "--seed", 3, "--top-k", 20)


@pytest.fixture
def chat(chat_model: Path) -> Chat:
    return Chat(gemmary.load(chat_model, engine="reference"), {"max_tokens": 6, "seed": 3, "top_k": 20})


def test_each_turn_sees_those_before_it(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.take("abc")
    first = chat.messages[1]["content"]
    assert chat.take("the th")
    answer = chat.model.generate(chat.model.chat_prompt(chat.messages[:3]), **chat.options)  # type: ignore[arg-type]
    assert chat.messages == [
        {"role": "user", "content": "abc"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "the th"},
        {"role": "assistant", "content": answer.text},
    ]
    assert capsys.readouterr().out == f"{first}\n{answer.text}\n"


def test_reset_undo_system_and_save(chat: Chat, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chat.take("abc")
    chat.take("tu")
    chat.take("/undo")
    assert [m["content"] for m in chat.messages[:1]] == ["abc"]
    assert len(chat.messages) == 2
    chat.take("/system ef")
    assert chat.messages == []
    chat.take("abc")
    chat.take(f"/save {tmp_path / 'talk.json'}")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert saved == [{"role": "system", "content": "ef"}, *chat.messages]
    chat.take("/reset")
    assert chat.messages == []
    assert chat.system == "ef"
    chat.take("/system")
    assert chat.system is None
    assert not chat.take("/exit")


def test_a_mistake_does_not_end_the_conversation(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.take("/dance")
    assert chat.take("/save")
    assert chat.take("/")
    assert chat.take("a b" * 5000)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: there is no command /dance: /help lists them"
    assert errors[1] == "error: say where: /save FILE"
    assert "the context holds 4,096" in errors[3]
    assert chat.messages == [], "a question without an answer is not kept"


def test_ctrl_c_stops_the_answer_and_keeps_what_came(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = chat.model.stream

    def interrupted(*arguments: Any, **options: Any) -> Any:
        found = stream(*arguments, **options)
        step, pieces = found._scheduler.advance, []

        def advance(request: Any) -> None:
            pieces.append(request)
            if len(pieces) == 3:
                raise KeyboardInterrupt
            step(request)

        monkeypatch.setattr(found._scheduler, "advance", advance)
        return found

    monkeypatch.setattr(chat.model, "stream", interrupted)
    chat.options["max_tokens"] = 100
    assert chat.take("abc")
    assert [m["role"] for m in chat.messages] in (["user", "assistant"], [])
    assert not chat.model.scheduler.running, "the request was cancelled"


def test_lines_from_stdin_are_turns_and_its_end_leaves(gemmary_command: Gemmary, chat_model: Path) -> None:
    done = gemmary_command("chat", chat_model, *QUICK, stdin="/help\nabc\\\ntu\n\n/nonsense\nef")
    assert done.code == 0
    assert done.out.count("\n") >= 2
    assert "Ctrl-C stops an answer" in done.err
    assert "error: there is no command /nonsense" in done.err
    assert done.err.count("tokens/s · first token") == 2


def test_a_base_model_says_that_it_is_one(gemmary_command: Gemmary, base_model: Path) -> None:
    done = gemmary_command("chat", base_model, *QUICK, stdin="abc\nabc\n")
    assert done.code == 0
    assert done.err.count("not instruction-tuned") == 1


# The starter's chat adapter -------------------------------------------------------------------------------------------


def test_the_shipped_adapter_is_small_fits_the_starter_and_carries_its_terms() -> None:
    folder = starter.chat_adapter()
    row = zoo.find(starter.HUB_ID)
    assert row is not None
    adapter = read_adapter(folder, row.config)
    assert (adapter.config.rank, len(adapter.weights)) == (8, 7 * row.config.num_layers)
    assert (folder / "adapter_model.safetensors").stat().st_size <= 4_000_000
    notice = "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms"
    assert (folder / "NOTICE").read_text().strip() == notice
    assert "Section 1: DEFINITIONS" in (folder / "GEMMA_TERMS.txt").read_text()
    assert "modified" in (folder / "README.md").read_text()


def test_the_starter_answers_in_turns_and_stops(
    starter_gguf: Path, gemmary_command: Gemmary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMMARY_HOME", str(starter_gguf.parent))
    monkeypatch.setenv("GEMMARY_KEEP_PACKED", "0")  # a copy would take longer than the answer
    said = "What is the capital of France?\nThank you\n"
    done = gemmary_command("chat", "starter", "--temperature", 0, "--max-tokens", 30, stdin=said)
    assert done.code == 0, done.err
    assert done.out.splitlines() == ["The capital of France is Paris.", "You're welcome!"]
    assert "adapter chat-adapter (LoRA, rank 8)" in done.err
    assert "not instruction-tuned" not in done.err


def test_an_adapter_and_none_are_one_too_many(gemmary_command: Gemmary) -> None:
    done = gemmary_command("chat", "starter", "--adapter", "here", "--no-adapter")
    assert "contradict each other" in done.error
