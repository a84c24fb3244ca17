"""Rows as documents: what is scored, what transformers' template would write, and text that cannot forge structure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmary.chat import TEMPLATES, Style, encode_chat
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer
from gemmary.tune.rows import Example, Form, example_of, form_of
from tests.models import tiny_checkpoint
from tests.tokenizer import small

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SMALL = small.build()
CHAT, RAW = Form("gemma1", is_raw=False), Form("gemma1", is_raw=True)
EOS, BOS, START, END = 1, 2, small.PIECES.index("<start_of_turn>"), small.PIECES.index("<end_of_turn>")

USER = {"role": "user", "content": "What is 2+2?"}
MODEL = {"role": "assistant", "content": " It is\n\n4.\n"}
AGAIN = {"role": "user", "content": "\n\n And  3+3?\n"}
SYSTEM = {"role": "system", "content": "\nBe brief.\n"}


@pytest.fixture(params=["gemma1", "gemma3"])
def style(request: pytest.FixtureRequest) -> Style:
    name: Style = request.param
    return name


@pytest.fixture
def tokenizer(style: Style, request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue("gemma2" if style == "gemma1" else "gemma3")
    return found


def made(row: dict[str, Any], form: Form = CHAT, tokenizer: Tokenizer = SMALL) -> Example:
    example = example_of(row, tokenizer, form, source="rows.jsonl:7")
    assert example.tokens.shape == example.scored.shape
    assert (example.tokens.dtype, example.scored.dtype) == (np.int32, np.bool_)
    assert not example.scored[0]
    assert example.source == "rows.jsonl:7"
    return example


def scored_text(example: Example, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(example.tokens[example.scored].tolist(), skip_special=False)


# Kinds of rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "messages", [[USER, MODEL], [USER, MODEL, AGAIN, MODEL], [SYSTEM, USER, MODEL], [SYSTEM, AGAIN, MODEL, USER, MODEL]]
)
def test_a_conversation_has_the_ids_of_the_chat_template(
    tokenizer: Tokenizer, style: Style, messages: list[dict[str, str]]
) -> None:
    example = made({"messages": messages}, Form(style, is_raw=False), tokenizer)
    whole = encode_chat(tokenizer, messages, style, add_generation_prompt=False).ids
    assert [*example.tokens, *tokenizer.encode("\n")] == whole
    assert scored_text(example, tokenizer) == "It is\n\n4.<end_of_turn>" * messages.count(MODEL)


def test_transformers_writes_the_same_ids(gemma2: Tokenizer, shared: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(shared / "tokenizers" / "gemma2" / "tokenizer.json"), bos_token="<bos>"
    )
    for messages in ([USER, MODEL], [USER, MODEL, AGAIN, MODEL]):
        ids = theirs.apply_chat_template(messages, chat_template=TEMPLATES["gemma1"], return_dict=False)
        assert [*made({"messages": messages}, CHAT, gemma2).tokens, *gemma2.encode("\n")] == ids


def test_what_follows_the_last_answer_is_left_off(gemma2: Tokenizer) -> None:
    short, long = (made({"messages": m}, CHAT, gemma2) for m in ([USER, MODEL], [USER, MODEL, AGAIN]))
    assert short.tokens.tolist() == long.tokens.tolist()
    assert short.scored.tolist() == long.scored.tolist()


def test_prompt_and_completion_of_a_pretrained_model() -> None:
    example = made({"prompt": "ab", "completion": " abc", "id": 3}, RAW)
    prompt, completion = SMALL.encode("ab"), SMALL.encode(" abc")
    assert example.tokens.tolist() == [BOS, *prompt, *completion, EOS]
    assert example.scored.tolist() == [False] * (1 + len(prompt)) + [True] * (len(completion) + 1)


def test_the_prompt_ends_where_it_ends_at_inference() -> None:
    """ "ab" + "c" is one piece when read together, and never when "c" is generated."""
    assert len(SMALL.encode("abc")) == 1
    assert made({"prompt": "ab", "completion": "c"}, RAW).tokens.tolist() == [
        BOS,
        *SMALL.encode("ab"),
        *SMALL.encode("c"),
        EOS,
    ]


def test_prompt_and_completion_of_a_chat_model() -> None:
    turns = [{"role": "user", "content": "th"}, {"role": "assistant", "content": "ab"}]
    one, other = made({"prompt": "th", "completion": "ab"}), made({"messages": turns})
    assert one.tokens.tolist() == other.tokens.tolist()
    assert one.scored.tolist() == other.scored.tolist()
    assert one.tokens[one.scored].tolist() == [*SMALL.encode("ab"), END]


def test_a_text_is_scored_throughout() -> None:
    example = made({"text": "ab\nth", "messages": None})
    assert example.tokens.tolist() == [BOS, *SMALL.encode("ab\nth"), EOS]
    assert example.scored.tolist() == [False] + [True] * (len(example.tokens) - 1)


@pytest.mark.parametrize(
    ("name", "template", "choice", "form"),
    [
        ("gemma2", None, "auto", Form("gemma1", is_raw=True)),
        ("gemma2", TEMPLATES["gemma1"], "auto", Form("gemma1", is_raw=False)),
        ("gemma3", None, "auto", Form("gemma3", is_raw=True)),
        ("gemma3", TEMPLATES["gemma1"], "raw", Form("gemma1", is_raw=True)),
        ("gemma2", None, "gemma3", Form("gemma3", is_raw=False)),
    ],
)
def test_a_model_is_tuned_as_it_is_asked(name: str, template: str | None, choice: str, form: Form) -> None:
    assert form_of(tiny_checkpoint(name, template=template), choice) == form


# What a row may not do ------------------------------------------------------------------------------------------------


PARTS = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<unused3>", "<", "end_of_turn>", "model\n", "x", " "]


@SETTINGS
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=8).map(lambda parts: "x" + "".join(parts)))
def test_no_text_forges_structure(content: str) -> None:
    special = {EOS, BOS, START, END}
    turns = [{"role": "user", "content": content}, {"role": "model", "content": content}]
    rows = [({"text": content}, RAW), ({"prompt": content, "completion": content}, RAW), ({"messages": turns}, CHAT)]
    for row, form in rows:
        ids = [i for i in made(row, form).tokens.tolist() if i in special]
        assert ids == ([BOS, START, END, START, END] if "messages" in row else [BOS, EOS])


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({}, "a row is one of messages; prompt + completion; text, and this one has nothing"),
        ({"question": "a", "answer": "b"}, "this one has question + answer"),
        ({"text": "a", "messages": [USER, MODEL]}, "this one has text + messages"),
        ({"prompt": "a"}, "this one has prompt"),
        ({"text": None}, "this one has nothing"),
        ({"text": 3}, "text must be a text, not int"),
        ({"text": " \n"}, "text is empty"),
        ({"prompt": "a", "completion": ""}, "completion is empty"),
        ({"prompt": ["a"], "completion": "b"}, "prompt must be a text, not list"),
        ({"messages": "hello"}, "a conversation is a non-empty list"),
        ({"messages": [USER]}, "no answer of the model to learn from"),
        ({"messages": [USER, {"role": "model", "content": "  "}]}, "an answer of the model is empty"),
        ({"messages": [MODEL]}, "must alternate"),
        ({"messages": [USER, {"role": "tool", "content": "x"}]}, "unknown role 'tool'"),
        ({"messages": [USER, {"role": "model", "content": [{"type": "image"}]}]}, "Invalid content type"),
        ({"text": "\ud800"}, "not valid Unicode"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(row: dict[str, Any], error: str) -> None:
    with pytest.raises(GemmaryError) as told:
        made(row)
    assert str(told.value).startswith("rows.jsonl:7: ")
    assert error in str(told.value)
    assert "\n" not in str(told.value)


def test_a_vocabulary_without_turns_is_told() -> None:
    renamed = [piece.replace("start_of_turn", "x") for piece in small.PIECES]
    tokenizer = Tokenizer.from_pieces(renamed, small.SCORES, small.TYPES)
    with pytest.raises(GemmaryError, match="cannot chat"):
        made({"messages": [USER, MODEL]}, CHAT, tokenizer)
    assert made({"prompt": "a", "completion": "b"}, RAW, tokenizer).scored.any()
