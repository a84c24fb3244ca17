"""A row of data as the document that the model sees, and which of its tokens the loss counts.

Rows are text from anywhere: nothing that they say becomes a turn marker or another control token. What comes before an
answer is encoded apart from it, as at inference, where the prompt's ids are fixed before the first token is sampled:
no piece of the vocabulary spans that border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.chat import Message, Style, continue_turn, encode_chat, style_of
from gemmary.chat.messages import to_turns
from gemmary.checkpoints import Checkpoint
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer
from gemmary.tune.image_rows import Codec, ImageRow, read_image_row, spans_of
from gemmary.tune.pictures import Picture

Row = Mapping[str, Any]
Spans = Iterable[tuple[list[int], bool]]
"""The pieces of a document: ids, and whether the loss counts them."""


@dataclass(frozen=True)
class Example:
    """One document as the model sees it, T tokens."""

    tokens: npt.NDArray[np.int32]
    """[T], BOS included."""
    scored: npt.NDArray[np.bool_]
    """[T]: the loss counts the prediction of tokens[t] from those before it. scored[0] is False."""
    source: str
    """Where the row stands, for messages: "train.jsonl:17"."""
    prefix: int = 0
    """Tokens at the start that see each other."""
    image_row: ImageRow | None = None
    """What the document was made from, where it has pictures."""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Whose tokens stand at its places for pictures, in their order."""
        return self.image_row.pictures if self.image_row is not None else ()


@dataclass(frozen=True)
class Form:
    """How rows are put before a model."""

    style: Style
    """The chat template of conversations."""
    is_raw: bool
    """Whether `prompt` and `completion` are text as it stands, as a pretrained model is asked, or else turns."""
    sees: Config | None = None
    """The model's, where it sees pictures: its rows have them."""
    codec: Codec | None = None
    """What makes codes of masks."""
    mirrors: bool = False
    """Pictures may be mirrored: codes of masks are made of their mirror images, too."""


def form_of(
    checkpoint: Checkpoint, chat_style: str = "auto", codec: Codec | None = None, mirrors: bool = False
) -> Form:
    """How rows are put before a checkpoint: as `gemmary run` and `gemmary chat` put prompts before it.

    chat_style: "gemma1", "gemma3" or "raw" instead. A conversation has no raw form: its template is the model's then.
    codec, mirrors: as in `Form`.
    """
    if checkpoint.config.prefix_lm:  # a Gemma 3 that sees is tuned on text
        return Form("gemma1", is_raw=True, sees=checkpoint.config, codec=codec, mirrors=mirrors)
    own = style_of(checkpoint.config.family, checkpoint.chat_template)
    if chat_style == "auto":
        return Form(own, is_raw=not checkpoint.instruction_tuned)
    if chat_style == "raw":
        return Form(own, is_raw=True)
    return Form("gemma3" if chat_style == "gemma3" else "gemma1", is_raw=False)


def example_of(row: Row, tokenizer: Tokenizer, form: Form, *, source: str, folder: Path = Path()) -> Example:
    """The one way from a row to tokens and what is scored of them; the row's keys say which kind it is (`KINDS`).

    `messages`: the model's answers and their `<end_of_turn>` are scored, not the "\\n" that the template puts behind,
    which a model never samples; what follows the last answer is left off, since nothing scored could see it. `prompt`
    and `completion`: the completion and EOS, or turns (`Form.is_raw`). `text`: every token, and EOS. `image`, `prefix`
    and `suffix` or `objects`, for a model that sees pictures and for no other: the suffix and EOS. Other keys are
    left alone; None is as good as absent. folder: what paths in the row are relative to.

    Raises GemmaryError, which begins with `source`, for a row that is none of these or two of them, empty or malformed.
    """
    keys = [key for key, value in row.items() if value is not None]
    kinds = [kind for kind in (*KINDS, *IMAGE_KINDS) if set(kind) <= set(keys)]
    try:
        if len(kinds) != 1:
            has = " + ".join(keys) or "nothing"
            known = IMAGE_KINDS if form.sees is not None else KINDS
            raise GemmaryError(f"a row is one of {'; '.join(map(' + '.join, known))}, and this one has {has}")
        if kinds[0] not in KINDS:
            return _seen(row, tokenizer, form, source, folder)
        if form.sees is not None:
            raise GemmaryError(f"a model that sees pictures learns from {'; '.join(map(' + '.join, IMAGE_KINDS))}")
        return _example(KINDS[kinds[0]](row, tokenizer, form), source)
    except GemmaryError as error:
        raise GemmaryError(f"{source}: {error}") from None


