"""Reads gemma_pytorch's `.ckpt`: a zip of raw arrays and a pickle that says what they are (specification 4.3).

The pickle is read by a process of its own (`unpickle.py`); this one maps the arrays, after it has seen that each lies
within one of the zip's members. Rows of queries, keys and values are one matrix; the rest is as in the tensor table.
"""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints import unpickle
from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.fields import show
from gemmary.checkpoints.huggingface import read_chat_template
from gemmary.checkpoints.json_files import parse_json
from gemmary.checkpoints.sizes import beside, config_of
from gemmary.checkpoints.stored import NAMES, Array, Index, Made, Stored, check_names, leaves_of
from gemmary.checkpoints.tensors import Tensor, bias_name, tensors
from gemmary.config import Config, Family
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import FLOATS

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

_BUFFERS = re.compile(r"(local_|global_)?freqs_cis$")
"""RoPE's angles, which follow from the Config."""
_TABLES = ("embedder.weight", "text_token_embedder.weight")
"""Of a model of text; of one that sees."""
_TOWER = "siglip_vision_model."
_RENAMED = {
    "self_attn.q_norm": "self_attn.query_norm",
    "self_attn.k_norm": "self_attn.key_norm",
    "self_attn.out_proj": "self_attn.o_proj",
    "embeddings.": "",
    "encoder.layers.": "encoder_blocks.",
    "post_layernorm": "final_norm",
    "multi_modal_projector.mm_input_projection_weight": "mm_input_projection.weight",
    "multi_modal_projector.mm_soft_emb_norm": "mm_soft_embedding_norm",
}
"""What is called otherwise than in Hugging Face's folders."""


def find_pickle(folder: Path) -> Path | None:
    """The `.ckpt` file of a folder that holds one and no other weights (as Kaggle's archives do)."""
    found = list(folder.glob("*.ckpt"))
    return found[0] if len(found) == 1 and not any(folder.glob("*.safetensors")) else None


def open_pickle(path: Path, name: str | None, allowed: bool) -> Checkpoint:
    """Raises GemmaryError, one line, where it is not allowed, PyTorch is missing, or the file is no sound Gemma."""
    if not allowed:
        raise GemmaryError(
            f"{path} is a pickle, a program that is run only where you ask for it: "
            f"`gemmary convert {path} DST --allow-pickle` makes a copy that is data alone"
        )
    if find_spec("torch") is None:
        raise GemmaryError('gemma_pytorch checkpoints need PyTorch: pip install "gemmary[torch]"')
    stored = {name: each for name, each in _stored(path).items() if not _BUFFERS.match(name)}
    if scaled := [name for name in stored if name.endswith("weight_scaler")]:
        raise GemmaryError(
            f"{path} holds int8 weights ({show(scaled[0])}), which are not read: take the unquantized variant"
        )
    notices: list[str] = []
    config = _config(path, stored, notices)
    table = {tensor.name: _name(tensor, config) for tensor in tensors(config)}
    table |= {t.name + ".bias": bias_name(table[t.name]) for t in tensors(config) if t.bias}
    check_names(path, stored, table.values())
    made = {ours: _made(ours, theirs, stored[theirs], config) for ours, theirs in table.items()}
    return Checkpoint(
        path,
        "gemma_pytorch",
        config,
        name or path.stem,
        leaves_of(path, config, made),
        partial(_tokenizer, path),
        partial(read_chat_template, path.resolve().parent),
        notices,
    )


def _name(tensor: Tensor, config: Config) -> str:
    """What the file calls a tensor."""
    if tensor.name == "embed":
        return _TABLES[config.vision is not None]
    if tensor.name.endswith((".q", ".k", ".v")) and not tensor.is_tower:
        return "model." + re.sub(r"[qkv]_proj", "qkv_proj", tensor.hugging_face)
    name = tensor.hugging_face
    for theirs, ours in _RENAMED.items():
        name = name.replace(theirs, ours)
    return name if tensor.is_projector else (_TOWER if tensor.is_tower else "model.") + name


def _made(ours: str, theirs: str, stored: Stored, config: Config) -> Made:
    a, k = config.query_size, config.kv_size
    rows = {"q": (0, a), "k": (a, a + k), "v": (a + k, a + 2 * k)}.get(ours.rpartition(".")[2])
    if "qkv_proj" in theirs and rows is not None and stored.shape[:1] == (a + 2 * k,):
        return Made(theirs, stored, lambda x: x[slice(*rows)])
    if ours == "vision.patch":  # a convolution
        return Made(theirs, stored, lambda x: x.reshape(x.shape[0], -1))
    return Made(theirs, stored, lambda x: x, config.vocab_size if ours == "embed" else None)


