"""A vocabulary as arrays: every piece's bytes, score and type, and the ids that mean something.

All three file formats are read into this and written from it, so their ids cannot differ. V is the number of pieces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gemmary.errors import GemmaryError

SPACE = "\u2581"
"""SentencePiece writes U+0020 as this character (and reads it back as a space)."""

MAX_PIECES = 1 << 22
MAX_PIECE_BYTES = 4096
"""Bounds for hostile files. Gemma's largest vocabulary has 262,144 pieces, the longest of them 93 bytes."""

GGUF_SPECIAL_SCORE = -1000.0
"""The score that llama.cpp's converter gives to every piece that is neither normal nor a byte."""

STRUCTURE = re.compile(
    r"<(?:(?:start|end)_of_(?:turn|image|audio)|image(?:_soft_token)?|mask|2mass|unused\d{1,5}|\|[a-z_]{1,32}\|)>"
    r"|\[(?:@BOS@|multimodal|toxicity=\d)\]"
)
"""The spelling of every user-defined piece that carries structure: one of these in untrusted text forges a turn, an
image or a training marker. The other user-defined pieces (whitespace runs, HTML tags, PaliGemma's <loc…> and <seg…>)
are content."""

_GGUF_CONTROL = re.compile(r"<(?:(?:start|end)_of_turn|mask|2mass|unused\d+|\|.*\|)>|\[@BOS@\]")
"""User-defined pieces that llama.cpp's converter stores as control pieces."""

PLACEHOLDERS = ("<image>", "<image_soft_token>")
"""Pieces for image positions, which Hugging Face adds to the original vocabulary: text never spells them."""


_NOT_TEXT = "the tokenizer is corrupt: a piece is not UTF-8 text"


