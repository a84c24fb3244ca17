"""A conversation as text, exactly as the official templates render it (spec 2.5)."""

from __future__ import annotations

from collections.abc import Sequence

from gemmary.chat.messages import Message, to_turns
from gemmary.chat.templates import Style


def render(messages: Sequence[Message], style: Style, add_generation_prompt: bool = True) -> str:
    """The prompt's text, `<bos>` included, for reading and comparing.

    Models get `encode_chat`, not this text: here a marker inside a message looks like a real one. Raises GemmaryError
    for what the template refuses (except a system message for Gemma 1 and 2, which is folded).
    """
    turns, _ = to_turns(messages, style)
    text = "".join(f"<start_of_turn>{turn.role}\n{turn.text}<end_of_turn>\n" for turn in turns)
    return "<bos>" + text + "<start_of_turn>model\n" * add_generation_prompt
