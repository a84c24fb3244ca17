"""One run on several processes, as `torchrun` starts them: each computes its share of every step, and each keeps its
share of the weights, their gradients and the optimizer's state (FSDP2). Where layers are divided as well
(`tensor_parallel.py`), neighbouring processes compute the same share together. Nothing of this is known to the model.

Weights of a quantized base are no parameters: they lie in every process, mapped from one file where it can be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from gemmary.engines.torch_modules import Block, Model
from gemmary.errors import GemmaryError
from gemmary.tune.tensor_parallel import divide

PATIENCE = timedelta(minutes=10)
"""A process that waits longer for the others takes them for dead; `torchrun` ends them all."""


@dataclass(frozen=True)
class World:
    """The processes of a run. Every method but `leads` is called by all of them, in the same order."""

    rank: int = 0
    """Among those that compute different shares."""
    size: int = 1
    """How many shares there are."""
    mesh: DeviceMesh | None = None
    """[data, tensor]: `size` shares, each computed by so many processes together."""

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and tells."""
        return self.mesh is None or dist.get_rank() == 0

    def sum(self, *values: float) -> tuple[float, ...]:
        """Of each value, over all shares, in float64."""
        if self.mesh is None:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(total)
        return tuple((total / self.mesh["tensor"].size()).tolist())

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """A block that the others enter when the leader has left it."""
        if self.mesh is not None and not self.leads:
            dist.barrier()
        yield
        if self.mesh is not None and self.leads:
            dist.barrier()

    def shard(self, model: Model) -> None:
        """From now on each process holds its share of every parameter; a block's are put together when it computes."""
        if self.mesh is None:
            return
        if self.mesh["tensor"].size() > 1:
            divide(model, self.mesh["tensor"])
        if self.size == 1:
            return
        blocks = [module for module in model.modules() if isinstance(module, Block)]
        for module in [*blocks, model]:
            fully_shard(module, mesh=self.mesh["data"])
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Losses are divided by the step's scored tokens before, so gradients are summed; gloo can only sum.
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)


ALONE = World()


def leads() -> bool:
    """Whether this process is the one that writes and tells, before it has joined any other."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(device: torch.device, tensor_parallel: int = 1) -> Iterator[World]:
    """The world that `torchrun` started this process in; a world of one where it did not.

    Raises GemmaryError where its processes do not divide into groups of `tensor_parallel`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size % tensor_parallel:
        raise GemmaryError(
            f"--tensor-parallel {tensor_parallel} needs a multiple of so many processes, not {size}: start them with "
            f"torchrun --nproc-per-node {tensor_parallel}"
        )
    if size == 1:
        yield ALONE
        return
    if device.type not in ("cpu", "cuda"):
        raise GemmaryError(f"several processes train on CPUs or CUDA devices, not on {device.type}")
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", timeout=PATIENCE)
    try:
        shape = (size // tensor_parallel, tensor_parallel)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("data", "tensor"))
        yield World(mesh.get_local_rank("data"), shape[0], mesh)
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this process may hold a share. Called by all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the leader, one after the other; nothing elsewhere."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        complete = whole(tensor.detach())
        if world.leads:
            found[name] = complete.cpu()
    return found


def shared_as(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same in all processes, divided as `like` is; itself where that is not divided, or where it
    has another shape (Adam's count of steps)."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
