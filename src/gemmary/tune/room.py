"""What a run needs of memory, foreseen before any weight is read."""

from __future__ import annotations

from dataclasses import replace

import torch

from gemmary.checkpoints import Checkpoint
from gemmary.memory import available_bytes, require
from gemmary.plan.training import FULL_BYTES, MARGIN, activation_bytes_per_token
from gemmary.tune.settings import Settings


def weight_bytes(checkpoint: Checkpoint, settings: Settings, dtype: torch.dtype, device: torch.device) -> int:
    """Of the weights, and with `full` of their gradients and the optimizer; an adapter's are small beside them."""
    if settings.method == "full":
        return FULL_BYTES[settings.optimizer] * checkpoint.config.total_parameters
    wide = checkpoint.config.total_parameters * dtype.itemsize
    as_stored = settings.method == "qlora" or (dtype == torch.float32 and device.type == "cpu")  # tune/model.py: build
    return min(checkpoint.stored_bytes(), wide) if as_stored else wide


def settle(settings: Settings, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> Settings:
    """The settings with `gradient_checkpointing` on or off: auto is on where a step would not fit otherwise.

    Either computes the same bits. Raises GemmaryError where not even the weights fit into the memory of the machine.
    """
    weights = weight_bytes(checkpoint, settings, dtype, device)
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
    divided, dropped = settings.tensor_parallel > 1, settings.lora_dropout > 0
    keeps_inputs = settings.method == "full" or settings.dora or dropped or divided
    per_token = activation_bytes_per_token(
        checkpoint.config, dtype.itemsize, full=keeps_inputs, tower=settings.trains_tower
    )
    kept = per_token * settings.batch_size * settings.sequence_length
    is_tight = available is not None and weights + MARGIN * kept > available
    return replace(settings, gradient_checkpointing="on" if is_tight else "off")
