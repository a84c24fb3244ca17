"""A conversation, checked and put into the form that both templates share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gemmary.chat.pictures import BEGIN
from gemmary.chat.templates import INVALID_CONTENT, MUST_ALTERNATE, Style
from gemmary.errors import GemmaryError

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "model", "content": str | [{"type": "text", "text": str} |
{"type": "image"}, …]}."""

FOLDED = "this model has no system role: the system message was put in front of the first user message"

_ROLES = {"user": "user", "assistant": "model", "model": "model", "system": "system"}


@dataclass(frozen=True)
class Part:
    """A piece of a turn's content. `is_image` parts hold the image marker; text is never trusted to hold markers."""

    text: str
    is_image: bool = False


@dataclass(frozen=True)
class Turn:
    role: Literal["user", "model"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def to_turns(messages: Sequence[Message], style: Style) -> tuple[list[Turn], list[str]]:
    """(turns, notices) of a conversation: roles renamed, contents trimmed, the system message folded.

    Gemma 3's template puts the system text, untrimmed, and a blank line before the first user text. Those of Gemma 1
    and 2 refuse a system message; it is folded in the same way, both texts trimmed, and a notice says so. Raises
    GemmaryError.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise GemmaryError('a conversation is a non-empty list of messages such as {"role": "user", "content": "…"}')
    roles = [_role(message) for message in messages]
    has_system = roles[0] == "system"
    turns = []
    for index, (role, message) in enumerate(zip(roles[has_system:], messages[has_system:], strict=True)):
        if role != ("user", "model")[index % 2]:
            raise GemmaryError(f"{MUST_ALTERNATE} (message {index + has_system} is {role!r})")
        turns.append(Turn("model" if role == "model" else "user", _parts(message["content"], style)))
    if not turns:
        raise GemmaryError("the conversation has a system message but no user message to answer")
    if not has_system:
        return turns, []
    system = _system_text(messages[0]["content"])
    if style == "gemma1":
        system = system.strip()
        if not system:
            return turns, []
    first = Turn("user", (Part(system + "\n\n"), *turns[0].parts))
    return [first, *turns[1:]], [FOLDED] if style == "gemma1" else []


def _role(message: Message) -> str:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise GemmaryError('each message needs "role" and "content"')
    role = message["role"]
    if not isinstance(role, str) or role not in _ROLES:
        raise GemmaryError(f"unknown role {role!r}: use user, assistant or system")
    return _ROLES[role]


def _parts(content: object, style: Style) -> tuple[Part, ...]:
    """The content's parts, each text trimmed (Python's str.strip is Jinja's trim)."""
    if isinstance(content, str):
        return (Part(content.strip()),)
    return tuple(_part(item, style) for item in _items(content))


def _part(item: Mapping[str, Any], style: Style) -> Part:
    if item.get("type") == "text" and isinstance(item.get("text"), str):
        return Part(item["text"].strip())
    if item.get("type") == "image" and style == "gemma3":
        return Part(BEGIN, is_image=True)
    raise GemmaryError(f"{INVALID_CONTENT}: {item.get('type')!r} in a message (text is what this model takes)")


def _items(content: object) -> Sequence[Mapping[str, Any]]:
    if isinstance(content, Sequence) and content and all(isinstance(item, Mapping) for item in content):
        return content
    raise GemmaryError(f'{INVALID_CONTENT}: a message is a text or a list of {{"type": "text", "text": "…"}}')


def _system_text(content: object) -> str:
    if isinstance(content, str):
        return content
    items = _items(content)
    if any(item.get("type") != "text" or not isinstance(item.get("text"), str) for item in items):
        raise GemmaryError(f"{INVALID_CONTENT}: a system message is text")
    return "".join(item["text"] for item in items)
