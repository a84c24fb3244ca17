"""Each layer computed by several processes together (tensor parallelism): its matrices divided among them as DTensors.

q, k, v, gate and up are divided by outputs, so every process has some of the heads and some of the MLP's middle; o and
down by inputs, and what they give is summed. Two sums a layer go round, forward and backward. The residual stream, the
norms and the vocabulary are whole in every process. The model's code is untouched: a layer is told of fewer heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor

from gemmary.config import Config
from gemmary.engines.torch_modules import Block, Model
from gemmary.engines.torch_ops import RMSNorm
from gemmary.errors import GemmaryError

BY_OUTPUTS = ("q", "k", "v", "gate", "up")
BY_INPUTS = ("o", "down")
HEAD_NORMS = ("q_norm", "k_norm")


def check(config: Config, parts: int, method: str, dropout: float, dora: bool) -> None:
    """Raises GemmaryError for a model that does not divide into so many parts, or a way of tuning that cannot."""
    for what, count in (
        ("key heads", config.num_kv_heads),
        ("query heads", config.num_heads),
        ("columns of the MLP", config.intermediate_size),
    ):
        if count % parts:
            raise GemmaryError(f"--tensor-parallel {parts} does not divide the model's {count:,} {what}")
    if method == "qlora":
        raise GemmaryError("--tensor-parallel divides dense weights: choose --method lora or full, not qlora")
    if dora or dropout:
        raise GemmaryError("--tensor-parallel knows neither --dora nor --lora-dropout")


def divide(model: Model, mesh: DeviceMesh) -> None:
    """From now on each process of the mesh holds its part of the decoder's layers. Called by all of them."""
    parts = mesh.size()
    for name, path in list(model.paths.items()):
        short = name.rpartition(".")[2]
        if not name.startswith("layers."):
            continue
        module = model.get_submodule(path)
        if short in BY_OUTPUTS:
            _distribute(module, mesh, Shard(0), "lora_A", Replicate(), Shard(-1))
        elif short in BY_INPUTS:
            _distribute(module, mesh, Shard(1), "lora_B", Shard(-1), Replicate())
        elif short in HEAD_NORMS and isinstance(module, RMSNorm):
            owner, _, last = path.rpartition(".")
            setattr(model.get_submodule(owner), last, HeadNorm(module, mesh.get_group()))
    for block in model.modules():
        if isinstance(block, Block) and isinstance(block.config, Config):
            config = block.config
            heads, kv_heads = config.num_heads // parts, config.num_kv_heads // parts
            block.config = replace(config, num_heads=heads, num_kv_heads=kv_heads)


def _distribute(
    module: nn.Module, mesh: DeviceMesh, divided: Placement, whole: str, given: Placement, gives: Placement
) -> None:
    """A linear layer, or one with an adapter. divided: how its matrices lie; `whole` names the one of an adapter that
    every process has whole. given, gives: how its inputs come and its outputs leave."""

    def place(name: str, part: nn.Module, mesh: DeviceMesh) -> None:
        placement = Replicate() if name.rpartition(".")[2] == whole else divided
        for key, weight in list(part.named_parameters(recurse=False)):
            spread = distribute_tensor(weight.detach(), mesh, [placement])
            part.register_parameter(key, nn.Parameter(spread, requires_grad=weight.requires_grad))

    def come(module: nn.Module, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        return (DTensor.from_local(inputs[0], mesh, [given], run_check=False), *inputs[1:])

    def leave(module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
        return output.redistribute(placements=[gives]).to_local()

    hooks: tuple[Callable[..., Any], ...] = (place, come, leave)
    distribute_module(module, mesh, *hooks)


class HeadNorm(RMSNorm):
    """A norm over each head, of which a process has some: the gradients of its weight are summed over all processes."""

    def __init__(self, norm: RMSNorm, group: dist.ProcessGroup) -> None:
        super().__init__(0)
        self.weight = norm.weight
        self._summed = partial(_Summed.apply, group)

    def forward(self, x: Tensor, eps: float) -> Tensor:
        from gemmary.engines.torch_functions import rms_norm

        return rms_norm(x, self._summed(self.weight), eps)


class _Summed(torch.autograd.Function):
    """A weight as it is; its gradient is the sum of those of all processes."""

    @staticmethod
    def forward(ctx: Any, group: dist.ProcessGroup, weight: Tensor) -> Tensor:
        ctx.group = group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return None, total
