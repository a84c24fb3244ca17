"""Reads a Hugging Face folder: `config.json`, safetensors (one file, or shards with an index), tokenizer files.

Everything is checked before a tensor is read: each name is expected, or the folder is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gemmary.checkpoints import compressed
from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.config_json import paligemma_as_stored, read_config
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.pooling import open_pooling
from gemmary.checkpoints.safetensors import DTYPES, Entry, SafetensorsFile, show
from gemmary.checkpoints.tensors import (
    HEADS,
    PADDED_ROWS,
    PREFIXES,
    TOWERS,
    Tensor,
    bias_name,
    tensors,
)
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Dense, Leaf

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_PLAIN_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_MAX_TOKENIZER_CONFIG = 16 << 20  # Gemma 3's spells out 6,415 added tokens in 1.2 MB
_COMPARE = 1 << 20

Stored = dict[str, SafetensorsFile]


def open_folder(path: Path, name: str | None = None) -> Checkpoint:
    """Raises GemmaryError, one line, where the folder is not a Gemma model whole and sound."""
    notices: list[str] = []
    if not (path / "config.json").exists():
        raise GemmaryError(f"{path.resolve()} is no model folder: it holds neither config.json nor a .gguf file")
    data = read_json(path / "config.json")
    config, pooling = open_pooling(path, read_config(data, notices), notices)
    stored = _open_files(path)
    prefix = _find_prefix(path, stored)
    table = [t for t in tensors(config) if not t.is_pooled_dense]
    every = {_prefix_of(t, prefix, stored) + t.hugging_face: t for t in table}
    packed: dict[str, Tensor] = {}
    if compressed.check_config(data):
        packed = {n: t for n, t in every.items() if n not in stored and compressed.is_packed(t)}
    names = {n: t for n, t in every.items() if n not in packed}
    biases = {bias_name(n): t for n, t in names.items() if t.bias}
    expected = dict.fromkeys([*names, *biases, *(part for n in packed for part in compressed.parts_of(n))])
    missing = [n for n in expected if n not in stored]
    if missing:
        raise GemmaryError(f"{path} lacks {_some(missing)}")
    unknown = sorted(n for n in stored if n not in expected and n not in HEADS)
    if unknown:
        raise GemmaryError(f"{path} holds {_some(unknown)}, which this model does not have")
    for stored_name, tensor in names.items():
        _check_tensor(path, stored_name, stored[stored_name].entries[stored_name], tensor)
    for stored_name, tensor in biases.items():
        _check_shape(path, stored_name, stored[stored_name].entries[stored_name], tensor.shape[:1])
    _check_heads(path, stored, next(name for name, tensor in names.items() if tensor.name == "embed"))
    if any(stored[n].entries[n].dtype == "F16" for n in names):
        notices.append("weights stored as float16 are computed in bfloat16 or float32: Gemma overflows float16")

    found: dict[str, Callable[[], Leaf]] = {}
    for n, t in every.items():
        if n in packed:
            found[t.name] = partial(_itself, compressed.open_leaf(path, stored, n, t))
        else:
            found[t.name] = partial(_affine, stored, n, t) if t.bias else partial(_leaf, stored[n], n, t)
    found |= {t.name: partial(_leaf, pooling[t.name], "linear.weight", t) for t in tensors(config) if t.name in pooling}
    return Checkpoint(
        path, "safetensors", config, name or path.resolve().name, found, partial(open_tokenizer, path),
        partial(read_chat_template, path), notices,
        stored_config=paligemma_as_stored(data, []) if config.prefix_lm else None,
    )  # fmt: skip


def read_chat_template(path: Path) -> str | None:
    """`chat_template.jinja`, or the entry of `tokenizer_config.json` (the default one where it has several)."""
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GemmaryError(f"cannot read {file}: {error}") from None
    if not (path / "tokenizer_config.json").is_file():
        return None
    template = read_json(path / "tokenizer_config.json", _MAX_TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):
        named = {
            t.get("name"): t.get("template") for t in template if isinstance(t, dict) and type(t.get("name")) is str
        }
        template = named.get("default")
    return template if isinstance(template, str) else None


def open_tokenizer(path: Path) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    return Tokenizer.from_folder(path)


def _leaf(file: SafetensorsFile, stored_name: str, tensor: Tensor) -> Leaf:
    array = file.array(stored_name)
    if tensor.is_norm:
        return Dense(array.astype(np.float32))
    return Dense(array.T if tensor.transposed else array[: tensor.shape[0]].reshape(tensor.shape))


def _itself(leaf: Leaf) -> Leaf:
    return leaf


def _affine(stored: Stored, stored_name: str, tensor: Tensor) -> Leaf:
    bias = bias_name(stored_name)
    return Affine(_leaf(stored[stored_name], stored_name, tensor), stored[bias].array(bias).astype(np.float32))


def _open_files(path: Path) -> Stored:
    """The file of each stored tensor."""
    if (path / _SINGLE).is_file():
        file = SafetensorsFile(path / _SINGLE)
        return dict.fromkeys(file.entries, file)
    if not (path / _INDEX).is_file():
        if any(path.glob("*.bin")) or any(path.glob("*.pth")):
            raise GemmaryError(f"{path} holds pickled weights, which are not read: convert them to safetensors first")
        raise GemmaryError(f"{path} has neither {_SINGLE} nor {_INDEX}")
    index = read_json(path / _INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(type(p) is str and _PLAIN_FILE.fullmatch(p) for p in places.values()):
        raise GemmaryError(f"{path / _INDEX}: weight_map does not map tensors to .safetensors files of this folder")
    if len(set(places.values())) > 1024:
        raise GemmaryError(f"{path / _INDEX} names more than 1024 files")
    stored: Stored = {}
    for file_name in sorted(set(places.values())):
        if not (path / file_name).is_file():
            raise GemmaryError(f"{path} lacks the shard {file_name} that its index names")
        file = SafetensorsFile(path / file_name)
        for tensor_name in file.entries:
            if places.get(tensor_name) != file_name:
                raise GemmaryError(f"{path / file_name} holds {show(tensor_name)}, which the index places elsewhere")
            stored[tensor_name] = file
    lost = [n for n in places if n not in stored]
    if lost:
        raise GemmaryError(f"{path}: the index names {_some(lost)}, which no shard holds")
    return stored


def _find_prefix(path: Path, stored: Stored) -> str:
    found = [prefix for prefix in PREFIXES if prefix + "embed_tokens.weight" in stored]
    if len(found) != 1:
        raise GemmaryError(f"{path} has {'no' if not found else 'more than one'} embedding table (embed_tokens.weight)")
    return found[0]


def _prefix_of(tensor: Tensor, decoder: str, stored: Stored) -> str:
    """What stands before the name of a tensor, where `decoder` stands before those of the decoder."""
    if tensor.is_tower:
        found = [tower for tower in TOWERS if tower + "embeddings.patch_embedding.weight" in stored]
        return found[0] if found else TOWERS[0]
    if tensor.is_projector:
        return "model." if "model." + tensor.hugging_face in stored else ""
    return decoder


def _check_tensor(path: Path, name: str, entry: Entry, tensor: Tensor) -> None:
    shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
    if tensor.name == "embed" and entry.shape and PADDED_ROWS.get(entry.shape[0]) == tensor.shape[0]:
        shape = (entry.shape[0], *tensor.shape[1:])  # the other rows are no tokens
    if tensor.name == "vision.patch" and len(entry.shape) == 4 and entry.shape[1] == 3:
        shape = (tensor.shape[0], *entry.shape[1:]) if prod(entry.shape[1:]) == tensor.shape[1] else shape
    _check_shape(path, name, entry, shape)


def _check_shape(path: Path, name: str, entry: Entry, shape: tuple[int, ...]) -> None:
    if entry.dtype not in DTYPES:
        raise GemmaryError(f"{path}: {show(name)} is {entry.dtype}; weights are read as {', '.join(DTYPES)} only")
    if entry.shape != shape:
        raise GemmaryError(f"{path}: {show(name)} has shape {entry.shape}, but config.json means {shape}")


def _check_heads(path: Path, stored: Stored, embedding: str) -> None:
    """A stored head must be the embedding table, byte for byte: the models are tied."""
    first = stored[embedding].entries[embedding]
    for head in HEADS:
        if head not in stored:
            continue
        entry = stored[head].entries[head]
        if (entry.dtype, entry.shape) != (first.dtype, first.shape):
            raise GemmaryError(f"{path}: {head} is not the embedding table again, but Gemma's head is tied to it")
        a = stored[embedding].array(embedding).reshape(-1).view(np.uint8)
        b = stored[head].array(head).reshape(-1).view(np.uint8)
        if any(not np.array_equal(a[i : i + _COMPARE], b[i : i + _COMPARE]) for i in range(0, len(a), _COMPARE)):
            raise GemmaryError(f"{path}: {head} differs from the embedding table, but Gemma's head is tied to it")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more tensors" if len(names) > 1 else ""
    return f"{show(names[0])}{more}"
