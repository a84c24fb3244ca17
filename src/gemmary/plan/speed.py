"""Tokens a second from the machine's ceilings and the least that a token has to move and to compute.

A time is what a ceiling bounds, over the share of the ceiling that the native engine reaches, and the rest, which does
not go with it. The shares are fitted on the rows of `benchmarks/every_size.py` (docs/sizes.md): each is the median over
the rows that it bears on of what would make a row's time exact. What a layer costs tells the starter's 78 % of the
bandwidth apart from the 2B's 91 %, and attention's share is that of the profiles (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.plan.ceilings import MachineSpeed
from gemmary.quantize.blocks import BLOCK_SIZES

READ_SHARE = 0.81
"""Of the bandwidth, when a token is decoded."""
PRODUCT_SHARES = {"codes": 0.7, "bytes": 0.48, "floats": 0.91}
"""Of the peak of integer products (codes of 4 to 6 bits, Q8_0's bytes) or of float ones, in a prompt."""
ATTENTION_SHARE = 0.5
"""Of the peak of float products."""
LAYER_SECONDS = 150e-6
"""Of a step: norms, rope, and waiting for one another between products."""


class Seconds(NamedTuple):
    """What a step takes: `bound` goes with a ceiling, `rest` does not."""

    bound: float
    rest: float


def decode_speed(config: Config, formats: Mapping[str, str], context: int, kv_dtype: str, speed: MachineSpeed) -> float:
    """Tokens a second of one sequence, the context half full."""
    bound, rest = decode_seconds(config, formats, max(1, context // 2), kv_dtype, speed)
    return 1 / (bound / READ_SHARE + rest)


def decode_seconds(
    config: Config, formats: Mapping[str, str], before: int, kv_dtype: str, speed: MachineSpeed
) -> Seconds:
    """Of a token after so many: every weight is read once, and every key in sight. The bound is at the ceiling."""
    from gemmary.engines.native_memory import cache_bytes

    read = _read_bytes(config, formats) + cache_bytes(config, before, kv_dtype)
    arithmetic = sum(_product_seconds(config, formats, speed, with_head=True).values())
    return Seconds(max(read / speed.read, arithmetic), config.num_layers * LAYER_SECONDS)


def prefill_speed(config: Config, formats: Mapping[str, str], tokens: int, speed: MachineSpeed) -> float:
    """Tokens a second of a prompt of so many, read in one step. A short one takes as long as its weights are read."""
    products, rest = prefill_seconds(config, formats, tokens, speed)
    read = _read_bytes(config, formats, with_head=False) / speed.read
    return tokens / (max(products, read / READ_SHARE) + rest)


def prefill_seconds(config: Config, formats: Mapping[str, str], tokens: int, speed: MachineSpeed) -> Seconds:
    """Of a prompt: the layers' products are what is bound, here over their shares; attention, the layers' costs and the
    one row that goes through the head are the rest."""
    per_token = _product_seconds(config, formats, speed, with_head=False)
    products = tokens * sum(seconds / PRODUCT_SHARES[kind] for kind, seconds in per_token.items())
    seen = sum(min(tokens / 2, config.window(kind) or tokens) for kind in config.layer_types)
    attention = tokens * 4 * config.query_size * seen / speed.float32 / ATTENTION_SHARE
    head = 0 if config.bidirectional else _read_bytes(config, formats) - _read_bytes(config, formats, with_head=False)
    return Seconds(products, attention + head / speed.read / READ_SHARE + config.num_layers * LAYER_SECONDS)


def _read_bytes(config: Config, formats: Mapping[str, str], *, with_head: bool = True) -> int:
    """Of the packed weights that a step reads."""
    from gemmary.engines.native_memory import packed_bytes

    read = [t for t in tensors(config) if not _is_tower(t.name) and (with_head or t.name != "embed")]
    return sum(packed_bytes(tensor, formats[tensor.name]) for tensor in read)


def _product_seconds(
    config: Config, formats: Mapping[str, str], speed: MachineSpeed, *, with_head: bool
) -> dict[str, float]:
    """What a token's products take at the ceilings, by the kind of weights (`PRODUCT_SHARES`)."""
    found = dict.fromkeys(PRODUCT_SHARES, 0.0)
    for tensor in tensors(config):
        if len(tensor.shape) == 2 and not _is_tower(tensor.name) and (with_head or tensor.name != "embed"):
            kind = kind_of(formats[tensor.name])
            operations = 2 * tensor.shape[0] * tensor.shape[1]
            found[kind] += operations / (speed.float32 if kind == "floats" else speed.int8)
    return found


def kind_of(format: str) -> str:
    """Of a matrix, that of its products."""
    if format not in BLOCK_SIZES:
        return "floats"
    return "bytes" if format == "Q8_0" else "codes"


def _is_tower(name: str) -> bool:
    return name.startswith("vision.")