class PieceType(IntEnum):
    """The types of SentencePiece's ModelProto; GGUF's `tokenizer.ggml.token_type` uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Pieces:
    """A vocabulary in SentencePiece's own terms (spec of the types above).

    `blob[offsets[i]:offsets[i + 1]]` is piece i in UTF-8; offsets int64 [V + 1], scores float32 [V], types int32 [V].
    """

    blob: bytes
    offsets: NDArray[np.int64]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    bos_id: int
    eos_id: int
    pad_id: int
    unk_id: int
    add_bos: bool = True

    def __len__(self) -> int:
        return len(self.scores)

    def same_tokens(self, other: Pieces, count: int) -> bool:
        """Whether the first `count` ids are the same pieces in both."""
        if min(len(self), len(other)) < count:
            return False
        end = int(self.offsets[count])
        same = np.array_equal(self.offsets[: count + 1], other.offsets[: count + 1])
        return same and self.blob[:end] == other.blob[:end]

    def piece_bytes(self, index: int) -> bytes:
        return self.blob[self.offsets[index] : self.offsets[index + 1]]

    def strings(self) -> list[str]:
        """Every piece as text (`check` has seen to it that they are)."""
        ends = self.offsets.tolist()
        return [self.blob[start:end].decode() for start, end in pairwise(ends)]


def pack(encoded: Sequence[bytes]) -> tuple[bytes, NDArray[np.int64]]:
    """(blob, offsets) of a list of pieces in UTF-8."""
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, encoded), np.int64, len(encoded)), out=offsets[1:])
    return b"".join(encoded), offsets


def check(pieces: Pieces) -> Pieces:
    """The same pieces, if they can be a vocabulary. Raises GemmaryError otherwise, before anything is allocated."""
    count, ends = len(pieces.scores), pieces.offsets
    if not 0 < count <= MAX_PIECES or len(ends) != count + 1 or len(pieces.types) != count:
        raise GemmaryError(
            f"the tokenizer is corrupt: {len(ends) - 1} pieces, {count} scores and {len(pieces.types)} types "
            "(expected as many of each)"
        )
    if not np.isfinite(pieces.scores).all():
        raise GemmaryError("the tokenizer is corrupt: a score is not a finite number")
    lengths = np.diff(ends)
    if ends[0] < 0 or ends[-1] > len(pieces.blob) or lengths.min() < 1 or lengths.max() > MAX_PIECE_BYTES:
        raise GemmaryError(f"the tokenizer is corrupt: a piece is empty or longer than {MAX_PIECE_BYTES} bytes")
    if not _is_text(pieces):
        raise GemmaryError(_NOT_TEXT)
    if pieces.types.min() < min(PieceType) or pieces.types.max() > max(PieceType):
        raise GemmaryError("the tokenizer is corrupt: a piece has an unknown type")
    for name, index in (("bos", pieces.bos_id), ("eos", pieces.eos_id), ("pad", pieces.pad_id), ("unk", pieces.unk_id)):
        if not 0 <= index < count:
            raise GemmaryError(f"the tokenizer is corrupt: its {name} id {index} is not among its {count} pieces")
    if len({pieces.bos_id, pieces.eos_id, pieces.pad_id, pieces.unk_id}) != 4:
        raise GemmaryError("the tokenizer is corrupt: bos, eos, pad and unk must be four different ids")
    return pieces


def from_gguf(pieces: Pieces) -> Pieces:
    """GGUF's arrays as the original tokenizer's pieces.

    llama.cpp's converter rewrites them: it marks turn markers and unused pieces as control (the original matches them
    in text: user-defined), writes the runs of spaces with U+0020, and scores them -1000. All of that is undone here.
    Files of chat models that name `<end_of_turn>` as their end get `<eos>` back: a turn's end is a marker in text.
    """
    check(pieces)
    types = pieces.types.copy()
    control = {pieces.piece_bytes(i): i for i in np.flatnonzero(types == PieceType.CONTROL).tolist()}
    if pieces.piece_bytes(pieces.eos_id) == b"<end_of_turn>":
        pieces = check(replace(pieces, eos_id=control.get(b"<eos>", pieces.eos_id)))
    specials = [pieces.bos_id, pieces.eos_id, pieces.pad_id]
    never = [control[name.encode()] for name in PLACEHOLDERS if name.encode() in control]
    types[(types == PieceType.CONTROL) | (types == PieceType.UNKNOWN)] = PieceType.USER_DEFINED
    types[specials + never] = PieceType.CONTROL
    types[pieces.unk_id] = PieceType.UNKNOWN
    scores = np.where(types == PieceType.NORMAL, pieces.scores, np.float32(0))
    space, written = b" ", SPACE.encode()
    first, last = int(pieces.offsets[0]), int(pieces.offsets[-1])
    found = np.flatnonzero(np.frombuffer(pieces.blob, np.uint8)[first:last] == space[0]) + first
    rows = np.searchsorted(pieces.offsets, found, side="right") - 1
    rows = rows[np.diff(rows, prepend=-1) > 0]  # each once (np.unique imports much that nothing else needs)
    blob, offsets = _rewrite(pieces, rows, lambda piece: piece.replace(space, written))
    return replace(pieces, blob=blob, offsets=offsets, scores=scores, types=types)


def to_gguf(pieces: Pieces) -> Pieces:
    """The inverse of `from_gguf`: the arrays that llama.cpp's converter would write, which llama.cpp needs.

    (It matches user-defined pieces before it turns spaces into U+2581, so runs of spaces must be stored as spaces.)
    """
    types = pieces.types.copy()
    rows = np.flatnonzero(types == PieceType.USER_DEFINED)
    control = [i for i in rows.tolist() if _GGUF_CONTROL.fullmatch(pieces.piece_bytes(i).decode(errors="replace"))]
    types[[*control, pieces.unk_id]] = PieceType.CONTROL
    special = (types == PieceType.CONTROL) | (types == PieceType.USER_DEFINED)
    scores = np.where(special, np.float32(GGUF_SPECIAL_SCORE), pieces.scores)
    blob, offsets = _rewrite(pieces, rows, lambda piece: piece.replace(SPACE.encode(), b" "))
    return replace(pieces, blob=blob, offsets=offsets, scores=scores, types=types)


def _is_text(pieces: Pieces) -> bool:
    """Whether every piece is UTF-8: the whole is, and no piece begins in the middle of a character."""
    whole = pieces.blob[pieces.offsets[0] : pieces.offsets[-1]]
    starts = np.frombuffer(pieces.blob, np.uint8)[pieces.offsets[:-1]]
    try:
        whole.decode()
    except UnicodeDecodeError:
        return False
    return not bool((starts & 0xC0 == 0x80).any())


def _rewrite(
    pieces: Pieces, rows: NDArray[np.int64], change: Callable[[bytes], bytes]
) -> tuple[bytes, NDArray[np.int64]]:
    """(blob, offsets) with `change` applied to the pieces `rows` (ascending), a few among many."""
    lengths = np.diff(pieces.offsets)
    parts, end = [], int(pieces.offsets[0])
    for row in rows.tolist():
        changed = change(pieces.piece_bytes(row))
        parts += [pieces.blob[end : pieces.offsets[row]], changed]
        end = int(pieces.offsets[row + 1])
        lengths[row] = len(changed)
    parts.append(pieces.blob[end : pieces.offsets[-1]])
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return b"".join(parts), offsets
