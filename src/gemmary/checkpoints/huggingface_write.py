"""Writes a Hugging Face folder that transformers loads (and, for EmbeddingGemma, sentence-transformers)."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmary.checkpoints import safetensors
from gemmary.checkpoints.checkpoint import MASK_CODEC, Source
from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.convert import Meter, Progress, stored_bytes
from gemmary.checkpoints.json_files import write_json
from gemmary.checkpoints.pooling import write_pooling
from gemmary.checkpoints.tensors import Tensor, bias_name, hub_name, tensors
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile, atomic_folder
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf, transposed
from gemmary.quantize.pieces import pieces

SHARD_BYTES = 5_000_000_000
_TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class _Part:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    tensor: Tensor
    is_bias: bool = False

    def leaf(self, source: Source) -> Leaf:
        leaf = source.lookup(self.tensor.name)
        if self.tensor.transposed:
            return transposed(leaf)
        return Dense(leaf.bias) if self.is_bias and isinstance(leaf, Affine) else leaf


def save_folder(
    source: Source,
    path: Path,
    format: str | None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> list[str]:
    """Writes the folder `path`, atomically, with SHA256SUMS in it. format: F32, BF16, F16, or None: as stored.

    Every weight is written in one format. Quantized weights are dequantized (None: to F32, which holds them exactly).
    Returns what a user should be told. Raises GemmaryError where the folder holds something, or the disk refuses.
    """
    if format is not None and format not in FLOATS:
        raise GemmaryError(f"a Hugging Face folder is written as {', '.join(_TORCH_NAMES.values())}, not {format}")
    config = source.config
    table = tensors(config)
    format, notices = _choose(source, table, format)
    dense = [t for t in table if t.is_pooled_dense]
    parts = list(_parts(config, (t for t in table if not t.is_pooled_dense)))
    meter = Meter(sum(stored_bytes(format, part.shape) for part in (*parts, *_parts(config, dense))), progress)
    with atomic_folder(path) as folder:
        write_around(source, folder, _TORCH_NAMES[format], notices)
        _write_weights(source, folder, parts, format, shard_bytes, meter)
        if config.bidirectional:
            write_pooling(folder, config)
            for part in _parts(config, dense):
                place = part.tensor.hugging_face.partition("/")[0]
                _write_file(source, folder / place / "model.safetensors", [part], format, meter)
    return notices


def _parts(config: Config, table: Iterable[Tensor]) -> Iterator[_Part]:
    """The tensors of the files, each bias after its weight."""
    for tensor in table:
        name = hub_name(config, tensor)
        edge = config.vision.patch_size if config.vision else 0
        shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
        is_patch = tensor.name == "vision.patch"  # a convolution in files
        yield _Part(name, (tensor.shape[0], 3, edge, edge) if is_patch else shape, tensor)
        if tensor.bias:
            yield _Part(bias_name(name), tensor.shape[:1], tensor, is_bias=True)


def write_around(source: Source, folder: Path, dtype: str, notices: list[str]) -> None:
    """What a folder holds beside its weights: config.json, the tokenizer's files, how pictures are prepared, the chat
    template, a mask codec."""
    eos_ids = _eos_ids(source)
    write_json(folder / "config.json", write_config(source.config, dtype, eos_ids))
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


def _choose(source: Source, table: tuple[Tensor, ...], asked: str | None) -> tuple[str, list[str]]:
    formats = {source.lookup(t.name).format for t in table if not t.is_norm}
    quantized = sorted(formats - FLOATS.keys())
    format = asked or (formats.pop() if len(formats) == 1 and not quantized else "F32")
    if not quantized:
        return format, []
    return format, [f"{', '.join(quantized)} weights are written as {_TORCH_NAMES[format]}: the format has no blocks"]


def _write_weights(
    source: Source, folder: Path, parts: list[_Part], format: str, shard_bytes: int, meter: Meter
) -> None:
    shards: list[list[_Part]] = [[]]
    room = shard_bytes
    for part in parts:
        size = stored_bytes(format, part.shape)
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(part)
        room -= size
    if len(shards) == 1:
        _write_file(source, folder / "model.safetensors", shards[0], format, meter)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(source, folder / name, shard, format, meter)
        places |= {part.name: name for part in shard}
    total = sum(stored_bytes(format, part.shape) for part in parts)
    parameters = sum(math.prod(part.shape) for part in parts)
    index: dict[str, Any] = {"metadata": {"total_parameters": parameters, "total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)


def _write_file(source: Source, path: Path, parts: list[_Part], format: str, meter: Meter) -> None:
    """A file inside a folder that is itself made atomic, so this one need not be."""
    with open(path, "wb") as file:
        rows = [(part.name, format, part.shape) for part in parts]
        data = (meter.watch(pieces(part.leaf(source), format)) for part in parts)
        safetensors.write(HashingFile(file), rows, data)


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
