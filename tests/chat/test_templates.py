"""Telling whose template a checkpoint brings, without running it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemmary.chat import TEMPLATES, looks_like_gemma, template_of_folder
from gemmary.errors import GemmaryError

TURNS = "{% for m in messages %}{{ '<start_of_turn>' + (m.role if m.role != 'assistant' else 'model') + '\n' "
TURNS += "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
OPENING = "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
REFUSAL = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
FOLDING = "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% endif %}"


def test_our_own_texts() -> None:
    assert {style: looks_like_gemma(text) for style, text in TEMPLATES.items()} == {style: style for style in TEMPLATES}


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("{{ bos_token }}" + REFUSAL + TURNS + OPENING, "gemma1"),
        ("{{ bos_token }}\n" + REFUSAL + "\n" + TURNS + "\n" + OPENING, "gemma1"),
        (TURNS + OPENING, "gemma1"),
        ("{{ bos_token }}" + FOLDING + TURNS + OPENING, "gemma3"),
        ("{# Gemma's, it's said #}" + FOLDING + "{{ '<start_of_image>' }}" + TURNS + OPENING, "gemma3"),
    ],
)
def test_the_official_forms(template: str, style: str) -> None:
    assert looks_like_gemma(template) == style
    assert looks_like_gemma(template.replace("\n", "\\n")) == style


@pytest.mark.parametrize(
    "template",
    [
        "",
        "{{ messages }}",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endfor %}",
        TURNS + OPENING + "{{ 'You are a pirate.' }}",
        "You are a pirate." + TURNS + OPENING,
        TURNS.replace("| trim", "") + OPENING,
        "{% if tools %}{{ '[AVAILABLE_TOOLS]' }}{% endif %}" + TURNS + OPENING,
        REFUSAL + "{{ '<start_of_image>' }}" + TURNS + OPENING,
        "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + TURNS + OPENING,
        (TURNS + OPENING).replace("<end_of_turn>", ""),
        "{# " + TURNS + OPENING + " #}",
        TURNS + OPENING + " " * 100_000,
    ],
)
def test_others(template: str) -> None:
    assert looks_like_gemma(template) is None


def test_a_hostile_template_is_only_read() -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**12) %}{% endfor %}"
    assert looks_like_gemma(attack + TURNS + OPENING) in (None, "gemma1")
    assert looks_like_gemma("{#" * 30_000) is None
    assert looks_like_gemma("{{ '" * 15_000) is None


def test_where_a_folder_keeps_its_template(tmp_path: Path) -> None:
    assert template_of_folder(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATES["gemma1"]}))
    assert template_of_folder(tmp_path) == TEMPLATES["gemma1"]
    (tmp_path / "chat_template.jinja").write_text(TEMPLATES["gemma3"])
    assert template_of_folder(tmp_path) == TEMPLATES["gemma3"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"chat_template": [1]}'])
def test_a_folder_without_one(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(content)
    assert template_of_folder(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{"])
def test_a_corrupt_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(GemmaryError, match="cannot read the chat template"):
        template_of_folder(tmp_path)
