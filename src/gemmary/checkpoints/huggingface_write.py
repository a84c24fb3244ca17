"""Writes a Hugging Face folder that transformers loads (and, for EmbeddingGemma, sentence-transformers)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints import compressed, safetensors
from gemmary.checkpoints.checkpoint import MASK_CODEC, Source
from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.convert import Meter, Progress
from gemmary.checkpoints.json_files import write_json
from gemmary.checkpoints.pooling import write_pooling
from gemmary.checkpoints.tensors import Tensor, bias_name, hub_name, tensors
from gemmary.config import VisionConfig
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile, atomic_folder
from gemmary.quantize.blocks import row_bytes
from gemmary.quantize.leaves import FLOATS, Affine, Dense, transposed
from gemmary.quantize.pieces import pieces

SHARD_BYTES = 5_000_000_000
_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class _Part:
    """One tensor of a file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Callable[[], Iterator[npt.NDArray[Any]]]

    @property
    def nbytes(self) -> int:
        return safetensors.tensor_bytes(self.dtype, self.shape)


def save_folder(
    source: Source,
    path: Path,
    format: str | None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    *,
    layers: Mapping[str, str] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> list[str]:
    """Writes the folder `path`, atomically, with SHA256SUMS in it. format: F32, BF16, F16, or None: as stored.

    layers: name of each matrix of the decoder's layers -> Q4_0 or Q8_0, as compressed-tensors has them (compressed.py);
    None: every weight is written in one format. Other quantized weights are dequantized (None: to F32, which holds them
    exactly). finish: called with the folder when all else is in it, before it has its name; may add files.

    Returns what a user should be told. Raises GemmaryError where the folder holds something, or the disk refuses.
    """
    if format is not None and format not in FLOATS:
        raise GemmaryError(f"a Hugging Face folder is written as {', '.join(_TORCH_NAMES.values())}, not {format}")
    config = source.config
    layers = layers or {}
    packed = [t for t in tensors(config) if t.name in layers]
    format, notices = _choose(source, [t for t in tensors(config) if t not in packed], format)
    parts: dict[bool, list[_Part]] = {False: [], True: []}
    for tensor in tensors(config):
        is_packed = tensor.name in layers
        made = _packed(source, tensor, layers[tensor.name]) if is_packed else _dense(source, tensor, format)
        parts[tensor.is_pooled_dense] += made
    meter = Meter(sum(part.nbytes for part in (*parts[False], *parts[True])), progress)
    with atomic_folder(path) as folder:
        said = compressed.quantization_config({t.hugging_face: layers[t.name] for t in packed}) if packed else None
        write_around(source, folder, _TORCH_NAMES[format], notices, said)
        _write_weights(folder, parts[False], shard_bytes, meter)
        if config.bidirectional:
            write_pooling(folder, config)
            for tensor, part in zip((t for t in tensors(config) if t.is_pooled_dense), parts[True], strict=True):
                _write_file(folder / tensor.hugging_face.partition("/")[0] / "model.safetensors", [part], meter)
        if finish is not None:
            finish(folder)
    return notices


def save_compressed(
    source: Source,
    path: Path,
    layers: str | None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    finish: Callable[[Path], None] | None = None,
) -> list[str]:
    """A folder whose layers are quantized, which transformers loads with compressed-tensors. layers: Q4_0, Q8_0, or
    None: each matrix as stored. As `save_folder` beyond that."""
    packed = [tensor.name for tensor in tensors(source.config) if compressed.is_packed(tensor)]
    formats = {name: layers or source.lookup(name).format for name in packed}
    if others := sorted(set(formats.values()) - compressed.BITS.keys()):
        raise GemmaryError(
            f"{compressed.METHOD} holds layers of int8 or int4, not of {', '.join(others)}: choose one of them"
        )
    return save_folder(source, path, None, shard_bytes, progress, layers=formats, finish=finish)


def _dense(source: Source, tensor: Tensor, format: str) -> Iterator[_Part]:
    """A tensor, and its bias after it."""
    name, vision = hub_name(source.config, tensor), source.config.vision
    shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
    if tensor.name == "vision.patch" and vision is not None:  # a convolution in files
        shape = (tensor.shape[0], 3, vision.patch_size, vision.patch_size)

    def weight() -> Iterator[npt.NDArray[Any]]:
        leaf = source.lookup(tensor.name)
        return pieces(transposed(leaf) if tensor.transposed else leaf, format)

    def bias() -> Iterator[npt.NDArray[Any]]:
        leaf = source.lookup(tensor.name)
        assert isinstance(leaf, Affine)
        return pieces(Dense(leaf.bias), format)

    yield _Part(name, format, shape, weight)
    if tensor.bias:
        yield _Part(bias_name(name), format, tensor.shape[:1], bias)


def _packed(source: Source, tensor: Tensor, format: str) -> Iterator[_Part]:
    """A matrix as compressed-tensors has it. Raises GemmaryError where its rows do not divide into blocks."""
    rows, columns = tensor.shape
    try:
        row_bytes(format, columns)
    except GemmaryError as error:
        raise GemmaryError(f"{source.name} cannot be written so: in {tensor.name} {error}") from None
    codes, scales, shape = compressed.parts_of(hub_name(source.config, tensor))
    bits, groups = compressed.BITS[format], columns // compressed.GROUP
    yield _Part(
        codes, "I32", (rows, columns * bits // 32), lambda: compressed.words(source.lookup(tensor.name), format)
    )
    yield _Part(scales, "F16", (rows, groups), lambda: compressed.scales(source.lookup(tensor.name), format))
    yield _Part(shape, "I64", (2,), lambda: iter([np.array(tensor.shape, dtype="<i8")]))


def write_around(
    source: Source, folder: Path, dtype: str, notices: list[str], quantization: dict[str, Any] | None = None
) -> None:
    """What a folder holds beside its weights: config.json, the tokenizer's files, how pictures are prepared, the chat
    template, a mask codec. quantization: what config.json says of it."""
    eos_ids = _eos_ids(source)
    said = {} if quantization is None else {"quantization_config": quantization}
    write_json(folder / "config.json", write_config(source.config, dtype, eos_ids) | said)
    if not source.config.bidirectional:
        write_json(folder / "generation_config.json", _generation_config(source, eos_ids))
    if source.tokenizer is None:
        notices.append("the folder carries no tokenizer")
    else:
        source.tokenizer.save(folder)
    if source.config.prefix_lm and source.config.vision is not None:
        write_json(folder / "preprocessor_config.json", _preprocessor_config(source.config.vision))
    if source.mask_codec_file is not None:
        shutil.copyfile(source.mask_codec_file, folder / MASK_CODEC)
    if source.chat_template is not None:
        (folder / "chat_template.jinja").write_text(source.chat_template, encoding="utf-8")


def _preprocessor_config(vision: VisionConfig) -> dict[str, Any]:
    """By which transformers' AutoProcessor knows a PaliGemma: bicubic (3) to a square, from [0, 255] to [-1, 1]."""
    return {
        "processor_class": "PaliGemmaProcessor",
        "image_processor_type": "SiglipImageProcessor",
        "image_seq_length": vision.num_tokens,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "do_resize": True,
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _choose(source: Source, table: Sequence[Tensor], asked: str | None) -> tuple[str, list[str]]:
    formats = {source.lookup(t.name).format for t in table if not t.is_norm}
    quantized = sorted(formats - FLOATS.keys())
    format = asked or (formats.pop() if len(formats) == 1 and not quantized else "F32")
    if not quantized:
        return format, []
    return format, [f"{', '.join(quantized)} weights are written as {_TORCH_NAMES[format]}: the format has no blocks"]


def _write_weights(folder: Path, parts: list[_Part], shard_bytes: int, meter: Meter) -> None:
    shards: list[list[_Part]] = [[]]
    room = shard_bytes
    for part in parts:
        if part.nbytes > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(part)
        room -= part.nbytes
    if len(shards) == 1:
        _write_file(folder / "model.safetensors", shards[0], meter)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard, meter)
        places |= {part.name: name for part in shard}
    total = sum(part.nbytes for part in parts)
    parameters = sum(math.prod(part.shape) for part in parts)
    index: dict[str, Any] = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def _write_file(path: Path, parts: list[_Part], meter: Meter) -> None:
    """A file inside a folder that is itself made atomic, so this one need not be."""
    with open(path, "wb") as file:
        rows = [(part.name, part.dtype, part.shape) for part in parts]
        safetensors.write(HashingFile(file), rows, (meter.watch(part.data()) for part in parts))


def _eos_ids(source: Source) -> list[int]:
    """The end of the text, and for an instruction-tuned model the end of a turn."""
    turn = source.tokenizer.turn_ids if source.tokenizer is not None and source.chat_template is not None else None
    return [1] if turn is None else [1, turn[1]]


def _generation_config(source: Source, eos_ids: list[int]) -> dict[str, Any]:
    eos = eos_ids if len(eos_ids) > 1 else eos_ids[0]
    data: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": eos, "pad_token_id": 0}
    if source.config.family == "gemma3" and source.chat_template is not None:
        data |= {"do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95}  # as the official folders say
    return data