def _example(spans: Spans, source: str, image_row: ImageRow | None = None) -> Example:
    """prefix: where there are pictures, the first span."""
    pieces = list(spans)
    tokens = [np.array(ids, np.int32) for ids, _ in pieces]
    scored = [np.full(len(ids), is_scored) for ids, is_scored in pieces]
    prefix = len(tokens[0]) if image_row is not None else 0
    return Example(np.concatenate(tokens), np.concatenate(scored), source, prefix, image_row)


# Kinds of rows --------------------------------------------------------------------------------------------------------


def _messages(row: Row, tokenizer: Tokenizer, form: Form) -> Spans:
    """Each answer after what the model is asked it with, the conversation going on in its cache."""
    messages: Sequence[Message] = row["messages"]
    turns, _ = to_turns(messages, form.style)
    answers = iter([turn.text for turn in turns if turn.role == "model"])
    asked: list[Message] = []
    is_first = True
    for message in messages:
        if message["role"] not in ("assistant", "model"):
            asked.append(message)
            continue
        if is_first:
            prompt = encode_chat(tokenizer, asked, form.style)
        else:
            prompt = continue_turn(tokenizer, asked, form.style, ended=True)
        answer = next(answers)
        if not answer:
            raise GemmaryError("an answer of the model is empty")
        yield prompt.ids, False
        yield [*tokenizer.encode(answer, escape_markers=True), tokenizer.id("<end_of_turn>")], True
        asked, is_first = [], False
    if is_first:
        raise GemmaryError("the conversation has no answer of the model to learn from")


def _prompt(row: Row, tokenizer: Tokenizer, form: Form) -> Spans:
    prompt, completion = _text(row, "prompt"), _text(row, "completion")
    if not completion.strip():
        raise GemmaryError("completion is empty")
    if not form.is_raw:
        turns = [{"role": "user", "content": prompt}, {"role": "model", "content": completion}]
        yield from _messages({"messages": turns}, tokenizer, form)
        return
    yield [tokenizer.bos_id, *tokenizer.encode(prompt, escape_markers=True)], False
    yield tokenizer.encode(completion, escape_markers=True, eos=True), True


def _plain(row: Row, tokenizer: Tokenizer, form: Form) -> Spans:
    text = _text(row, "text")
    if not text.strip():
        raise GemmaryError("text is empty")
    yield [tokenizer.bos_id], False
    yield tokenizer.encode(text, escape_markers=True, eos=True), True


KINDS: dict[tuple[str, ...], Callable[[Row, Tokenizer, Form], Spans]] = {
    ("messages",): _messages,
    ("prompt", "completion"): _prompt,
    ("text",): _plain,
}
"""The keys that make a row one of a kind, and what makes its document."""


IMAGE_KINDS: tuple[tuple[str, ...], ...] = (("image", "prefix", "suffix"), ("image", "prefix", "objects"))
"""Those of a model that sees pictures."""


def _seen(row: Row, tokenizer: Tokenizer, form: Form, source: str, folder: Path) -> Example:
    if form.sees is None:
        raise GemmaryError("the model sees no pictures: rows with an image are for one that does, such as PaliGemma")
    image_row = read_image_row(row, folder, form.codec, form.mirrors)
    return _example(spans_of(image_row, tokenizer, form.sees), source, image_row)


def _text(row: Row, key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise GemmaryError(f"{key} must be a text, not {type(value).__name__}")
    return value
