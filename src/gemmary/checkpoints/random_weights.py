"""Models of any released shape with random weights, `random:NAME`: for measuring speed where no weights can be had.

    random:gemma-2-2b          bfloat16, as the real ones are stored
    random:gemma-2-2b:int8     Q8_0
    random:gemma-2-2b:int4     Q4_0, the embedding table (which is the head too) in Q6_K, as llama.cpp lays out Q4_0

Tensors are made when they are asked for, each from a generator of its own (the seed and the tensor's name), so no order
and no thread changes a bit. Blocks are made of random codes directly, never by quantizing: a model costs little more
than writing its bytes. What these models say means nothing; that they compute in Gemma's ranges is tested.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary import zoo
from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.convert import stored_bytes
from gemmary.checkpoints.hub import RANDOM
from gemmary.checkpoints.random_tokenizer import stand_in
from gemmary.checkpoints.tensors import Tensor, bias_name, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import Affine, Blocks, Dense, Leaf, padded_columns

QUANTS: dict[str | None, str] = {None: "BF16", "int8": "Q8_0", "int4": "Q4_0"}
"""What may stand after the name -> the format of the matrices."""

_SPREAD = {"Q4_0": 4.64, "Q8_0": 73.6, "Q6_K": 18.5 * 97.5}
"""Standard deviation of a uniformly random code, for Q6_K times the root mean square of its inner scales."""
_CHUNK = 1 << 18
"""Words handled at once, so that temporaries stay in the cache."""


def open_random(name: str | Path, *, seed: int = 0) -> Checkpoint:
    """The checkpoint that `random:NAME` or `random:NAME:QUANT` means; nothing of it lies on a disk.

    Raises GemmaryError for a NAME that is not in the zoo, or a QUANT that is not int8 or int4.
    """
    short, colon, quant = str(name).removeprefix(RANDOM).partition(":")
    if colon and quant not in QUANTS:
        raise GemmaryError(f"random weights are made as {RANDOM}{short}, or with :int8 or :int4 after it, not :{quant}")
    if seed < 0:
        raise GemmaryError(f"the seed of random weights must not be negative: {seed}")
    row = zoo.get(short)
    return random_checkpoint(row.config, f"{RANDOM}{row.name}{colon}{quant}", quant or None, seed)


def random_checkpoint(config: Config, name: str, quant: str | None, seed: int) -> Checkpoint:
    """The same for any shape. Raises GemmaryError where its rows do not divide into blocks."""
    formats = {tensor: _format(tensor, quant) for tensor in tensors(config)}
    return Checkpoint(
        path=Path(name),
        format="random",
        config=config,
        name=name,
        leaves={tensor.name: partial(_leaf, tensor, format, seed) for tensor, format in formats.items()},
        load_tokenizer=partial(stand_in, config),
        load_chat_template=lambda: None,
        notices=["the weights are random: what is written means nothing"],
        made_bytes=sum(_made_bytes(tensor, format) for tensor, format in formats.items()),
        made_formats={tensor.name: format for tensor, format in formats.items()},
    )


def _format(tensor: Tensor, quant: str | None) -> str:
    if tensor.is_norm:
        return "F32"
    if quant == "int4" and tensor.name == "embed":
        return "Q6_K" if tensor.shape[-1] % 256 == 0 else "Q8_0"
    block_type = QUANTS[quant]
    return block_type if quant is None else tensor.blocks(block_type) or "BF16"


def _leaf(tensor: Tensor, format: str, seed: int) -> Leaf:
    """One tensor.

    Matrices have the standard deviation columns ** -0.5, which keeps what passes through them at its size; the
    embedding table twice that, so that logits spread over several units. Norm weights and biases lie within 0.2 of
    zero, the tower's norm weights within 0.2 of one.
    """
    source = np.random.SFC64([seed, zlib.crc32(tensor.name.encode())])
    if tensor.bias:
        bias = np.random.SFC64([seed, zlib.crc32(bias_name(tensor.name).encode())])
        return Affine(_weight(tensor, format, source), _uniform(bias, tensor.shape[0]) * np.float32(0.2))
    return _weight(tensor, format, source)


def _weight(tensor: Tensor, format: str, source: np.random.SFC64) -> Leaf:
    if tensor.is_norm:
        return Dense(_uniform(source, tensor.shape[0]) * np.float32(0.2) + np.float32(tensor.bias))
    rows, columns = tensor.shape
    deviation = (2.0 if tensor.name == "embed" else 1.0) * columns**-0.5
    if format == "BF16":
        return Dense(_bfloat16(source, rows * columns, deviation).reshape(rows, columns))
    stored = _columns(tensor, format)
    width = row_bytes(format, stored)
    data = _bits(source, rows * width).reshape(-1, BLOCK_SIZES[format][1])
    _scale(source, format, data, deviation)
    if stored > columns:
        data.reshape(rows, width)[:, columns - stored :] = 0  # Q8_0, a byte a code
    return Blocks(format, (rows, columns), data.reshape(rows, width))


def _made_bytes(tensor: Tensor, format: str) -> int:
    shape = (*tensor.shape[:-1], _columns(tensor, format))
    return stored_bytes(format, shape) + 4 * tensor.shape[0] * tensor.bias


def _columns(tensor: Tensor, format: str) -> int:
    """With those that fill up the last blocks of a row, which the tower's matrices may have."""
    columns = tensor.shape[-1]
    return padded_columns(format, columns) if tensor.bias else columns


