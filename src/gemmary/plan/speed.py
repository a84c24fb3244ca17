"""Tokens a second from the machine's ceilings and the least that a token has to move and to compute.

The three shares below are how near the native engine comes to the ceilings, as measured (docs/performance.md: the 2B in
4 bits reads 91 % of the probe when it decodes, the starter 78 %, and what tells them apart is a cost for each layer).
"""

from __future__ import annotations

from collections.abc import Mapping

from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.plan.ceilings import MachineSpeed
from gemmary.quantize.blocks import BLOCK_SIZES

READ_SHARE = 0.92
PRODUCT_SHARE = 0.57
"""Of the peak of integer or float products, in a prompt."""
ATTENTION_SHARE = 0.5
LAYER_SECONDS = 150e-6
"""Of a decoded token: norms, rope, and waiting for one another between products."""


def decode_speed(config: Config, formats: Mapping[str, str], context: int, kv_dtype: str, speed: MachineSpeed) -> float:
    """Tokens a second of one sequence, the context half full: every weight is read once, and every key in sight."""
    from gemmary.engines.native_memory import cache_bytes, packed_bytes

    read = sum(packed_bytes(tensor, formats[tensor.name]) for tensor in tensors(config) if not _is_tower(tensor.name))
    read += cache_bytes(config, max(1, context // 2), kv_dtype)
    int8, floats = _operations(config, formats, with_head=True)
    arithmetic = int8 / speed.int8 + floats / speed.float32
    seconds = max(read / speed.read, arithmetic) / READ_SHARE + config.num_layers * LAYER_SECONDS
    return 1 / seconds


def prefill_speed(config: Config, formats: Mapping[str, str], tokens: int, speed: MachineSpeed) -> float:
    """Tokens a second of a prompt of so many, read in one step; only the last one goes through the head."""
    from gemmary.engines.native_memory import packed_bytes

    int8, floats = _operations(config, formats, with_head=False)
    seen = sum(min(tokens / 2, config.window(kind) or tokens) for kind in config.layer_types)
    attention = 4 * config.query_size * seen
    each = (int8 / speed.int8 + floats / speed.float32) / PRODUCT_SHARE + attention / speed.float32 / ATTENTION_SHARE
    read = sum(packed_bytes(tensor, formats[tensor.name]) for tensor in tensors(config) if not _is_tower(tensor.name))
    seconds = max(tokens * each, read / speed.read / READ_SHARE) + config.num_layers * LAYER_SECONDS
    return tokens / seconds


def _operations(config: Config, formats: Mapping[str, str], *, with_head: bool) -> tuple[int, int]:
    """Integer and float operations of a token's products."""
    int8 = floats = 0
    for tensor in tensors(config):
        if len(tensor.shape) != 2 or _is_tower(tensor.name) or (tensor.name == "embed" and not with_head):
            continue
        operations = 2 * tensor.shape[0] * tensor.shape[1]
        if formats[tensor.name] in BLOCK_SIZES:
            int8 += operations
        else:
            floats += operations
    return int8, floats


def _is_tower(name: str) -> bool:
    return name.startswith("vision.")
