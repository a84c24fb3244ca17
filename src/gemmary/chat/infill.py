"""CodeGemma's fill-in-the-middle prompt (spec 2.6)."""

from __future__ import annotations

from gemmary.chat.encode import Prompt
from gemmary.errors import GemmaryError
from gemmary.tokenizer import InfillIds, Tokenizer

_UNNAMED = InfillIds(67, 68, 69, 70)
"""Where the pieces stand in CodeGemma's vocabulary. Its `tokenizer.model`, and GGUF files made from it, keep the names
that Gemma 1 gave them (`<unused60>` to `<unused63>`)."""

_MAYBE_UNTRAINED = (
    "this tokenizer does not name the fill-in-the-middle tokens: only a CodeGemma checkpoint has learnt ids 67 to 70"
)


def fill_in_the_middle(tokenizer: Tokenizer, before: str, after: str) -> Prompt:
    """The prompt whose continuation belongs between `before` and `after`: prefix, suffix, then the middle to write.

    Both texts are taken literally (markers in them are escaped). The answer stops at any of the four tokens or EOS.
    Raises GemmaryError when the vocabulary has no such tokens.
    """
    named = tokenizer.infill_ids
    ids = _by_position(tokenizer) if named is None else named
    prompt = [
        tokenizer.bos_id,
        ids.prefix,
        *tokenizer.encode(before, escape_markers=True),
        ids.suffix,
        *tokenizer.encode(after, escape_markers=True),
        ids.middle,
    ]
    return Prompt(prompt, frozenset((*ids, tokenizer.eos_id)), (_MAYBE_UNTRAINED,) if named is None else ())


def _by_position(tokenizer: Tokenizer) -> InfillIds:
    names = [f"<unused{n}>" for n in range(60, 64)]
    if [tokenizer.find(name) for name in names] != list(_UNNAMED):
        raise GemmaryError("this tokenizer has no fill-in-the-middle tokens: use a CodeGemma checkpoint")
    return _UNNAMED
