"""PaliGemma as big_vision stores it, an `.npz` file: read and written by one table of its own.

Keys are paths below `params/`; layers are stacked on the first axis; matrices are stored input first. Norm weights are
zero-centred, as ours. (Specification 4.5.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gemmary import zoo
from gemmary.checkpoints import npz
from gemmary.checkpoints.checkpoint import MASK_CODEC, Checkpoint, Source
from gemmary.checkpoints.convert import Meter, Progress
from gemmary.checkpoints.einsums import Array, Entry, as_entry, tower_entries, vision_of
from gemmary.checkpoints.fields import periodic
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

PREFIX = "params/"
TOKENIZERS = ("tokenizer.model", "paligemma_tokenizer.model")
"""What is taken for the tokenizer where it lies beside the file."""
_L, _ATTN, _MLP = "layers.{i}.", "llm/layers/attn/", "llm/layers/mlp/"
_V, _VL = "vision.", "vision.layers.{i}."
_BLOCK = "img/Transformer/encoderblock/"

TABLE: tuple[Entry, ...] = (
    as_entry("embed", "llm/embedder/input_embedding", "same"),
    as_entry("final_norm", "llm/final_norm/scale", "same"),
    as_entry(_L + "attn_norm", "llm/layers/pre_attention_norm/scale", "same"),
    as_entry(_L + "ffn_norm", "llm/layers/pre_ffw_norm/scale", "same"),
    as_entry(_L + "post_attn_norm", "llm/layers/post_attention_norm/scale", "same"),
    as_entry(_L + "post_ffn_norm", "llm/layers/post_ffw_norm/scale", "same"),
    as_entry(_L + "q", _ATTN + "q_einsum/w", "queries"),
    as_entry(_L + "k", _ATTN + "kv_einsum/w", "keys", 0),
    as_entry(_L + "v", _ATTN + "kv_einsum/w", "keys", 1),
    as_entry(_L + "o", _ATTN + "attn_vec_einsum/w", "heads out"),
    as_entry(_L + "gate", _MLP + "gating_einsum", "transposed", 0),
    as_entry(_L + "up", _MLP + "gating_einsum", "transposed", 1),
    as_entry(_L + "down", _MLP + "linear", "transposed"),
    *tower_entries("img/", "encoderblock/"),
    as_entry(_V + "projector", "img/head/kernel", "transposed"),
    as_entry(_V + "projector.bias", "img/head/bias", "same"),
)


def open_big_vision(path: Path, name: str | None = None) -> Checkpoint:
    """Raises GemmaryError, one line, where the file is not a PaliGemma of big_vision's, whole and sound."""
    file = npz.NpzFile(path)
    config = _config(path, file)
    wanted = dict(_entries(config))
    expected = {PREFIX + entry.key for entry, _ in wanted.values()}
    if missing := sorted(expected - file.members.keys()):
        raise GemmaryError(f"{path} lacks {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1))
    if unknown := sorted(file.members.keys() - expected):
        raise GemmaryError(f"{path} holds {unknown[0]!a}, which this model does not have")

    def read(name: str) -> Array:
        entry, index = wanted[name]
        key = PREFIX + entry.key
        found = file.array(key) if index is None else file.part(key, index)
        return entry.ours(found if entry.half is None else found[entry.half], config)

    leaves: dict[str, Callable[[], Leaf]] = {}
    for tensor in tensors(config):
        for part, shape in ((tensor.name, tensor.shape), (tensor.name + ".bias", tensor.shape[:1])):
            if part in wanted and _shape(file, wanted[part], config) != shape:
                raise GemmaryError(f"{path}: {wanted[part][0].key} does not have the shape that {part} {shape} needs")
        leaves[tensor.name] = partial(_leaf, read, tensor.name, tensor.is_norm, tensor.bias)
    return Checkpoint(
        path, "big_vision", config, name or path.stem, leaves, partial(_tokenizer, path), lambda: None,
        ["its caps, window and query scale are not in the file: those of the released models are taken"],
    )  # fmt: skip


def _leaf(read: Callable[[str], Array], name: str, is_norm: bool, bias: bool) -> Leaf:
    weight = read(name)
    leaf = Dense(weight.astype(np.float32) if is_norm else np.ascontiguousarray(weight))
    return Affine(leaf, read(name + ".bias").astype(np.float32)) if bias else leaf


def _entries(config: Config) -> Iterator[tuple[str, tuple[Entry, int | None]]]:
    """Our name of every weight and bias -> its entry, and the number of its layer."""
    names = {t.name for t in tensors(config)}
    layers = {_L: config.num_layers, _VL: vision_of(config).num_layers}
    for entry in TABLE:
        start = next((start for start in layers if entry.name.startswith(start)), None)
        for index in range(layers[start]) if start else [None]:
            name = entry.name.format(i=index)
            if name.removesuffix(".bias") in names:
                yield name, (entry, index)


def _shape(file: npz.NpzFile, found: tuple[Entry, int | None], config: Config) -> tuple[int, ...]:
    """That an array will have as one of ours, learnt without reading it."""
    entry, index = found
    shape = file.members[PREFIX + entry.key].shape
    if index is not None:
        shape = shape[1:]
    if entry.half is not None:
        shape = shape[1:]
    try:
        return entry.ours(np.broadcast_to(np.zeros((), np.uint8), shape), config).shape
    except (ValueError, IndexError):
        return ()


def _config(path: Path, file: npz.NpzFile) -> Config:
    """The shape of the model, from those of its arrays; what they do not say, from the row of the zoo that they fit."""

    def shape(key: str, axes: int) -> tuple[int, ...]:
        member = file.members.get(PREFIX + key)
        if member is None or len(member.shape) != axes:
            raise GemmaryError(f"{path} is no PaliGemma of big_vision's: {PREFIX}{key} is missing or has another shape")
        return member.shape

    layers, heads, width, head_dim = shape(_ATTN + "q_einsum/w", 4)
    kv_heads = shape(_ATTN + "kv_einsum/w", 5)[2]
    intermediate = shape(_MLP + "linear", 3)[1]
    rows = shape("llm/embedder/input_embedding", 2)[0]
    patches = shape("img/pos_embedding", 3)[1]
    edge, _, _, tower_width = shape("img/embedding/kernel", 4)
    tower_layers, _, tower_heads, _ = shape(_BLOCK + "MultiHeadDotProductAttention_0/query/kernel", 4)
    second = PREFIX + "llm/layers/post_ffw_norm/scale" in file.members
    if isqrt(patches) ** 2 != patches:
        raise GemmaryError(f"{path}: {patches} positions are not those of a square picture")
    try:
        vision = VisionConfig(
            image_size=isqrt(patches) * edge,
            num_layers=tower_layers,
            hidden_size=tower_width,
            num_heads=tower_heads,
            intermediate_size=shape(_BLOCK + "MlpBlock_0/Dense_0/kernel", 3)[2],
            patch_size=edge,
        )
        return Config(
            family="paligemma2" if second else "paligemma",
            num_layers=layers,
            hidden_size=width,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            intermediate_size=intermediate,
            vocab_size=rows,
            context_length=8192,
            layer_types=periodic(1, layers),
            query_pre_attn_scalar=_query_scalar(layers, width, head_dim),
            attn_logit_softcap=50.0 if second else None,
            post_norms=second,
            vision=vision,
            prefix_lm=True,
        )
    except ValueError as error:
        raise GemmaryError(f"{path}: {error}") from None


def _query_scalar(layers: int, width: int, head_dim: int) -> float:
    """A released decoder's of this depth and width; of any other the head's size."""
    known = (row.config for row in zoo.ZOO if row.config.vision)
    fitting = (c.query_pre_attn_scalar for c in known if (c.num_layers, c.hidden_size) == (layers, width))
    return next(fitting, head_dim)


def _tokenizer(path: Path) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    for name in TOKENIZERS:
        if (path.parent / name).is_file():
            return Tokenizer.from_model_bytes((path.parent / name).read_bytes())
    raise GemmaryError(f"{path} has no tokenizer: put {' or '.join(TOKENIZERS)} beside it")


def save_big_vision(source: Source, path: Path, format: str | None, progress: Progress | None = None) -> list[str]:
    """Writes one `.npz` file, atomically. format: F32, BF16, or None: bfloat16 where every matrix is, else float32.

    Returns what a user should be told. Raises GemmaryError for a model that sees no pictures.
    """
    config = source.config
    if not config.prefix_lm:
        raise GemmaryError(f"{source.name} sees no pictures as PaliGemma does, whose layout big_vision's is")
    if format not in (None, "F32", "BF16"):
        raise GemmaryError(f"big_vision's files are float32 or bfloat16, not {format}")
    if format is None:
        stored = {source.lookup(t.name).format for t in tensors(config) if not t.is_norm}
        format = "BF16" if stored == {"BF16"} else "F32"
    groups: dict[str, dict[int | None, list[tuple[Entry, str]]]] = {}
    for name, (entry, index) in _entries(config):
        groups.setdefault(entry.key, {}).setdefault(index, []).append((entry, name))
    size = FLOATS[format].itemsize
    meter = Meter((config.parameters + config.vision_parameters) * size, progress)

    def layer(parts: list[tuple[Entry, str]]) -> Array:
        found = [entry.theirs(_values(source, name), config).astype(FLOATS[format]) for entry, name in parts]
        return found[0] if len(found) == 1 else np.stack(found)

    with atomic_file(path) as out, npz.writing(out) as archive:
        for key, layers in groups.items():
            with archive.open(f"{PREFIX}{key}.npy", "w", force_zip64=True) as member:
                arrays = meter.watch(np.ascontiguousarray(layer(parts)) for parts in layers.values())
                for number, array in enumerate(arrays):
                    if number == 0:
                        stacked = () if None in layers else (len(layers),)
                        member.write(npz.header(format, (*stacked, *array.shape)))
                    member.write(array.view(np.uint8).reshape(-1).data)
    left = ["tokenizer.model", *([MASK_CODEC] if source.mask_codec_file else [])]
    return [f"big_vision's file carries weights alone: put {' and '.join(left)} beside it"]


def _values(source: Source, name: str) -> npt.NDArray[np.float32]:
    if name.endswith(".bias"):
        leaf = source.lookup(name.removesuffix(".bias"))
        assert isinstance(leaf, Affine)
        return leaf.bias
    return source.lookup(name).dequantize()
