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


def weight_bytes(checkpoint: Checkpoint, settings: Settings, dtype: torch.dtype, device: torch.device) -> int:
    """Of the weights, and with `full` of their gradients and the optimizer; an adapter's are small beside them."""
    if settings.method == "full":
        return _FULL[settings.optimizer] * checkpoint.config.total_parameters
    wide = checkpoint.config.total_parameters * dtype.itemsize
    as_stored = settings.method == "qlora" or (dtype == torch.float32 and device.type == "cpu")  # tune/model.py: build
    return min(checkpoint.stored_bytes(), wide) if as_stored else wide


def activation_bytes(config: Config, dtype: torch.dtype, tower: bool = False) -> int:
    """What the backward pass needs of each token, if nothing is computed twice: inputs of products, norms, GeGLU and
    attention in all layers, those of the tower among them where it is trained."""
    stream = (6 if config.post_norms else 4) * config.hidden_size
    heads = (4 if config.qk_norm else 3) * (config.query_size + config.kv_size)
    kept = config.num_layers * (stream + heads + 3 * config.intermediate_size)
    if tower and config.vision is not None:  # where every token is a patch, as nearly all are
        vision = config.vision
        kept += vision.num_layers * (10 * vision.hidden_size + 2 * vision.intermediate_size)
    return kept * dtype.itemsize


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
    per_token = activation_bytes(checkpoint.config, dtype, settings.trains_tower)
    kept = per_token * settings.batch_size * settings.sequence_length
    is_tight = available is not None and weights + _MARGIN * kept > available
    return replace(settings, gradient_checkpointing="on" if is_tight else "off")
