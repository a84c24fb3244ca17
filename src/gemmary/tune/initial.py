"""A model that knows nothing yet: the shape of a Gemma 2 of any size, with weights to begin training from.

Every matrix begins uniform with variance 1 / its number of inputs, which keeps the size of what passes through it
(LeCun 1998). So does the tied table: scaled by sqrt(D), its rows bring variance 1 into the residual stream. (A token is
its own likeliest successor at first, as input and output are one table; that is unlearnt within a few dozen steps, and
rows begun at a third of the size learnt more slowly.) Norm weights, zero-centred, begin at 0, but those after the
branches of a layer at (2 L)^-0.5 - 1. Such a norm makes its branch as large as it likes whatever the matrices before
it, so what GPT-2 does to these has to be done here: the 2 L branches together then bring as much variance into the
residual stream as the table does, however deep the model is. Begun at 0 they would bring 2 L times as much.

The tower begins as big_vision's ViT does (models/vit.py, SigLIP's own code): attention and MLP uniform with variance
2 / (inputs + outputs) (Glorot 2010), patches with variance 1 / inputs, positions with variance 1 / width (uniform;
normal there), norms leaving their input as it is, biases 0 (a spread of 1e-6 in the MLP there). Its projection has
variance 1 / inputs, so that a picture's tokens come as large as a text's; begun at 0, as big_vision's head, they would
stand where the decoder's first norm divides by next to nothing.
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

Float32 = npt.NDArray[np.float32]
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
    fan = sum(shape) / 2 if tensor.name.startswith("vision.layers.") else shape[1]
    return (_uniform(source, shape[0] * shape[1]) * np.float32((3 / fan) ** 0.5)).reshape(shape)


def _uniform(source: np.random.SFC64, count: int) -> Float32:
    """float32 [count] between -1 and 1. From raw words, because numpy keeps their stream the same in every version."""
    words = np.asarray(source.random_raw(count), dtype=np.uint64) >> np.uint64(40)  # 24 bits: all that a float32 holds
    return (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) - np.float32(1.0)
