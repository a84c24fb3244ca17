"""Which block type each matrix of a model gets where one type, or llama.cpp's usual mix, is asked for of all.

Blocks of 256 weights do not fit every row of the series (Gemma 3 270M's have 640): such matrices get the type that
llama.cpp puts there, of blocks of 32, and a user is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.quantize.blocks import BLOCK_SIZES, MADE

Q4_K_M = "Q4_K_M"
"""Q6_K for the table, and in half of the layers for `v` and `down`; Q4_K for all else (llama.cpp, llama-quant.cpp)."""
ASKED = (*MADE, Q4_K_M)
"""What may be asked for of a whole model."""
FALLBACKS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}
"""What llama.cpp takes where rows do not divide into blocks of 256 (llama-quant.cpp)."""


def block_types(config: Config, asked: str, embed: str | None = None) -> dict[str, str]:
    """The block type of every matrix that gets one. asked: one of `ASKED`. embed: a block type for the embedding table
    instead. Those of a tower are `Tensor.blocks`. Whether rows divide into the blocks is for the writer to see."""
    return {tensor.name: found for tensor, _, found in _chosen(config, asked, embed)}


def fallbacks(config: Config, asked: str, embed: str | None = None) -> list[str]:
    """What to tell a user of the matrices that get another type than was asked for: a line for each pair of types."""
    kinds: dict[tuple[str, str], dict[str, int]] = {}
    for tensor, wanted, found in _chosen(config, asked, embed):
        if found != wanted:
            kinds.setdefault((wanted, found), {})[kind_of(tensor.name)] = tensor.shape[1]
    return [
        f"rows of {' and '.join(f'{n:,}' for n in sorted(set(found.values())))} weights do not divide into {wanted}'s "
        f"blocks of {BLOCK_SIZES[wanted][0]}: {', '.join(sorted(found))} are {instead} where {wanted} was asked for, "
        "as llama.cpp has them"
        for (wanted, instead), found in kinds.items()
    ]


def kind_of(name: str) -> str:
    """The name of a matrix without the number of its layer."""
    return re.sub(r"\d+\.", "", name)


def _chosen(config: Config, asked: str, embed: str | None) -> Iterator[tuple[Tensor, str, str]]:
    """Each matrix that gets a block type, the type that it should have, and the one that it gets."""
    for tensor in tensors(config):
        block_type = embed if embed and tensor.name == "embed" else asked
        wanted = tensor.blocks(_mixed(tensor.name, config.num_layers) if block_type == Q4_K_M else block_type)
        if wanted is not None:
            divides = tensor.bias or tensor.shape[1] % BLOCK_SIZES[wanted][0] == 0  # a tower's rows are filled up
            yield tensor, wanted, wanted if divides else FALLBACKS.get(wanted, wanted)


def _mixed(name: str, layers: int) -> str:
    """The block type in `Q4_K_M`: finer in the first and the last eighth of the layers, and in every third between."""
    if name == "embed":
        return "Q6_K"
    if not name.endswith((".v", ".down")):
        return "Q4_K"
    i, eighth = int(name.split(".")[1]), layers // 8
    return "Q6_K" if i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2 else "Q4_K"
