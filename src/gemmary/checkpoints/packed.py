"""A folder of panels: weights as the native kernels read them (csrc/packed.h), which the engine maps and never copies.

`config.json` and the tokenizer's files are those of a Hugging Face folder; `model.safetensors` holds every tensor
under its name in the tensor table, a matrix as uint8 panels, a norm as it is in memory (zero-centred, F32), and a bias
as F32 with `.bias` after its weight's name. Its metadata say that it is such a file, the version of the layout, and of
each matrix `FORMAT ROWS COLUMNS`. Every matrix begins at a multiple of 64 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Checkpoint, Source
from gemmary.checkpoints.config_json import read_config
from gemmary.checkpoints.convert import Meter, Progress
from gemmary.checkpoints.huggingface import open_tokenizer, read_chat_template
from gemmary.checkpoints.huggingface_write import write_around
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.mixes import ASKED, block_types, fallbacks
from gemmary.checkpoints.safetensors import SafetensorsFile, show, write
from gemmary.checkpoints.tensors import Tensor, bias_name, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.files import PIECE, HashingFile, atomic_folder
from gemmary.quantize.blocks import BLOCK_SIZES
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf, Packed, padded_columns, quantized, slices
from gemmary.quantize.pieces import piece

FILE = "model.safetensors"
KIND = "gemmary-packed"
ALIGNMENT = 64
Stated = dict[str, tuple[str, tuple[int, int]]]
"""Format, rows and columns of each matrix."""
_STATED = re.compile(r"([A-Z0-9_]{2,8}) ([1-9][0-9]{0,9}) ([1-9][0-9]{0,9})")


def is_packed(path: Path) -> bool:
    """Whether a folder is one of these. (An unsound file is not; who opens it as another folder says what is wrong.)"""
    try:
        return (path / FILE).is_file() and SafetensorsFile(path / FILE).metadata.get("format") == KIND
    except GemmaryError:
        return False


def open_packed(path: Path, name: str | None = None) -> Checkpoint:
    """Raises GemmaryError, one line, where the folder is not whole and sound, or was written for another layout."""
    notices: list[str] = []
    file, stated = _open_file(path)
    config = _with_dense(path, read_config(read_json(path / "config.json"), notices), stated)
    return Checkpoint(
        path, "packed", config, name or path.resolve().name, _leaves(path, file, stated, config),
        partial(open_tokenizer, path), partial(read_chat_template, path), notices,
    )  # fmt: skip


def open_weights(path: Path, config: Config) -> dict[str, Callable[[], Leaf]]:
    """The weights alone, of a model whose Config is known. Raises GemmaryError as `open_packed` does."""
    return _leaves(path, *_open_file(path), config)


def _open_file(path: Path) -> tuple[SafetensorsFile, Stated]:
    from gemmary import _core

    file = SafetensorsFile(path / FILE)
    file.in_large_pages()
    if (version := file.metadata.get("version")) != str(_core.PACKED_VERSION):
        raise GemmaryError(
            f"{path} is packed in layout {ascii(version)[:20]}, and this Gemmary reads layout {_core.PACKED_VERSION}: "
            "convert the original again"
        )
    return file, {k: _stated(path, k, text) for k, text in file.metadata.items() if k not in ("format", "version")}


def _leaves(path: Path, file: SafetensorsFile, stated: Stated, config: Config) -> dict[str, Callable[[], Leaf]]:
    table = tensors(config)
    vectors = {t.name for t in table if t.is_norm} | {bias_name(t.name) for t in table if t.bias}
    names = {t.name for t in table} | vectors
    for found in (file.entries, {**stated, **dict.fromkeys(vectors)}):
        if missing := sorted(names - set(found)):
            raise GemmaryError(f"{path / FILE} lacks {_some(missing)}")
        if unknown := sorted(set(found) - names):
            raise GemmaryError(f"{path / FILE} holds {_some(unknown)}, which this model does not have")
    leaves: dict[str, Callable[[], Leaf]] = {}
    for tensor in table:
        leaf: Callable[[], Leaf]
        if tensor.is_norm:
            leaf = _vector(path, file, tensor.name, tensor.shape)
        else:
            leaf = _matrix(path, file, tensor, *stated[tensor.name])
        bias = _vector(path, file, bias_name(tensor.name), tensor.shape[:1]) if tensor.bias else None
        leaves[tensor.name] = partial(_affine, leaf, bias) if bias else leaf
    return leaves


def _stated(path: Path, key: str, text: str) -> tuple[str, tuple[int, int]]:
    found = _STATED.fullmatch(text)
    if found is None or found[1] not in (*FLOATS, *BLOCK_SIZES):
        raise GemmaryError(f"{path / FILE}: the metadata of {show(key)} are not a known format, rows and columns")
    return found[1], (int(found[2]), int(found[3]))


def _with_dense(path: Path, config: Config, stated: Stated) -> Config:
    """The Config with the widths of an embedding model's dense layers, which config.json does not say."""
    if not config.bidirectional:
        return config
    count = sum(key.startswith("dense.") for key in stated)
    widths = [stated[f"dense.{i}"][1][0] for i in range(count) if f"dense.{i}" in stated]
    if len(widths) != count:
        raise GemmaryError(f"{path / FILE}: its dense layers are not dense.0, dense.1, …")
    return replace(config, pooled_dense=tuple(widths))


