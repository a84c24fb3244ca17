"""What a run needs of memory, foreseen before any weight is read."""

from __future__ import annotations

from dataclasses import replace

import torch

from gemmary.checkpoints import Checkpoint
from gemmary.config import Config
from gemmary.memory import available_bytes, require
from gemmary.tune.settings import Settings

_MARGIN = 1.25
"""For what comes and goes within a layer, and the head."""
_FULL = {"adamw": 16, "adafactor": 8}
"""Bytes for each weight that is trained: itself, its gradient, and what the optimizer keeps of it."""


def weight_bytes(checkpoint: Checkpoint, settings: Settings, dtype: torch.dtype) -> int:
    """Of the weights, and with `full` of their gradients and the optimizer; an adapter's are small beside them."""
    if settings.method == "full":
        return _FULL[settings.optimizer] * checkpoint.config.parameters
    if settings.method == "qlora":
        return min(checkpoint.stored_bytes(), checkpoint.config.parameters * dtype.itemsize)
    return checkpoint.config.parameters * dtype.itemsize


def activation_bytes(config: Config, tokens: int) -> int:
    """Of what a forward pass over so many tokens keeps for the backward one, if nothing is computed twice.

    In each layer that is 4 rows of the MLP's width (gate, up, GELU and product), 6 of the model's (norms' inputs and
    outputs) and 3 of the queries' and keys'; in bfloat16 some of them are half as large. Counted with PyTorch's hooks.
    """
    row = 4 * config.intermediate_size + 6 * config.hidden_size + 3 * (config.query_size + config.kv_size)
    return 4 * tokens * config.num_layers * row


def settle(settings: Settings, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Settings:
    """The settings with `gradient_checkpointing` on or off: auto is on where a step would not fit otherwise.

    Either computes the same bits. Raises GemmaryError where not even the weights fit into the memory of the machine.
    """
    weights = weight_bytes(checkpoint, settings, dtype)
    if device.type == "cuda":
        available: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        advice = "--optimizer adafactor, --method lora" if settings.method == "full" else "--method qlora"
        require(
            weights, f"tuning {checkpoint.name} with --method {settings.method}", f"choose {advice} or a smaller model"
        )
        available = available_bytes()
    if settings.gradient_checkpointing != "auto":
        return settings
    kept = activation_bytes(checkpoint.config, settings.batch_size * settings.sequence_length)
    is_tight = available is not None and weights + _MARGIN * kept > available
    return replace(settings, gradient_checkpointing="on" if is_tight else "off")
