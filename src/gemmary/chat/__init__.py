"""Gemma's prompts: chat templates rendered by our own code, and CodeGemma's fill-in-the-middle.

No template that comes in a file or a request is ever executed; `looks_like_gemma` only recognises it.
"""

from __future__ import annotations

from gemmary.chat.encode import Prompt, continue_turn, encode_chat
from gemmary.chat.infill import fill_in_the_middle
from gemmary.chat.messages import Message
from gemmary.chat.render import render
from gemmary.chat.templates import TEMPLATES, Style, looks_like_gemma, style_of

__all__ = [
    "TEMPLATES",
    "Message",
    "Prompt",
    "Style",
    "continue_turn",
    "encode_chat",
    "fill_in_the_middle",
    "looks_like_gemma",
    "render",
    "style_of",
]