def _vector(path: Path, file: SafetensorsFile, name: str, shape: tuple[int, ...]) -> Callable[[], Dense]:
    entry = file.entries[name]
    if (entry.dtype, entry.shape) != ("F32", shape):
        raise GemmaryError(f"{path / FILE}: {name} is {entry.dtype} {entry.shape}, not F32 {shape}")
    return lambda: Dense(file.array(name))


def _affine(weight: Callable[[], Leaf], bias: Callable[[], Dense]) -> Leaf:
    return Affine(weight(), bias().array)


def _matrix(
    path: Path, file: SafetensorsFile, tensor: Tensor, format: str, shape: tuple[int, int]
) -> Callable[[], Leaf]:
    from gemmary import _core

    entry = file.entries[tensor.name]
    if shape != tensor.shape:
        raise GemmaryError(f"{path / FILE}: {tensor.name} has shape {shape}, but config.json means {tensor.shape}")
    try:
        needed = _core.packed_bytes(format, *_panel_shape(tensor, format))
    except ValueError as error:
        raise GemmaryError(f"{path / FILE}: {tensor.name}: {error}") from None
    if (entry.dtype, entry.shape) != ("U8", (needed,)):
        raise GemmaryError(
            f"{path / FILE}: {tensor.name} is {entry.dtype} {entry.shape}, but {format} {shape} takes U8 {(needed,)}"
        )
    if entry.begin % ALIGNMENT:
        raise GemmaryError(f"{path / FILE}: {tensor.name} does not begin at a multiple of {ALIGNMENT} bytes")
    return lambda: Packed(format, shape, file.data(tensor.name))


