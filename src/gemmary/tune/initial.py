"""A model that knows nothing yet: the shape of a Gemma 2 of any size, with weights to begin training from.

Every matrix begins uniform with variance 1 / its number of inputs, which keeps the size of what passes through it
(LeCun 1998). So does the tied table: scaled by sqrt(D), its rows bring variance 1 into the residual stream. (A token is
its own likeliest successor at first, as input and output are one table; that is unlearnt within a few dozen steps, and
rows begun at a third of the size learnt more slowly.) Norm weights, zero-centred, begin at 0, but those after the
branches of a layer at (2 L)^-0.5 - 1. Such a norm makes its branch as large as it likes whatever the matrices before
it, so what GPT-2 does to these has to be done here: the 2 L branches together then bring as much variance into the
residual stream as the table does, however deep the model is. Begun at 0 they would bring 2 L times as much.
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
from gemmary.quantize.leaves import Dense
from gemmary.tokenizer import Tokenizer

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


def _leaf(tensor: Tensor, config: Config, seed: int) -> Dense:
    if tensor.is_norm:
        branch = tensor.name.endswith(_POST_NORMS)
        weight = (2 * config.num_layers) ** -0.5 - 1 if branch else 0.0
        return Dense(np.full(tensor.shape, weight, np.float32))
    bound = np.float32((3 / tensor.shape[1]) ** 0.5)
    source = np.random.SFC64([seed, zlib.crc32(tensor.name.encode())])
    return Dense((_uniform(source, tensor.shape[0] * tensor.shape[1]) * bound).reshape(tensor.shape))


def _uniform(source: np.random.SFC64, count: int) -> npt.NDArray[np.float32]:
    """float32 [count] between -1 and 1. From raw words, because numpy keeps their stream the same in every version."""
    words = np.asarray(source.random_raw(count), dtype=np.uint64) >> np.uint64(40)  # 24 bits: all that a float32 holds
    return (words.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23) - np.float32(1.0)
