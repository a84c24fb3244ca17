"""Telling whose template a checkpoint brings, without running it."""

from __future__ import annotations

import pytest

from gemmary.chat import TEMPLATES, looks_like_gemma

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
