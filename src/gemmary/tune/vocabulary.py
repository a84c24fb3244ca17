"""A vocabulary of its own for a new model: SentencePiece BPE with the switches of Gemma's (specification 2.1).

Ids begin as in Gemma: <pad> 0, <eos> 1, <bos> 2, <unk> 3. Then come the pieces that are matched before any other (turn
markers, line ends, runs of spaces), the 256 bytes, and what was merged out of the text, the most frequent pairs first.
One that sees pictures ends as PaliGemma's (specification 2.8): 1024 locations, 128 codes of masks, and the placeholder
`<image>`, which has no row in the table.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import sentencepiece

from gemmary.errors import GemmaryError
from gemmary.tokenizer import PieceType, Tokenizer
from gemmary.tokenizer.pieces import SPACE, pack

MARKERS = ("<start_of_turn>", "<end_of_turn>")
USER_DEFINED = (*MARKERS, *("\n" * n for n in range(1, 5)), *(SPACE * n for n in range(2, 9)))
"""As Gemma has them, of line ends and spaces fewer: it goes up to 31, which a vocabulary of thousands can't spare."""
SMALLEST = 4 + len(USER_DEFINED) + 256
"""Pieces before the first one out of the text."""
PICTURE_TOKENS = (*(f"<loc{n:04d}>" for n in range(1024)), *(f"<seg{n:03d}>" for n in range(128)))
"""Locations and codes, at the end of a vocabulary that sees pictures."""

_PICTURE_TOKEN = re.compile(r"(?:<(?:loc\d{4}|seg\d{3})>)+")
_SPECIAL: dict[str, Any] = {f"{name}_id": i for i, name in enumerate(("pad", "eos", "bos", "unk"))} | {
    f"{name}_piece": f"<{name}>" for name in ("pad", "eos", "bos", "unk")
}
_MOST = re.compile(r"value <= (\d+)")
_LEAST = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains on the lines of the texts. The same texts in the same order give the same bytes.

    Nothing is normalised, digits stand alone, and what no piece spells is spelled in bytes. Raises GemmaryError where
    the texts give no vocabulary of this size.
    """
    lines = (line for text in texts for line in text.split("\n") if line)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines,
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            user_defined_symbols=list(USER_DEFINED),
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=2,
            **_SPECIAL,
        )
    except RuntimeError as error:
        if most := _MOST.search(str(error)):
            raise GemmaryError(f"the text has too little in it for a vocab_size above {int(most[1]):,}") from None
        if least := _LEAST.search(str(error)):
            raise GemmaryError(f"the text needs a vocab_size of {int(least[1]):,} for its characters alone") from None
        raise GemmaryError(f"no tokenizer can be trained: {str(error).splitlines()[-1]}") from None
    return Tokenizer.from_model_bytes(model.getvalue())


def train_picture_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The same for a model that sees pictures: `vocab_size` tokens, `PICTURE_TOKENS` the last of them, and `<image>`
    behind them. Nothing is learnt from locations and codes in the texts."""
    plain = (part for text in texts for part in _PICTURE_TOKEN.split(text))
    own = vocab_size - len(PICTURE_TOKENS)
    if own <= SMALLEST:
        needed = SMALLEST + len(PICTURE_TOKENS) + 1
        raise GemmaryError(f"a vocabulary with locations and masks has a vocab_size of at least {needed:,}")
    try:
        base = train_tokenizer(plain, own).to_pieces()
    except GemmaryError as error:
        raise GemmaryError(f"{error} ({len(PICTURE_TOKENS):,} more for locations and masks)") from None
    added = [piece.encode() for piece in (*PICTURE_TOKENS, "<image>")]
    kinds = [PieceType.USER_DEFINED] * len(PICTURE_TOKENS) + [PieceType.CONTROL]
    blob, offsets = pack([*(base.piece_bytes(i) for i in range(len(base))), *added])
    return Tokenizer.from_arrays(
        blob,
        offsets,
        np.concatenate([base.scores, np.zeros(len(added), np.float32)]),
        np.concatenate([base.types, np.array(kinds, np.int32)]),
        bos_id=base.bos_id,
        eos_id=base.eos_id,
        pad_id=base.pad_id,
        unk_id=base.unk_id,
    )