def save_packed(
    source: Source,
    path: Path,
    format: str | None,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> list[str]:
    """Writes the folder `path`, atomically, with SHA256SUMS in it. format: of every matrix, or None: as stored.
    finish: called with the folder when all else is in it, before it has its name; may add files.

    Returns what a user should be told. Raises GemmaryError where a row does not divide into blocks, a weight does not
    fit the format, the folder holds something, or the disk refuses.
    """
    notices = fallbacks(source.config, format) if format in ASKED else []
    contents = _contents(source.config, source.lookup, format)
    with atomic_folder(path) as folder:
        write_around(source, folder, "float32", notices)
        contents.write(folder, progress)
        if finish is not None:
            finish(folder)
    return notices


def write_weights(
    config: Config, lookup: Callable[[str], Leaf], folder: Path, progress: Progress | None = None
) -> None:
    """The weights alone, as they are stored, into a folder that is itself made atomic. Raises GemmaryError as
    `save_packed` does."""
    _contents(config, lookup, None).write(folder, progress)


@dataclass(frozen=True)
class _Contents:
    """What the file of weights will hold."""

    lookup: Callable[[str], Leaf]
    table: list[Tensor]
    formats: dict[str, str]
    plan: list[tuple[str, str, tuple[int, ...]]]
    metadata: dict[str, str]

    def write(self, folder: Path, progress: Progress | None) -> None:
        from gemmary import _core

        runtime = _core.Runtime(0, None)
        meter = Meter(sum(shape[0] for _, dtype, shape in self.plan if dtype == "U8"), progress)
        with open(folder / FILE, "wb", buffering=PIECE) as file:
            data = (
                iter([self.lookup(t.name).dequantize()])
                if t.is_norm
                else meter.watch(_panels(runtime, self.lookup(t.name), self.formats[t.name]))
                for t in self.table
            )
            biases = (iter([_bias(self.lookup(t.name))]) for t in self.table if t.bias)
            write(HashingFile(file), self.plan, chain(data, biases), self.metadata)


def _contents(config: Config, lookup: Callable[[str], Leaf], format: str | None) -> _Contents:
    """Raises GemmaryError where a row does not divide into blocks."""
    from gemmary import _core

    table = sorted(tensors(config), key=lambda t: t.is_norm)  # panels are whole lines of 64 bytes, norms may not be
    formats = _formats(config, lookup, table, format)
    metadata = {"format": KIND, "version": str(_core.PACKED_VERSION)}
    plan: list[tuple[str, str, tuple[int, ...]]] = []
    for tensor in table:
        if tensor.is_norm:
            plan.append((tensor.name, "F32", tensor.shape))
            continue
        found = formats[tensor.name]
        metadata[tensor.name] = f"{found} {tensor.shape[0]} {tensor.shape[1]}"
        try:
            plan.append((tensor.name, "U8", (_core.packed_bytes(found, *_panel_shape(tensor, found)),)))
        except ValueError as error:
            raise GemmaryError(f"{tensor.name} cannot be packed: {error}") from None
    plan += [(bias_name(t.name), "F32", t.shape[:1]) for t in table if t.bias]
    return _Contents(lookup, table, formats, plan, metadata)


def _formats(config: Config, lookup: Callable[[str], Leaf], table: list[Tensor], asked: str | None) -> dict[str, str]:
    """What each matrix is written in where `asked` is wanted of the model; as stored where that does not concern it."""
    matrices = [t.name for t in table if not t.is_norm]
    if asked is not None and asked not in ASKED:
        return dict.fromkeys(matrices, asked)
    blocks = block_types(config, asked) if asked is not None else {}
    return {name: blocks.get(name) or lookup(name).format for name in matrices}


def _panel_shape(tensor: Tensor, format: str) -> tuple[int, int]:
    """Rows and columns, with those that fill up the last blocks of the tower's."""
    rows, columns = tensor.shape
    return rows, padded_columns(format, columns) if tensor.bias else columns


def _bias(leaf: Leaf) -> npt.NDArray[np.float32]:
    assert isinstance(leaf, Affine)
    return leaf.bias


def _panels(runtime: Any, leaf: Leaf, format: str) -> Iterator[npt.NDArray[np.uint8]]:
    from gemmary import _core

    columns = leaf.shape[1]
    if isinstance(leaf, Affine):
        columns = padded_columns(format, columns)
        leaf = quantized(leaf.weight, format) if format in BLOCK_SIZES and leaf.format != format else leaf.weight
    if isinstance(leaf, Packed) and leaf.format == format:
        yield leaf.panels
        return
    for start, stop in slices(leaf):  # whole panels, so the panels of the slices are those of the weight
        part = _core.PackedWeight(runtime, format, stop - start, columns)
        part.pack(runtime, 0, piece(leaf, start, stop, format))
        yield part.panels
        leaf.release(start, stop)


def _some(names: list[str]) -> str:
    return show(names[0]) + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
