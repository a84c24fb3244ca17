"""A model that knows nothing yet: the shape of a Gemma 2 of any size, with weights to begin training from.

Every matrix begins uniform with variance 1 / its number of inputs, which keeps the size of what passes through it
(LeCun 1998). So does the tied table: scaled by sqrt(D), its rows bring variance 1 into the residual stream. (A token is
its own likeliest successor at first, as input and output are one table; that is unlearnt within a few dozen steps, and
rows begun at a third of the size learnt more slowly.) Norm weights, zero-centred, begin at 0, but those after the
branches of a layer at (2 L)^-0.5 - 1. Such a norm makes its branch as large as it likes whatever the matrices before
it, so what GPT-2 does to these has to be done here: the 2 L branches together then bring as much variance into the
residual stream as the table does, however deep the model is. Begun at 0 they would bring 2 L times as much.

The tower begins about as big_vision's ViT does (models/vit.py, SigLIP's own code): attention and MLP uniform with
variance 2 / (inputs + outputs) (Glorot 2010), norms leaving their input as it is, biases 0 (a spread of 1e-6 in the MLP
there). Three things differ, because without them all places of a picture look alike to a small tower (with them, the
variance over places of what comes out is 0.50 and not 0.07 of the whole), and where something is was not learnt at all:
what ends a branch has 1 / (2 L) of that variance, as in GPT-2; a filter of the patches is a sum of cosine waves of up
to a quarter of the patch's side (shapes are learnt from fewer pictures so), without a mean in any channel, so that an
even ground is nothing, and of variance 4 / inputs; positions are waves of row and column, as in the sincos2d of "Better
plain ViT baselines" (Beyer 2022). The projection has variance 1 / inputs, so that a picture's tokens come as
large as a text's; begun at 0, as big_vision's head, they would stand where the decoder's first norm divides by next to
nothing.

Rows of `<locNNNN>` are waves of the number, as large as other rows: what is learnt of one holds about for those beside.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.quantize.leaves import Affine, Dense, Leaf
from gemmary.tokenizer import Tokenizer
from gemmary.tune.vocabulary import PICTURE_TOKENS
from gemmary.vision.objects import LOCATIONS

Float32 = npt.NDArray[np.float32]
_LOCATION_STEP = 8.0
"""Numbers of a location that the shortest wave takes for a radian: a pixel of 128."""
_PLACE_STEP = 0.5
"""Places of the tower that its shortest wave takes for a radian."""
_POST_NORMS = (".post_attn_norm", ".post_ffn_norm")


def initial_checkpoint(config: Config, tokenizer: Tokenizer, name: str, seed: int) -> Checkpoint:
    """The untrained model, in float32. Each tensor has a generator of its own, so no order changes a bit."""
    table = tensors(config)
    return Checkpoint(
        path=Path(name),
        format="random",
        config=config,
        name=name,
        leaves={tensor.name: partial(_leaf, tensor, config, seed) for tensor in table},
        load_tokenizer=lambda: tokenizer,
        load_chat_template=lambda: None,
        made_bytes=4 * sum(int(np.prod(tensor.shape)) for tensor in table),
    )


def _leaf(tensor: Tensor, config: Config, seed: int) -> Leaf:
    weight = _weight(tensor, config, np.random.SFC64([seed, zlib.crc32(tensor.name.encode())]))
    return Affine(Dense(weight), np.zeros(tensor.shape[0], np.float32)) if tensor.bias else Dense(weight)


def _weight(tensor: Tensor, config: Config, source: np.random.SFC64) -> Float32:
    shape = tensor.shape
    if tensor.is_norm:
        branch = tensor.name.endswith(_POST_NORMS)
        start = (2 * config.num_layers) ** -0.5 - 1 if branch else float(tensor.bias)
        return np.full(shape, start, np.float32)
    if tensor.name == "vision.position":
        assert config.vision is not None
        row, column = np.divmod(np.arange(shape[0]), config.vision.side)
        half = shape[1] // 2
        across = _waves(column, half, _PLACE_STEP, config.vision.side / 2)
        return np.concatenate([across, _waves(row, shape[1] - half, _PLACE_STEP, config.vision.side / 2)], axis=1)
    fan = sum(shape) / 2 if tensor.name.startswith("vision.layers.") else shape[1]
    if tensor.name.startswith("vision.layers.") and tensor.name.endswith((".o", ".down")):
        assert config.vision is not None
        fan *= 2 * config.vision.num_layers
    weight: Float32 = (_uniform(source, shape[0] * shape[1]) * np.float32((3 / fan) ** 0.5)).reshape(shape)
    if tensor.name == "vision.patch":  # blind to a patch's mean, or all of a picture's places look alike
        assert config.vision is not None
        waves = _cosines(config.vision.patch_size)
        shares: Float32 = _uniform(source, shape[0] * 3 * len(waves)) * np.float32((3 / len(waves)) ** 0.5)
        filters: Float32 = (shares.reshape(-1, len(waves)) @ waves).reshape(shape)
        filters *= np.float32((4 / shape[1]) ** 0.5)
        return filters
    if tensor.name == "embed" and config.vision is not None:
        locations = _waves(np.arange(LOCATIONS), shape[1], _LOCATION_STEP, 100) * np.float32((2 / shape[1]) ** 0.5)
        first = shape[0] - len(PICTURE_TOKENS)
        weight[first : first + LOCATIONS] = locations
    return weight


def _waves(numbers: npt.NDArray[np.int64], columns: int, step: float, longest: float) -> Float32:
    """[numbers, columns] between -1 and 1: sines, then cosines, of lengths from 2 pi steps to `longest` times that."""
    ways = (columns + 1) // 2
    angles = numbers[:, None] / (step * np.float64(longest) ** (np.arange(ways) / max(1, ways - 1)))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :columns].astype(np.float32)


def _cosines(side: int) -> Float32:
    """[waves, side * side] of a square's cosine transform, each of mean 0 and variance 1: those of few half waves down
    and across."""
    along = np.cos(np.pi * np.outer(np.arange(side), np.arange(side) + 0.5) / side)
    along *= np.where(np.arange(side) == 0, 1.0, 2**0.5)[:, None]
    few = [(down, across) for down in range(side) for across in range(side) if 0 < down + across <= max(1, side // 2)]
    return np.stack([np.outer(along[down], along[across]).ravel() for down, across in few]).astype(np.float32)


def _uniform(source: np.random.SFC64, count: int) -> Float32:
    """float32 [count] between -1 and 1. From raw words, because numpy keeps their stream the same in every version."""
    words = np.asarray(source.random_raw(count), dtype=np.uint64) >> np.uint64(40)  # 24 bits: all that a float32 holds
    return (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) - np.float32(1.0)
