"""Writes GGUF (version 3) as llama.cpp's converter lays it out, so that llama.cpp and its kin load it."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Source
from gemmary.checkpoints.convert import Meter, Progress, stored_bytes
from gemmary.checkpoints.gguf_config import write_config
from gemmary.checkpoints.mixes import ASKED, block_types, fallbacks
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile, atomic_file
from gemmary.quantize.blocks import BLOCK_SIZES
from gemmary.quantize.leaves import FLOATS
from gemmary.quantize.pieces import pieces

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

ALIGNMENT = 32
WRITABLE = (*FLOATS, *ASKED)
_TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
    "Q5_K": 13, "Q6_K": 14, "BF16": 30,
}  # fmt: skip
_FILE_TYPES = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K": 12, "Q4_K": 15,
    "Q5_K": 17, "Q6_K": 18, "BF16": 32,
}  # fmt: skip
"""llama.cpp's `general.file_type`, which is only shown."""


def save_gguf(source: Source, path: Path, format: str | None, progress: Progress | None = None) -> list[str]:
    """Writes `path` and its checksum, atomically. format: one of WRITABLE (mixes.py) for every matrix; None: as stored.

    Returns what a user should be told. Raises GemmaryError where a row does not divide into blocks, a weight does not
    fit the format, or the disk refuses.
    """
    if format is not None and format not in WRITABLE:
        raise GemmaryError(f"GGUF is written as {', '.join(WRITABLE)}, not {format}")
    config = text_config(source)
    notices: list[str] = []
    if source.config.vision:
        notices.append(
            "the file reads text only: its tower is left out, which GGUF keeps in a file of its own (mmproj)"
        )
    blocks = block_types(config, format) if format in ASKED else {}
    if format in ASKED:
        notices += fallbacks(config, format)
    plan = [
        (t, "F32" if t.is_norm else blocks.get(t.name) or format or source.lookup(t.name).format)
        for t in tensors(config)
    ]
    sizes = [stored_bytes(f, t.shape) for t, f in plan]
    metadata = _metadata(source, plan, notices)
    meter = Meter(sum(size for (t, _), size in zip(plan, sizes, strict=True) if not t.is_norm), progress)
    again: set[str] = set()
    with atomic_file(path, checksum=True) as out:
        out.write(_header(metadata, plan, sizes))
        _pad(out)
        for tensor, stored in plan:
            leaf = source.lookup(tensor.name)
            if stored in BLOCK_SIZES and leaf.format not in (*FLOATS, stored):
                again.add(leaf.format)
            if tensor.is_norm:
                out.write(leaf.dequantize() + np.float32(1.0))
            else:
                for piece in meter.watch(pieces(leaf, stored)):
                    out.write(piece)
            _pad(out)
    if again:
        notices.append(
            f"weights stored as {', '.join(sorted(again))} were dequantized and quantized again to {format}, "
            "which loses accuracy twice: start from the unquantized checkpoint where you can"
        )
    return notices


def text_config(source: Source) -> Config:
    """The shape of what the file holds: the decoder. Raises GemmaryError for a family whose decoder alone no layout of
    GGUF has."""
    if source.config.prefix_lm:
        raise GemmaryError(f"{source.name} sees pictures, which no GGUF layout of its family has: write safetensors")
    return replace(source.config, vision=None)


def _metadata(source: Source, plan: list[tuple[Tensor, str]], notices: list[str]) -> dict[str, Any]:
    main = Counter(f for t, f in plan if not t.is_norm).most_common(1)[0][0]
    described = write_config(source.config, notices)
    data: dict[str, Any] = {
        "general.architecture": described["general.architecture"],  # first, as readers like it
        "general.type": "model",
        "general.name": source.name,
        "general.file_type": _FILE_TYPES[main],
        "general.quantization_version": 2,
        **described,
    }
    if source.tokenizer is None:
        notices.append("the file carries no tokenizer: llama.cpp will not load it")
        return data
    data |= _tokenizer(source.tokenizer, source.config.vocab_size)
    data["tokenizer.ggml.add_eos_token"] = source.config.bidirectional
    if source.chat_template is not None:
        data["tokenizer.chat_template"] = source.chat_template
    if source.chat_template is not None and source.tokenizer.turn_ids is not None:
        data["tokenizer.ggml.eot_token_id"] = source.tokenizer.turn_ids[1]
    return data


def _tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    arrays = tokenizer.to_arrays()
    if len(arrays) < vocab_size:
        raise GemmaryError(f"the tokenizer has {len(arrays)} pieces, but the model has {vocab_size} embeddings")
    key = "tokenizer.ggml."
    return {
        key + "model": "llama",
        key + "pre": "default",
        key + "tokens": [arrays.piece_bytes(i) for i in range(vocab_size)],
        key + "scores": np.asarray(arrays.scores[:vocab_size], np.float32),
        key + "token_type": np.asarray(arrays.types[:vocab_size], np.int32),
        key + "bos_token_id": arrays.bos_id,
        key + "eos_token_id": arrays.eos_id,
        key + "unknown_token_id": arrays.unk_id,
        key + "padding_token_id": arrays.pad_id,
        key + "add_bos_token": True,
        key + "add_space_prefix": False,
    }


def _header(metadata: dict[str, Any], plan: list[tuple[Tensor, str]], sizes: list[int]) -> bytes:
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(plan), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key.encode()), _value(value)]
    offset = 0
    for (tensor, format), size in zip(plan, sizes, strict=True):
        shape = tensor.shape[::-1]  # GGUF names the length of a row first
        parts.append(_string(tensor.gguf.encode()))
        parts.append(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, _TYPE_IDS[format], offset))
        offset += -(-size // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _value(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value.encode())
    if isinstance(value, np.ndarray):
        return _array(value)
    if value and isinstance(value[0], bool):
        return struct.pack(f"<IIQ{len(value)}?", 9, 7, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))


def _array(value: npt.NDArray[Any]) -> bytes:
    item = {"float32": 6, "int32": 5}[value.dtype.name]
    return struct.pack("<IIQ", 9, item, len(value)) + value.tobytes()


def _string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def _pad(out: HashingFile) -> None:
    out.write(b"\0" * (-out.position % ALIGNMENT))
