"""The two chat templates of the Gemma series: which is which, and their Jinja text for checkpoints we write.

"gemma1": Gemma 1, 1.1, 2 and CodeGemma-it. "gemma3": Gemma 3. The Jinja text is data for other programs: nothing here
executes it.
"""

from __future__ import annotations

import re
from typing import Literal

Style = Literal["gemma1", "gemma3"]

NO_SYSTEM_ROLE = "System role not supported"
MUST_ALTERNATE = "Conversation roles must alternate user/assistant/user/assistant/..."
INVALID_CONTENT = "Invalid content type"
"""The official templates' words for what they refuse (spec 2.5)."""

_ALTERNATE = (
    "{% if (turn['role'] == 'user') == (loop.index0 % 2 == 1) %}"
    "{{ raise_exception('" + MUST_ALTERNATE + "') }}{% endif %}"
)
_ROLE = "{{ '<start_of_turn>' + ('model' if turn['role'] == 'assistant' else turn['role']) + '\\n' }}"
_PROMPT = "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"

TEMPLATES: dict[Style, str] = {
    "gemma1": (
        "{{ bos_token }}"
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('" + NO_SYSTEM_ROLE + "') }}{% endif %}"
        "{% for turn in messages %}" + _ALTERNATE + _ROLE + "{{ turn['content'] | trim + '<end_of_turn>\\n' }}"
        "{% endfor %}" + _PROMPT
    ),
    "gemma3": (
        "{{ bos_token }}"
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else none %}"
        "{% set prefix = '' if system is none else (system if system is string else system[0]['text']) + '\\n\\n' %}"
        "{% for turn in (messages if system is none else messages[1:]) %}"
        + _ALTERNATE
        + _ROLE
        + "{{ prefix if loop.first else '' }}"
        "{% if turn['content'] is string %}{{ turn['content'] | trim }}"
        "{% elif turn['content'] is iterable %}{% for item in turn['content'] %}"
        "{% if item['type'] == 'image' %}{{ '<start_of_image>' }}"
        "{% elif item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}{% endfor %}"
        "{% else %}{{ raise_exception('" + INVALID_CONTENT + "') }}{% endif %}"
        "{{ '<end_of_turn>\\n' }}{% endfor %}" + _PROMPT
    ),
}
"""Jinja text, functionally equal to the official templates, for `chat_template` in the checkpoints we write."""

_REFUSAL = re.compile(r"raise_exception\(\s*(?:'([^']*)'|\"([^\"]*)\")\s*\)")
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|(['\"])", re.DOTALL)
_NOT_WORDS = re.compile(r"<bos>|<(?:start|end)_of_turn>|<start_of_image>|\\n|\s")
_KNOWN_WORDS = {"", "role", "system", "user", "assistant", "model", "content", "type", "text", "image"}
_MAX_TEMPLATE_CHARS = 1 << 16


def style_of(family: str, template_text: str | None) -> Style:
    """What a model of a family is prompted in: its checkpoint's own template where that is one of Gemma's."""
    recognised = looks_like_gemma(template_text) if template_text is not None else None
    return recognised or ("gemma3" if family == "gemma3" else "gemma1")


def looks_like_gemma(template_text: str) -> Style | None:
    """Which of Gemma's templates a checkpoint's Jinja text is, or None when it is neither.

    It is told by its features, and every text it could print must be one that Gemma's templates print: a template with
    a built-in system prompt, tools or other markers is not Gemma's. None means: say so and let the user choose.
    """
    if len(template_text) > _MAX_TEMPLATE_CHARS:
        return None
    printed: list[str] = []
    refusals = ""
    at = 0
    while (start := template_text.find("{", at)) >= 0:
        closing = {"{": "}}", "%": "%}", "#": "#}"}.get(template_text[start + 1 : start + 2])
        end = template_text.find(closing, start + 2) if closing else -1
        if closing is None or end < 0:
            return None
        printed.append(template_text[at:start])
        tag = template_text[start:end] if closing != "#}" else ""
        refusals += "".join("".join(match) for match in _REFUSAL.findall(tag)).lower()
        for single, double, unclosed in _LITERAL.findall(_REFUSAL.sub("", tag)):
            if unclosed:
                return None
            printed.append(single or double)
        at = end + 2
    printed.append(template_text[at:])
    return _style_of(template_text, printed, refusals)


def _style_of(template_text: str, printed: list[str], refusals: str) -> Style | None:
    """Told by the texts that the template prints or compares with, and what it refuses."""
    if not all(_NOT_WORDS.sub("", piece) in _KNOWN_WORDS for piece in printed) or "trim" not in template_text:
        return None
    everything = "\0".join(printed)
    if any(needed not in everything for needed in ("<start_of_turn>", "<end_of_turn>", "assistant", "model")):
        return None
    if "system" in refusals or "system" not in everything:
        return None if "<start_of_image>" in everything else "gemma1"
    return "gemma3" if re.search(r"\\n\\n|\n\n", everything) else None