def _bits(source: np.random.SFC64, nbytes: int) -> npt.NDArray[np.uint8]:
    """Random bytes. Raw words, because numpy keeps their stream the same in every version."""
    out = np.empty(-(-nbytes // 8), dtype="<u8")
    for start in range(0, len(out), _CHUNK):
        out[start : start + _CHUNK] = source.random_raw(min(_CHUNK, len(out) - start))
    return out.view(np.uint8)[:nbytes]


def _uniform(source: np.random.SFC64, count: int) -> npt.NDArray[np.float32]:
    """float32 [count] between -1 and 1, zero left out."""
    codes = _bits(source, 2 * count).view("<i2").astype(np.float32)
    return (codes + np.float32(0.5)) / np.float32(1 << 15)


def _bfloat16(source: np.random.SFC64, count: int, deviation: float) -> npt.NDArray[Any]:
    """bfloat16 [count], evenly distributed: each of the 65,536 random codes names a value of a table."""
    levels = (np.arange(1 << 16, dtype=np.float32) + np.float32(0.5)) / np.float32(1 << 15) - np.float32(1.0)
    table = (levels * np.float32(deviation * 3**0.5)).astype(ml_dtypes.bfloat16).view(np.uint16)
    codes = _bits(source, 2 * count).view("<u2")
    for start in range(0, count, _CHUNK):
        codes[start : start + _CHUNK] = table[codes[start : start + _CHUNK]]
    return codes.view(ml_dtypes.bfloat16)


def _scale(source: np.random.SFC64, format: str, data: npt.NDArray[np.uint8], deviation: float) -> None:
    """Gives random blocks the scales that bring their weights to a standard deviation.

    Half of the scales are negative: 4-bit codes reach from -8 to 7, and what is left of their mean must not add up
    over the blocks of a row. Scales differ by up to a quarter from their mean, so that mixing up two of them shows.
    """
    random = _uniform(source, len(data))
    d = np.copysign(np.float32(1.0) + np.float32(0.25) * random, _uniform(source, len(data)))
    half = (d * np.float32(deviation / _SPREAD[format])).astype("<f2").view(np.uint8).reshape(-1, 2)
    if format == "Q6_K":
        data[:, 208:] = half
        inner = data[:, 192:208].view(np.int8)
        np.bitwise_or(inner, 64, out=inner, where=inner >= 0)  # 64 to 127 and -128 to -65, as real ones are large
        np.bitwise_and(inner, -65, out=inner, where=inner < 0)
        return
    data[:, :2] = half
    if format == "Q8_0":
        codes = data[:, 2:].view(np.int8)
        np.maximum(codes, -127, out=codes)  # ggml never makes -128
