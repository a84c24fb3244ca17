"""Rendered text: the literal strings of spec 2.5, and our Jinja texts run by jinja2 as transformers runs them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemmary.chat import TEMPLATES, Style, render
from gemmary.chat.templates import INVALID_CONTENT, MUST_ALTERNATE, NO_SYSTEM_ROLE
from gemmary.errors import GemmaryError

USER = {"role": "user", "content": "  Hi there \n"}
MODEL = {"role": "assistant", "content": "\tHello! "}
SYSTEM = {"role": "system", "content": " Be brief. "}


@functools.cache
def compiled(style: Style) -> Template:
    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(TEMPLATES[style])


def jinja(messages: list[dict[str, Any]], style: Style, add_generation_prompt: bool = True) -> str:
    return compiled(style).render(messages=messages, bos_token="<bos>", add_generation_prompt=add_generation_prompt)


def both(messages: list[dict[str, Any]], style: Style, add_generation_prompt: bool = True) -> str:
    ours = render(messages, style, add_generation_prompt)
    assert ours == jinja(messages, style, add_generation_prompt)
    return ours


STYLES: list[Style] = ["gemma1", "gemma3"]


@pytest.mark.parametrize("style", STYLES)
def test_the_published_rendering(style: Style) -> None:
    opening = "<bos><start_of_turn>user\nHi there<end_of_turn>\n"
    assert both([USER], style) == opening + "<start_of_turn>model\n"
    assert both([USER], style, add_generation_prompt=False) == opening
    turns = opening + "<start_of_turn>model\nHello!<end_of_turn>\n<start_of_turn>user\nHi there<end_of_turn>\n"
    assert both([USER, MODEL, USER], style) == turns + "<start_of_turn>model\n"
    closed = opening + "<start_of_turn>model\nHello!<end_of_turn>\n"
    assert both([USER, MODEL], style) == closed + "<start_of_turn>model\n"
    assert render([USER, {"role": "model", "content": "Hello!"}], style) == render([USER, MODEL], style)


def test_gemma3_puts_the_system_text_untrimmed_before_the_first_user_text() -> None:
    text = "<bos><start_of_turn>user\n Be brief. \n\nHi there<end_of_turn>\n<start_of_turn>model\n"
    assert both([SYSTEM, USER], "gemma3") == text
    assert both([{"role": "system", "content": ""}, USER], "gemma3") == text.replace(" Be brief. ", "")
    parts = {"role": "system", "content": [{"type": "text", "text": " Be brief. "}]}
    assert both([parts, USER], "gemma3") == text
    assert both([SYSTEM, USER, MODEL, USER], "gemma3").count("Be brief") == 1


def test_gemma1_refuses_a_system_message_and_we_fold_it() -> None:
    with pytest.raises(TemplateError, match=NO_SYSTEM_ROLE):
        jinja([SYSTEM, USER], "gemma1")
    text = "<bos><start_of_turn>user\nBe brief.\n\nHi there<end_of_turn>\n<start_of_turn>model\n"
    assert render([SYSTEM, USER], "gemma1") == text
    assert render([{"role": "system", "content": " \n"}, USER], "gemma1") == render([USER], "gemma1")


def test_gemma3_content_parts() -> None:
    parts = [{"type": "text", "text": " What is "}, {"type": "image"}, {"type": "text", "text": " this? "}]
    text = "<bos><start_of_turn>user\nWhat is<start_of_image>this?<end_of_turn>\n<start_of_turn>model\n"
    assert both([{"role": "user", "content": parts}], "gemma3") == text
    with pytest.raises(GemmaryError, match=INVALID_CONTENT):
        render([{"role": "user", "content": parts}], "gemma1")
    with pytest.raises(TemplateError, match=INVALID_CONTENT):
        jinja([{"role": "user", "content": 7}], "gemma3")


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    "messages",
    [[MODEL], [USER, USER], [USER, MODEL, MODEL], [USER, MODEL, USER, USER]],
)
def test_roles_must_alternate(style: Style, messages: list[dict[str, Any]]) -> None:
    with pytest.raises(TemplateError) as theirs:
        jinja(messages, style)
    with pytest.raises(GemmaryError) as ours:
        render(messages, style)
    assert str(theirs.value) == MUST_ALTERNATE
    assert str(ours.value).startswith(MUST_ALTERNATE)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "non-empty list"),
        ("hi", "non-empty list"),
        ({"role": "user"}, "non-empty list"),
        (["hi"], '"role" and "content"'),
        ([{"role": "user"}], '"role" and "content"'),
        ([{"role": "tool", "content": "x"}], "unknown role 'tool'"),
        ([{"role": ["user"], "content": "x"}], "unknown role"),
        ([SYSTEM], "no user message"),
        ([USER, SYSTEM], "must alternate"),
        ([SYSTEM, MODEL], "must alternate"),
        ([{"role": "user", "content": 7}], INVALID_CONTENT),
        ([{"role": "user", "content": None}], INVALID_CONTENT),
        ([{"role": "user", "content": []}], INVALID_CONTENT),
        ([{"role": "user", "content": ["x"]}], INVALID_CONTENT),
        ([{"role": "user", "content": [{"type": "audio"}]}], INVALID_CONTENT),
        ([{"role": "user", "content": [{"type": "text"}]}], INVALID_CONTENT),
        ([{"role": "system", "content": [{"type": "image"}]}, USER], INVALID_CONTENT),
        ([{"role": "system", "content": 7}, USER], INVALID_CONTENT),
    ],
)
def test_bad_conversations_are_one_line(style: Style, messages: Any, message: str) -> None:
    with pytest.raises(GemmaryError, match=message) as caught:
        render(messages, style)
    assert "\n" not in str(caught.value)


text = st.text(alphabet=st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["{{ 7*7 }}", "{% raw %}", " \u2003x\u00a0", "<bos>"]
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(contents=st.lists(text, min_size=1, max_size=5), system=st.none() | text, prompt=st.booleans())
def test_any_conversation_renders_as_jinja_renders_it(contents: list[str], system: str | None, prompt: bool) -> None:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    both(messages, "gemma1", prompt)
    both(messages if system is None else [{"role": "system", "content": system}, *messages], "gemma3", prompt)