def _config(path: Path, stored: Mapping[str, Stored], notices: list[str]) -> Config:
    def shape(name: str) -> tuple[int, int]:
        if name not in stored or len(stored[name].shape) != 2:
            raise GemmaryError(f"{path} is no model of gemma_pytorch's: {name} is missing or no matrix")
        return stored[name].shape[0], stored[name].shape[1]

    numbers = {int(found[1]) for name in stored if (found := re.match(r"model\.layers\.(\d{1,4})\.", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise GemmaryError(f"{path} is no model of gemma_pytorch's: its layers are not numbered from 0 on")
    tower = any(name.startswith(_TOWER) for name in stored)
    layer = "model.layers.0."
    rows, width = shape(_TABLES[tower])
    query_size = shape(layer + "self_attn.o_proj.weight")[1]
    sizes = {
        "num_layers": len(numbers),
        "hidden_size": width,
        "query_size": query_size,
        "kv_size": (shape(layer + "self_attn.qkv_proj.weight")[0] - query_size) // 2,
        "intermediate_size": shape(layer + "mlp.gate_proj.weight")[0],
        "vocab_size": rows,
    }
    post_norms = layer + "pre_feedforward_layernorm.weight" in stored
    query_norms = layer + "self_attn.query_norm.weight" in stored
    family: Family = "gemma3" if query_norms else "gemma2" if post_norms else "gemma"
    return config_of(path, path.resolve().parent, family, sizes, tower=tower, notices=notices)


def _stored(path: Path) -> dict[str, Stored]:
    """The file's tensors, by what the child says, each checked against the zip."""
    members = _members(path)
    with open(path, "rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    stored: dict[str, Stored] = {}
    for name, place in _asked(path).items():
        try:
            dtype, shape, begin = place
            sound = isinstance(dtype, str) and all(type(n) is int and n >= 0 for n in (*shape, begin))
        except (TypeError, ValueError):
            sound = False
        if not sound:
            raise GemmaryError(f"{path} is not a sound .ckpt file: it does not say where {show(name)} lies")
        numbers = FLOATS[NAMES[dtype]] if dtype in NAMES else np.dtype(np.uint8)
        end = begin + prod(shape) * numbers.itemsize
        if not any(first <= begin and end <= last for first, last in members):
            raise GemmaryError(f"{path} is not a sound .ckpt file: {show(name)} lies in none of its members")
        stored[name] = Stored(tuple(shape), dtype, partial(_read, mapped[begin:end], numbers, tuple(shape)))
    return stored


def _read(data: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...], index: Index) -> Array:
    if data.__array_interface__["data"][0] % dtype.itemsize:
        data = data.copy()
    array: Array = data.view(dtype).reshape(shape)[index]
    return array


def _members(path: Path) -> list[tuple[int, int]]:
    """First and last byte (exclusive) of what each member of the zip holds, uncompressed."""
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            found: list[tuple[int, int]] = []
            for item in archive.infolist():
                if item.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{item.filename!a} is compressed")
                if item.filename.endswith("/byteorder") and archive.read(item)[:16] != b"little":
                    raise ValueError("its numbers are not little-endian")
                file.seek(item.header_offset)
                header = file.read(30)
                if len(header) != 30:
                    raise ValueError(f"{item.filename!a} lies outside of the file")
                name, extra = np.frombuffer(header[26:], "<u2").tolist()
                begin = item.header_offset + 30 + name + extra
                found.append((begin, begin + item.file_size))
            return found
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise GemmaryError(f"{path} is not a sound .ckpt file: {str(error).splitlines()[0]}") from None


def _asked(path: Path) -> dict[str, Any]:
    """What the child says of the tensors: name -> [dtype, shape, first byte]."""
    data = parse_json(said_of(path), f"{path}: what was read of it")
    if isinstance(error := data.get("error"), str):
        raise GemmaryError(f"{path} is not a sound .ckpt file: {ascii(error)[1:-1][:200]}")
    found = data.get("tensors")
    return found if isinstance(found, dict) else {}


def said_of(path: Path) -> bytes:
    """The child's standard output. Raises GemmaryError where it does not end well."""
    command = [sys.executable, "-m", unpickle.__name__, str(path.resolve())]
    with tempfile.TemporaryFile() as output:
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
                                  timeout=unpickle.SECONDS, check=False)  # fmt: skip
        except subprocess.TimeoutExpired:
            raise GemmaryError(f"{path} is not a sound .ckpt file: its pickle ran for {unpickle.SECONDS} s") from None
        if done.returncode != 0:
            raise GemmaryError(
                f"{path} is not a sound .ckpt file: the process that read its pickle ended with {done.returncode}"
            )
        output.seek(0)
        return output.read(unpickle.OUTPUT)


def _tokenizer(path: Path) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    return Tokenizer.from_folder(beside(path, ("tokenizer.model", "tokenizer.json"), (path.resolve().parent,)))
