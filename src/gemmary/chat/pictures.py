"""Pictures among text, as Gemma 3 was trained: a marker before and after each, blank lines around (spec 1.7)."""

from __future__ import annotations

from collections.abc import Sequence

from gemmary.tokenizer import Tokenizer

BEGIN, END = "<start_of_image>", "<end_of_image>"


def picture_ids(tokenizer: Tokenizer, place: int, count: int) -> list[int]:
    """The ids of a picture of `count` tokens, each the id `place`. Raises GemmaryError for a vocabulary without the
    markers."""
    return [tokenizer.id(BEGIN), *[place] * count, tokenizer.id(END)]


def between(
    tokenizer: Tokenizer, texts: Sequence[str], picture: Sequence[int], *, escape_markers: bool = False
) -> list[int]:
    """The ids of texts with a picture between each two. A blank line is one text with what it adjoins, so that newlines
    merge as in the whole prompt's text."""
    ids: list[int] = []
    for index, text in enumerate(texts):
        before, after = "\n\n" * (index > 0), "\n\n" * (index + 1 < len(texts))
        ids += [*picture] if index else []
        ids += tokenizer.encode(before + text + after, escape_markers=escape_markers)
    return ids
