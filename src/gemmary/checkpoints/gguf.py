"""Reads a GGUF file: the header in C++ (`csrc/gguf_header.cc`), then Config, leaves and tokenizer from what it says."""

from __future__ import annotations

import mmap
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.gguf_config import read_config
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import FLOATS, Blocks, Dense, Leaf, let_go

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

_HEAD = "output.weight"
_COMPARE = 1 << 20


class Stored(NamedTuple):
    """One tensor of a file. shape: rows first."""

    name: str
    format: str
    shape: tuple[int, ...]
    begin: int
    nbytes: int


def open_gguf(path: Path, name: str | None = None) -> Checkpoint:
    """The model of a file, and its tower where that lies beside it (`mmproj.py`).

    Raises GemmaryError, one line, where the file is not a Gemma text model whole and sound.
    """
    from gemmary.checkpoints.mmproj import with_tower

    file, metadata, stored = read_file(path)
    notices: list[str] = []
    shapes = {t.name: t.shape for t in stored.values()}
    config = read_config(path.name, metadata, shapes, notices)
    table = tensors(config)
    missing = [t.gguf for t in table if t.gguf not in stored]
    if missing:
        raise GemmaryError(f"{path} lacks {some(missing)}")
    unknown = sorted(set(stored) - {t.gguf for t in table} - {_HEAD})
    if unknown:
        raise GemmaryError(f"{path} holds {some(unknown)}, which this model does not have")
    for tensor in table:
        _check_tensor(path, stored[tensor.gguf], tensor)
    _check_head(path, file, stored)
    template = _text(metadata, "tokenizer.chat_template")
    checkpoint = Checkpoint(
        path,
        "gguf",
        config,
        name or _shown(_text(metadata, "general.name")) or path.stem,
        {t.name: partial(_leaf, file, stored[t.gguf], t) for t in table},
        partial(_tokenizer, path, metadata),
        lambda: template,
        notices,
    )
    return with_tower(checkpoint)


def read_file(path: Path) -> tuple[npt.NDArray[np.uint8], dict[str, Any], dict[str, Stored]]:
    """The mapped bytes of a file, its metadata and its tensors by name. Raises GemmaryError for an unsound file."""
    from gemmary import _core

    try:
        with open(path, "rb") as opened:
            if os.fstat(opened.fileno()).st_size < 24:
                raise GemmaryError(f"{path} is not a sound GGUF file: it is too short")
            file = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise GemmaryError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        metadata, rows = _core.read_gguf_header(file)
    except ValueError as error:
        raise GemmaryError(f"{path} is not a sound GGUF file: {error}") from None
    stored = {row[0]: Stored(*row) for row in rows}
    let_go(
        file[: min((tensor.begin for tensor in stored.values()), default=0)]
    )  # the header, of which copies were made
    return file, metadata, stored


def _check_tensor(path: Path, stored: Stored, tensor: Tensor) -> None:
    if tensor.is_norm and stored.format != "F32":
        raise GemmaryError(f"{path}: the norm {stored.name} is {stored.format}, not F32")
    rows = tensor.shape[0] if tensor.name == "embed" else stored.shape[0]  # read_config has accounted for its rows
    if (rows, *stored.shape[1:]) != tensor.shape:
        raise GemmaryError(f"{path}: {stored.name} has shape {stored.shape}, but its metadata means {tensor.shape}")


def _check_head(path: Path, file: npt.NDArray[np.uint8], stored: dict[str, Stored]) -> None:
    """A stored head must be the embedding table, byte for byte: the models are tied."""
    if _HEAD not in stored:
        return
    a, b = stored["token_embd.weight"], stored[_HEAD]
    same = (a.format, a.shape) == (b.format, b.shape) and all(
        np.array_equal(
            file[a.begin + i : a.begin + min(i + _COMPARE, a.nbytes)],
            file[b.begin + i : b.begin + min(i + _COMPARE, b.nbytes)],
        )
        for i in range(0, a.nbytes, _COMPARE)
    )
    if not same:
        raise GemmaryError(f"{path}: {_HEAD} differs from the embedding table, but Gemma's head is tied to it")


def _leaf(file: npt.NDArray[np.uint8], stored: Stored, tensor: Tensor) -> Leaf:
    data = file[stored.begin : stored.begin + stored.nbytes]
    if stored.format in BLOCK_SIZES:
        rows, columns = tensor.shape
        blocks = data.reshape(stored.shape[0], row_bytes(stored.format, columns))
        return Blocks(stored.format, (rows, columns), blocks[:rows])
    array = data.view(FLOATS[stored.format]).reshape(stored.shape)
    if not tensor.is_norm:
        return Dense(array[: tensor.shape[0]])
    with np.errstate(invalid="ignore"):  # a signalling NaN stays a NaN
        return Dense(array - np.float32(1.0))


def _text(metadata: dict[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if value is None:
        return None
    try:
        return bytes.decode(value)
    except (TypeError, UnicodeDecodeError):
        raise GemmaryError(f"the GGUF file's {key} is not text") from None


def _shown(name: str | None) -> str:
    """A name out of a file, made fit for a message: one short printable line."""
    return "".join(c if c.isprintable() else "\ufffd" for c in (name or "")[:80]).strip()


def _tokenizer(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    key = "tokenizer.ggml."
    model = _text(metadata, key + "model")
    if model is None:
        raise GemmaryError(f"{path} carries no tokenizer")
    if model != "llama":
        raise GemmaryError(f"{path}: its tokenizer is of model {ascii(model)[:40]}, not Gemma's (llama)")
    tokens = metadata.get(key + "tokens")
    scores, types = metadata.get(key + "scores"), metadata.get(key + "token_type")
    if not (isinstance(tokens, tuple) and isinstance(scores, np.ndarray) and isinstance(types, np.ndarray)):
        raise GemmaryError(f"{path}: its tokenizer lacks tokens, scores or token_type")
    ids = {"bos": 2, "eos": 1, "padding": 0, "unknown": 3}
    found = {part: metadata.get(f"{key}{part}_token_id", default) for part, default in ids.items()}
    if not all(type(i) is int for i in found.values()):
        raise GemmaryError(f"{path}: a special token's id is not a number")
    return Tokenizer.from_arrays(
        tokens[0],
        tokens[1],
        scores,
        types,
        bos_id=found["bos"],
        eos_id=found["eos"],
        pad_id=found["padding"],
        unk_id=found["unknown"],
        add_bos=True,  # whatever add_bos_token says: without BOS every Gemma is wrecked (trap T1)
    )


def some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
