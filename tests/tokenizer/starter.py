"""The tokenizer arrays of a GGUF file, read by a few lines that share nothing with the package's reader."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


class Arrays(NamedTuple):
    pieces: list[str]
    blob: bytes
    offsets: NDArray[np.int64]
    scores: NDArray[np.float32]
    types: NDArray[np.int32]
    special_ids: dict[str, int]


def read_arrays(path: Path) -> Arrays:
    with path.open("rb") as file:
        magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
        assert (magic, version) == (b"GGUF", 3)
        found = {_string(file).decode(): _value(file, _number(file, "I")) for _ in range(count)}
    strings: list[bytes] = found["tokenizer.ggml.tokens"]
    offsets = np.cumsum([0, *map(len, strings)], dtype=np.int64)
    names = {"bos_id": "bos", "eos_id": "eos", "pad_id": "padding", "unk_id": "unknown"}
    return Arrays(
        [piece.decode() for piece in strings],
        b"".join(strings),
        offsets,
        np.array(found["tokenizer.ggml.scores"], np.float32),
        np.array(found["tokenizer.ggml.token_type"], np.int32),
        {ours: found[f"tokenizer.ggml.{theirs}_token_id"] for ours, theirs in names.items()},
    )


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _string(file: BinaryIO) -> bytes:
    return file.read(_number(file, "Q"))


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == _STRING:
        return _string(file)
    if kind != _ARRAY:
        return _number(file, _SCALARS[kind])
    kind, count = _number(file, "I"), _number(file, "Q")
    if kind == _STRING:
        return [_string(file) for _ in range(count)]
    return list(struct.unpack(f"<{count}{_SCALARS[kind]}", file.read(count * struct.calcsize(f"<{_SCALARS[kind]}"))))
