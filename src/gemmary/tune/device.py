"""Where a run computes, in which numbers, and how fast that could go at most."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from gemmary.config import Config
from gemmary.engines.torch import DTYPES, find_device
from gemmary.errors import GemmaryError

_SIDE = 1024
"""Of the square matrices whose product shows the ceiling."""


def choose_device(name: str) -> torch.device:
    """`auto`: a CUDA device if there is one, else the CPU. Raises GemmaryError for one that PyTorch cannot use."""
    return find_device(None if name == "auto" else name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """What is computed in; weights that are trained are float32 whatever it is.

    `auto`: bfloat16 where the device multiplies it in hardware, else float32, which is several times as fast there.
    """
    if name == "auto":
        return torch.bfloat16 if _multiplies_bfloat16(device) else torch.float32
    if name not in DTYPES:
        raise GemmaryError(f"training computes in {' or '.join(DTYPES)}, not {name}")
    return DTYPES[name]


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    found: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def matmul_ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second (two for each multiply-add) of PyTorch's own product of large matrices, the best of a few."""
    a = torch.ones(_SIDE, _SIDE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - begin)
    return 2 * _SIDE**3 / best


def training_flops(
    config: Config, tokens: int, scored: int, *, full: bool, pictures: int = 0, tower: bool = False
) -> float:
    """Operations that a step needs: forward, the gradients of activations and (full) of weights, each as much.

    The head runs on the `scored` tokens only, the tower on the `pictures`, forward alone unless it is trained or has
    adapters (tower).
    Attention's share, adapters and what is computed twice to save memory are left out.
    """
    head = 2 * config.embedding_parameters
    seen = 0.0
    if config.vision is not None:
        vision = config.vision
        weights = vision.num_layers * (4 * vision.hidden_size + 2 * vision.intermediate_size) + config.hidden_size
        per_patch = 2 * vision.hidden_size * (weights + vision.patch_values)
        seen = (1.0 if not tower else 3.0 if full else 2.0) * per_patch * vision.num_patches * pictures
    return seen + (3.0 if full else 2.0) * ((config.flops_per_token() - head) * tokens + head * scored)


@contextmanager
def memory_told() -> Iterator[None]:
    """PyTorch's errors of memory as one line."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        advice = "lower --batch-size or --sequence-length, or say --gradient-checkpointing on or --method qlora"
        raise GemmaryError(f"out of memory: {advice}; --resume goes on from the last checkpoint") from error
