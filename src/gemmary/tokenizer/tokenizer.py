"""The tokenizer: text to ids and back (spec 2.1), one SentencePiece processor behind all three file formats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.tokenizer import huggingface, proto
from gemmary.tokenizer import pieces as vocabulary
from gemmary.tokenizer.decode import StreamDecoder
from gemmary.tokenizer.pieces import SPACE, STRUCTURE, Pieces

_MAX_MODEL_BYTES = 1 << 27


class InfillIds(NamedTuple):
    """The ids of CodeGemma's fill-in-the-middle pieces."""

    prefix: int
    middle: int
    suffix: int
    separator: int


class Tokenizer:
    """Text to ids and back. Made by `from_folder`, `from_model_bytes`, `from_pieces` or `from_arrays`.

    Control pieces (pad, eos, bos, unk) are never matched in text; user-defined pieces are, so encode untrusted text
    with `escape_markers=True`. Every id list is a plain list of int.
    """

    def __init__(self, model: bytes, *, add_bos: bool = True) -> None:
        """model: a ModelProto that `proto` wrote or checked."""
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except Exception as error:  # the library raises RuntimeError, ValueError, …, all for a bad model
            reason = str(error).partition("\n")[0][:120] or type(error).__name__
            raise GemmaryError(f"the tokenizer is corrupt: {reason}") from None
        self._model = model
        self._pieces: Pieces | None = None
        self._processor = processor
        self._surfaces: dict[int, str | bytes] = {}
        self.add_bos = add_bos
        self.vocab_size: int = processor.vocab_size()
        self.bos_id: int = processor.bos_id()
        self.eos_id: int = processor.eos_id()
        self.pad_id: int = processor.pad_id()
        self.unk_id: int = processor.unk_id()
        if min(self.bos_id, self.eos_id, self.pad_id, self.unk_id) < 0:
            raise GemmaryError("the tokenizer is corrupt: it lacks a <bos>, <eos>, <pad> or <unk> piece")

    # Readers ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """From a checkpoint folder: its `tokenizer.model`, or else its `tokenizer.json`.

        Raises GemmaryError when there is neither or the one that counts is not a Gemma tokenizer.
        """
        folder = Path(path)
        model, json_file = folder / "tokenizer.model", folder / "tokenizer.json"
        if model.is_file():
            return cls.from_model_bytes(huggingface.read_limited(model, _MAX_MODEL_BYTES))
        if json_file.is_file():
            return cls._from_checked(vocabulary.check(huggingface.read_tokenizer_json(json_file)))
        raise GemmaryError(f"no tokenizer in {folder}: it has neither tokenizer.model nor tokenizer.json")

    @classmethod
    def from_model_bytes(cls, data: bytes) -> Tokenizer:
        """From the contents of a `tokenizer.model` file. Raises GemmaryError when they are not a Gemma tokenizer."""
        proto.check_model(data)
        return cls(data)

    @classmethod
    def from_pieces(
        cls,
        pieces: Sequence[str],
        scores: Sequence[float],
        types: Sequence[int],
        *,
        bos_id: int = 2,
        eos_id: int = 1,
        pad_id: int = 0,
        unk_id: int = 3,
        add_bos: bool = True,
    ) -> Tokenizer:
        """From lists in GGUF's conventions (see `from_arrays`)."""
        try:
            blob, offsets = vocabulary.pack([piece.encode() for piece in pieces])
        except UnicodeEncodeError:
            raise GemmaryError("the tokenizer is corrupt: a piece is not UTF-8 text") from None
        return cls.from_arrays(
            blob,
            offsets,
            np.asarray(scores, np.float32),
            np.asarray(types, np.int32),
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=pad_id,
            unk_id=unk_id,
            add_bos=add_bos,
        )

    @classmethod
    def from_arrays(
        cls,
        blob: bytes | bytearray | memoryview,
        offsets: NDArray[np.int64],
        scores: NDArray[np.float32],
        types: NDArray[np.int32],
        *,
        bos_id: int,
        eos_id: int,
        pad_id: int,
        unk_id: int,
        add_bos: bool = True,
    ) -> Tokenizer:
        """From GGUF metadata: piece i is `blob[offsets[i]:offsets[i + 1]]` (UTF-8), with its score and its type.

        offsets int64 [V + 1], scores float32 [V], types int32 [V]. The types are put back to the original
        tokenizer's (`pieces.from_gguf`). Raises GemmaryError when the arrays are not a vocabulary.
        """
        given = Pieces(
            bytes(blob),
            np.asarray(offsets, np.int64),
            np.asarray(scores, np.float32),
            np.asarray(types, np.int32),
            bos_id,
            eos_id,
            pad_id,
            unk_id,
            add_bos,
        )
        model = proto.write_model(vocabulary.from_gguf(given))
        del given  # sentencepiece will need the memory
        return cls(model, add_bos=add_bos)

    @classmethod
    def _from_checked(cls, pieces: Pieces) -> Tokenizer:
        return cls(proto.write_model(pieces), add_bos=pieces.add_bos)

    # Writers ------------------------------------------------------------------------------------------------------

    def to_model_bytes(self) -> bytes:
        """The contents of a `tokenizer.model` file."""
        return self._model

    def to_pieces(self) -> Pieces:
        """The vocabulary as arrays, in the original tokenizer's (SentencePiece's) conventions."""
        if self._pieces is None:
            read = proto.read_model(self._model, self.bos_id, self.eos_id, self.pad_id, self.unk_id)
            self._pieces = vocabulary.check(replace(read, add_bos=self.add_bos))
        return self._pieces

    def to_arrays(self) -> Pieces:
        """The vocabulary as GGUF stores it: `.blob .offsets .scores .types`, `.bos_id .eos_id .pad_id .unk_id
        .add_bos`, ready for `tokenizer.ggml.*`."""
        return vocabulary.to_gguf(self.to_pieces())

    def save(self, folder: str | Path, *, chat_template: str | None = None) -> None:
        """Writes `tokenizer.model`, `tokenizer.json` and `tokenizer_config.json`, each atomically, so that
        SentencePiece and transformers' AutoTokenizer load it. The folder must exist."""
        target = Path(folder)
        if not target.is_dir():  # a mistyped folder is not made
            raise GemmaryError(f"cannot write {target / 'tokenizer.model'}: No such file or directory")
        parts = self.to_pieces()
        with atomic_file(target / "tokenizer.model") as file:
            file.write(self._model)
        huggingface.write_tokenizer_json(target / "tokenizer.json", parts)
        huggingface.write_tokenizer_config(target / "tokenizer_config.json", parts, chat_template)

    # Text to ids --------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, escape_markers: bool = False) -> list[int]:
        """The ids of `text`. Nothing is trimmed, normalised or added, but BOS and EOS when asked for.

        escape_markers: spell turn, image, fill-in-the-middle and other structural markers inside the text with
        ordinary pieces, which decode to the same characters and mean nothing. Raises GemmaryError for text that is
        not Unicode (a lone surrogate).
        """
        try:
            utf8 = text.encode()
        except UnicodeEncodeError as error:
            raise GemmaryError(
                f"the text is not valid Unicode: a lone surrogate at character {error.start}; remove it"
            ) from None
        if escape_markers and (cuts := self._marker_cuts(text)):
            bounds = [0, *cuts, len(text)]
            slices = (text[start:end] for start, end in pairwise(bounds))
            ids: list[int] = [i for part in slices for i in self._processor.encode(part)]
        else:
            ids = self._processor.encode(utf8)
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def _marker_cuts(self, text: str) -> list[int]:
        """Positions one character inside each structural marker of this vocabulary: cut there, it cannot match."""
        return [m.start() + 1 for m in STRUCTURE.finditer(text) if self.find(m.group()) is not None]

    # Ids to text --------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, as SentencePiece decodes it: invalid bytes become U+FFFD each, unk " ⁇ ", control pieces
        nothing (their spelling when skip_special is False); user-defined markers stay visible.

        Raises GemmaryError for an id outside the vocabulary.
        """
        stream = self.stream(skip_special=skip_special)
        push = stream.push
        return "".join([push(i) for i in ids]) + stream.finish()

    def stream(self, *, skip_special: bool = True) -> StreamDecoder:
        """A decoder that takes one id at a time and gives whole characters only."""
        return StreamDecoder(self._surface if skip_special else self._spelling)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that an id adds to the text (none for a control piece)."""
        surface = self._surface(token_id)
        return surface if isinstance(surface, bytes) else surface.encode()

    def _surface(self, token_id: int) -> str | bytes:
        found = self._surfaces.get(token_id)
        if found is None:
            found = self._surfaces[int(token_id)] = self._make_surface(int(token_id))
        return found

    def _make_surface(self, token_id: int) -> str | bytes:
        piece = self.piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])
        if self._processor.is_control(token_id):
            return ""
        return " \u2047 " if token_id == self.unk_id else piece.replace(SPACE, " ")

    def _spelling(self, token_id: int) -> str | bytes:
        special = token_id == self.unk_id or self._surface(token_id) == ""
        return self.piece(token_id) if special else self._surface(token_id)

    # Facts about the vocabulary -----------------------------------------------------------------------------------

    def piece(self, token_id: int) -> str:
        """A piece as the vocabulary spells it (spaces as U+2581, bytes as <0xNN>)."""
        if not 0 <= token_id < self.vocab_size:
            raise GemmaryError(f"token id {token_id} is outside the vocabulary (0 to {self.vocab_size - 1})")
        try:
            piece: str = self._processor.id_to_piece(int(token_id))
        except UnicodeDecodeError:
            raise GemmaryError(f"the tokenizer is corrupt: piece {token_id} is not UTF-8 text") from None
        return piece

    def find(self, piece: str) -> int | None:
        """The id of a piece, spelled as the vocabulary does, or None."""
        found: int = self._processor.piece_to_id(piece)
        return found if found != self.unk_id or piece == self.piece(self.unk_id) else None

    def id(self, piece: str) -> int:
        """The id of a piece. Raises GemmaryError when the vocabulary lacks it."""
        found = self.find(piece)
        if found is None:
            raise GemmaryError(f"this tokenizer has no piece {piece!r}")
        return found

    @cached_property
    def turn_ids(self) -> tuple[int, int] | None:
        """(<start_of_turn>, <end_of_turn>), or None."""
        return self._pair("<start_of_turn>", "<end_of_turn>")

    @cached_property
    def image_ids(self) -> tuple[int, int] | None:
        """(<start_of_image>, <end_of_image>) of the Gemma 3 vocabulary, or None."""
        return self._pair("<start_of_image>", "<end_of_image>")

    @cached_property
    def infill_ids(self) -> InfillIds | None:
        """CodeGemma's fill-in-the-middle ids, or None when the vocabulary does not name them."""
        names = ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>")
        found = [i for i in map(self.find, names) if i is not None]
        return InfillIds(*found) if len(found) == len(names) else None

    def _pair(self, start: str, end: str) -> tuple[int, int] | None:
        first, second = self.find(start), self.find(end)
        return None if first is None or second is None else (first, second)
