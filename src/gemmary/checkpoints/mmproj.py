"""The tower of a Gemma 3 in GGUF: a file of its own beside the text's, `mmproj*.gguf`, as llama.cpp writes it.

Names are those of the tensor table. All norms but the soft one are as they were trained; that one is stored as 1 + w.
Files of 2025's first converter have the names of the two matrices of the MLP the wrong way round: their shapes tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.fields import Fields, show
from gemmary.checkpoints.gguf import Stored, read_file, some
from gemmary.checkpoints.gguf_config import as_written
from gemmary.checkpoints.tensors import Tensor, bias_name, tensors
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import FLOATS, Affine, Blocks, Dense, Leaf, transposed

PATTERN = "mmproj*.gguf"
_PROJECTION = "mm.input_projection.weight"
_POOL = 4
"""Patches a side of a token where the file says nothing."""

Bytes = npt.NDArray[np.uint8]


def with_tower(text: Checkpoint) -> Checkpoint:
    """The checkpoint of a text file with the tower from beside it; itself where none lies there that fits.

    Raises GemmaryError for one that fits and is not whole and sound.
    """
    if text.config.family != "gemma3":
        return text
    fitting = []
    for path in sorted(text.path.parent.glob(PATTERN)):
        file, metadata, stored = read_file(path)
        kinds = [metadata.get(f"clip.{part}projector_type") for part in ("", "vision.")]
        width = stored[_PROJECTION].shape[1:] if _PROJECTION in stored else ()
        if b"gemma3" in kinds and width == (text.config.hidden_size,):
            fitting.append((path, file, metadata, stored))
        else:
            text.notices.append(f"{path.name} lies beside the model and is another's: set aside")
    if not fitting:
        return text
    path, file, metadata, stored = fitting[0]
    others = "".join(f", not {each[0].name}" for each in fitting[1:])
    text.notices.append(f"pictures are seen with {path.name}{others}")
    config = replace(text.config, vision=_vision(path.name, metadata))
    table = [tensor for tensor in tensors(config) if tensor.name.startswith("vision.")]
    names = _names(config, table, stored)
    missing = [name for name in names if name not in stored]
    if missing:
        raise GemmaryError(f"{path} lacks {some(missing)}")
    if unknown := sorted(set(stored) - set(names)):
        raise GemmaryError(f"{path} holds {some(unknown)}, which this model does not have")
    for name, (tensor, is_bias) in names.items():
        _check(path, stored[name], tensor, is_bias)
    by_tensor = {(tensor.name, is_bias): stored[name] for name, (tensor, is_bias) in names.items()}
    leaves: dict[str, Callable[[], Leaf]] = {
        tensor.name: partial(_leaf, file, tensor, by_tensor[tensor.name, False], by_tensor.get((tensor.name, True)))
        for tensor in table
    }
    return replace(text, config=config, leaves={**leaves, **text.leaves}, tower_path=path)


def _vision(where: str, metadata: dict[str, Any]) -> VisionConfig:
    get = Fields(where, metadata, "clip.vision.")
    try:
        return VisionConfig(
            image_size=get.size("image_size", most=4096),
            num_layers=get.size("block_count", most=1024),
            hidden_size=get.size("embedding_length"),
            num_heads=get.size("attention.head_count"),
            intermediate_size=get.size("feed_forward_length"),
            patch_size=get.size("patch_size", most=1024),
            layer_norm_eps=as_written(get.number("attention.layer_norm_epsilon", 1e-6)),
            pool=get.size("projector.scale_factor", _POOL, most=1024),
            soft_norm=True,
        )
    except ValueError as error:
        raise GemmaryError(f"{where}: {error}") from None


def _names(config: Config, table: list[Tensor], stored: dict[str, Stored]) -> dict[str, tuple[Tensor, bool]]:
    """Name in the file -> the tensor, and whether it is its bias."""
    assert config.vision is not None
    vision, up = config.vision, stored.get("v.blk.0.ffn_up.weight")
    is_swapped = up is not None and up.shape == (vision.hidden_size, vision.intermediate_size) != up.shape[::-1]
    other = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if is_swapped else {}
    found: dict[str, tuple[Tensor, bool]] = {}
    for tensor in table:
        name = ".".join(other.get(part, part) for part in tensor.gguf.split("."))
        found[name] = tensor, False
        if tensor.bias:
            found[bias_name(name)] = tensor, True
    return found


def _check(path: Path, stored: Stored, tensor: Tensor, is_bias: bool) -> None:
    shape: tuple[int, ...] = tensor.shape[:1] if is_bias else tensor.shape
    found = stored.shape
    if tensor.name == "vision.patch" and len(found) == 4:  # a convolution
        found = (found[0], found[1] * found[2] * found[3])
    if tensor.transposed:
        found = found[::-1]
    if found != shape:
        raise GemmaryError(f"{path}: {show(stored.name)} has shape {stored.shape}, but its metadata means {shape}")
    if len(shape) == 1 and stored.format not in FLOATS:
        raise GemmaryError(f"{path}: {show(stored.name)} is {stored.format}, not a list of numbers")


def _leaf(file: Bytes, tensor: Tensor, weight: Stored, bias: Stored | None) -> Leaf:
    if tensor.is_norm:
        scale = _floats(file, weight).astype(np.float32)
        return Dense(scale - np.float32(1)) if bias is None else Affine(Dense(scale), _vector(file, bias))
    leaf = _matrix(file, weight, tensor)
    return leaf if bias is None else Affine(leaf, _vector(file, bias))


def _matrix(file: Bytes, stored: Stored, tensor: Tensor) -> Leaf:
    if stored.format in BLOCK_SIZES:
        rows, columns = stored.shape
        data = file[stored.begin : stored.begin + stored.nbytes].reshape(rows, row_bytes(stored.format, columns))
        leaf: Leaf = Blocks(stored.format, (rows, columns), data)
    else:
        leaf = Dense(_floats(file, stored).reshape(stored.shape[0], -1))
    return transposed(leaf) if tensor.transposed else leaf


def _vector(file: Bytes, stored: Stored) -> npt.NDArray[np.float32]:
    return _floats(file, stored).astype(np.float32)


def _floats(file: Bytes, stored: Stored) -> npt.NDArray[Any]:
    return file[stored.begin : stored.begin + stored.nbytes].view(FLOATS[stored.format])
