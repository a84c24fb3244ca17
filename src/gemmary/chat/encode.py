"""A conversation as token ids, built from its structure: what a message says can never become structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gemmary.chat.messages import Message, Turn, to_turns
from gemmary.chat.pictures import between
from gemmary.chat.templates import Style
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """What to feed a model, and when it is done."""

    ids: list[int]
    stop_ids: frozenset[int]
    """Ids that end the answer (they are no part of it)."""
    notices: tuple[str, ...] = ()
    """What was changed on the way and the user must be told."""


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    style: Style,
    *,
    add_generation_prompt: bool = True,
    picture: Sequence[int] = (),
) -> Prompt:
    """The ids of a whole conversation: BOS once, turn markers as their ids, message texts with markers escaped.

    picture: the ids of an image (`picture_ids`), of a model that sees; they stand where an item of type image is. For
    messages without markers in them the ids are those of the rendered text. Raises GemmaryError for a conversation that
    the template refuses, one with images for a model that sees none, or a tokenizer without turns.
    """
    turns, notices = to_turns(messages, style)
    markers = _turn_ids(tokenizer)
    ids = [tokenizer.bos_id]
    for turn in turns:
        ids += _turn(tokenizer, turn, markers, picture)
    if add_generation_prompt:
        ids += _opening(tokenizer, markers)
    return Prompt(ids, _stops(tokenizer, markers), tuple(notices))


def continue_turn(tokenizer: Tokenizer, messages: Sequence[Message], style: Style, *, ended: bool) -> Prompt:
    """The ids to append after a model's answer, when everything before is in the cache already (spec 2.5).

    messages: what follows the answer, beginning with a user message. ended: whether `<end_of_turn>` was sampled and fed
    to the model; if not it comes first. Then the "\\n" that a model never samples, the turns, and the model's opening.
    """
    if any(isinstance(message, dict) and message.get("role") == "system" for message in messages):
        raise GemmaryError("a system message can only open a conversation")
    turns, notices = to_turns(messages, style)
    markers = _turn_ids(tokenizer)
    ids = [] if ended else [markers[1]]
    ids += tokenizer.encode("\n")
    for turn in turns:
        ids += _turn(tokenizer, turn, markers)
    return Prompt(ids + _opening(tokenizer, markers), _stops(tokenizer, markers), tuple(notices))


def _turn_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    if tokenizer.turn_ids is None:
        raise GemmaryError("this tokenizer has no <start_of_turn>: the checkpoint cannot chat; use a raw prompt")
    return tokenizer.turn_ids


def _turn(tokenizer: Tokenizer, turn: Turn, markers: tuple[int, int], picture: Sequence[int] = ()) -> list[int]:
    # One text, so that the role's "\n" and newlines that open the content merge as they do in the rendered prompt.
    texts = [f"{turn.role}\n"]
    for part in turn.parts:
        if part.is_image:
            texts.append("")
        else:
            texts[-1] += part.text
    if len(texts) > 1 and not picture:
        raise GemmaryError("the conversation has an image, and this prompt is text only: remove the image")
    content = between(tokenizer, texts, picture, escape_markers=True)
    return [markers[0], *content, markers[1], *tokenizer.encode("\n")]


def _opening(tokenizer: Tokenizer, markers: tuple[int, int]) -> list[int]:
    return [markers[0], *tokenizer.encode("model\n")]


def _stops(tokenizer: Tokenizer, markers: tuple[int, int]) -> frozenset[int]:
    return frozenset((tokenizer.eos_id, markers[1]))
