"""SentencePiece's ModelProto, written and read without protobuf.

Fields used (sentencepiece_model.proto): ModelProto 1 pieces, 2 trainer_spec, 3 normalizer_spec, 5 denormalizer_spec;
SentencePiece 1 piece, 2 score, 3 type; TrainerSpec 3 model_type, 35 byte_fallback, 40-43 ids, 45-48 their pieces;
NormalizerSpec 2 precompiled_charsmap, 3 add_dummy_prefix, 4 remove_extra_whitespaces, 5 escape_whitespaces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from gemmary.errors import GemmaryError
from gemmary.tokenizer.pieces import Pieces, PieceType, pack

_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_BPE = 2
_CUT_OFF = "it ends in the middle of a field"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_T = TypeVar("_T", int, bytes)


def write_model(pieces: Pieces) -> bytes:
    """The ModelProto of a vocabulary, with the switches of Gemma's tokenizers (spec 2.1)."""
    from gemmary import _core

    written = _core.write_sentencepiece_pieces(
        pieces.blob, pieces.offsets, np.asarray(pieces.scores, np.float32), np.asarray(pieces.types, np.int32)
    )
    return written + _field(_TRAINER, _trainer_spec(pieces)) + _field(_NORMALIZER, _NORMALIZER_SPEC)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3 | _VARINT) + _varint(value)
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _trainer_spec(pieces: Pieces) -> bytes:
    ids = (pieces.unk_id, pieces.bos_id, pieces.eos_id, pieces.pad_id)
    switches = {3: _BPE, 4: len(pieces), 21: 1, 22: 0, 23: 1, 25: 1, 26: 1, 35: 1}
    spec = b"".join(_field(number, value) for number, value in switches.items())
    spec += b"".join(_field(40 + i, value) for i, value in enumerate(ids))
    return spec + b"".join(_field(45 + i, pieces.piece_bytes(value)) for i, value in enumerate(ids))


_NORMALIZER_SPEC = _field(1, b"identity") + _field(2, b"") + _field(3, 0) + _field(4, 0) + _field(5, 1)


def check_model(data: bytes) -> None:
    """Raises GemmaryError unless `data` is a ModelProto with Gemma's switches: BPE, byte fallback, no normalisation.

    A precompiled normalisation table is refused: it is a binary structure that the library trusts, and no Gemma has
    one.
    """
    from gemmary import _core

    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    count, at = _core.skip_sentencepiece_pieces(data)
    if at > len(data):
        raise _corrupt(_CUT_OFF)
    for number, value in _fields(data[at:]):
        if number == _PIECE:
            count += 1
        elif number in (_TRAINER, _NORMALIZER, _DENORMALIZER):
            if not isinstance(value, bytes):
                raise _corrupt("a section is not a message")
            fields = dict(_fields(value))
            if number != _TRAINER and fields.get(2):
                raise _corrupt("it has a table for Unicode normalisation, which no Gemma tokenizer has")
            if number == _TRAINER:
                trainer.update(fields)
            elif number == _NORMALIZER:
                normalizer.update(fields)
    if not count:
        raise _corrupt("it has no pieces")
    if trainer.get(3, 1) != _BPE or not trainer.get(35, 0):
        raise GemmaryError("not a Gemma tokenizer: the SentencePiece model is not BPE with byte fallback")
    if normalizer.get(3, 1) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise GemmaryError("not a Gemma tokenizer: the SentencePiece model adds or removes spaces")


def read_model(data: bytes, bos_id: int, eos_id: int, pad_id: int, unk_id: int) -> Pieces:
    """Every piece of a ModelProto. Raises GemmaryError when it is malformed."""
    encoded, scores, types = [], [], []
    for number, value in _fields(data):
        if number != _PIECE:
            continue
        if not isinstance(value, bytes):
            raise _corrupt("a piece is not a message")
        fields = dict(_fields(value))
        score = _typed(fields.get(2, bytes(4)), bytes)
        encoded.append(_typed(fields.get(1, b""), bytes))
        scores.append(struct.unpack("<f", score)[0] if len(score) == 4 else np.nan)
        types.append(min(_typed(fields.get(3, int(PieceType.NORMAL)), int), 127))  # 127: no type, refused by `check`
    arrays = np.array(scores, np.float32), np.array(types, np.int32)
    return Pieces(*pack(encoded), *arrays, bos_id, eos_id, pad_id, unk_id)


def _typed(value: int | bytes, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise _corrupt("a field has the wrong type")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message: int for a varint, bytes for the rest."""
    at, end = 0, len(data)
    while at < end:
        key, at = (data[at], at + 1) if data[at] < 128 else _read_varint(data, at)
        wire = key & 7
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield key >> 3, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _corrupt("a field has an unknown wire type")
        if size > end - at:
            raise _corrupt(_CUT_OFF)
        yield key >> 3, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise _corrupt("a number is cut off")


def _corrupt(why: str) -> GemmaryError:
    return GemmaryError(f"the tokenizer.model is corrupt: {why}; fetch the file again")
