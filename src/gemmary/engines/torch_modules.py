"""The model as `nn.Module`s whose parameters carry the Hugging Face names, so that `state_dict`, hooks, adapters put in
place of `nn.Linear`s, and wrappers around a layer (FSDP, checkpointing, compiling) work as they do on transformers.

The tree is made from the names of the tensor table; what is computed stands in `model/decoder.py`. Modules are found
by name each time they run, so that the one that has been put in another's place is the one that is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from gemmary.checkpoints.tensors import Tensor, module_name, tensors
from gemmary.config import Config, VisionConfig
from gemmary.engines.torch_adapters import AdaptedLinear
from gemmary.engines.torch_ops import Head, LayerNorm, RMSNorm, StepCache, TokenTable, TorchOps
from gemmary.model import decoder, vision
from gemmary.model.leaves import Leaves
from gemmary.quantize.leaves import Affine, Dense, Leaf
from gemmary.quantize.lora import LoRA

HEAD = "lm_head"
TABLES = ("embed", "vision.position")
"""What rows are looked up in."""


_LAYER = re.compile(r"((?:vision\.)?layers\.\d+)\.(.*)")
"""The name of a layer's weight: the layer, and the weight in it."""


class Block(nn.Module):
    """One layer. Its forward is `decoder.block`, or `vision.block`."""

    def __init__(self, config: Config | VisionConfig, index: int) -> None:
        super().__init__()
        self.config = config
        self.index = index
        self.paths: dict[str, str] = {}
        """Our name of a weight of the layer -> the path of its module below this one."""

    def forward(self, ops: TorchOps, *rest: Any) -> tuple[torch.Tensor, StepCache]:
        """rest: what comes after the index."""
        weights = Leaves(lambda name: self.get_submodule(self.paths[name]))
        run: Callable[..., Any] = vision.block if isinstance(self.config, VisionConfig) else decoder.block
        result: tuple[torch.Tensor, StepCache] = run(ops, self.config, weights, self.index, *rest)
        return result


class Model(nn.Module):
    """The decoder with its tied head, and the tower where it sees pictures; or, of an embedding model, the encoder
    without its dense layers."""

    def __init__(
        self,
        config: Config,
        make: Callable[[Tensor], nn.Module],
    ) -> None:
        """make: the module of one weight, for example `module_of`."""
        super().__init__()
        self.config = config
        self.paths: dict[str, str] = {}
        """Name in the tensor table -> path of its module."""
        self._block_paths: dict[str, str] = {}
        for tensor in tensors(config):
            if not tensor.is_pooled_dense:
                self._place(tensor.name, module_name(config, tensor), make(tensor))
        table = self.get_submodule(self.paths["embed"])
        if not config.pooled_dense and isinstance(table, nn.Embedding):
            head = Head(config.hidden_size, config.vocab_size, bias=False, device="meta")
            head.weight = table.weight
            self.add_module(HEAD, head)

    def forward(
        self, ops: TorchOps, step: decoder.Step, cache: StepCache, hidden_only: bool = False, outputs_only: bool = False
    ) -> torch.Tensor:
        """Logits [R, V], float32; or with `hidden_only` the final hidden states [T, D]; with `outputs_only`, too, those
        of the rows `step.outputs` [R, D]."""
        weights = Leaves(self._leaf)
        hidden, _ = decoder.hidden_states(ops, self.config, weights, step, cache, self._run_block, outputs_only)
        result: torch.Tensor = hidden if hidden_only else decoder.logits(ops, self.config, weights, step, hidden)
        return result

    def see(self, ops: TorchOps, pictures: vision.Pictures, cache: StepCache) -> torch.Tensor:
        """Pictures as tokens of the decoder [M, D]."""
        result: torch.Tensor = vision.embeddings(ops, self.config, Leaves(self._leaf), pictures, cache, self._run_block)
        return result

    def _run_block(self, ops: TorchOps, config: Config | VisionConfig, weights: Leaves, index: int, *rest: Any) -> Any:
        tower = "vision." if isinstance(config, VisionConfig) else ""
        return self.get_submodule(self._block_paths[f"{tower}layers.{index}"])(ops, *rest)

    def _leaf(self, name: str) -> nn.Module | TokenTable:
        module = self.get_submodule(self.paths[name])
        if name == "vision.position":
            return TokenTable(module, None)
        return TokenTable(module, getattr(self, HEAD, None)) if name == "embed" else module

    def _place(self, name: str, tensor_name: str, module: nn.Module) -> None:
        """Hangs the module into the tree; a number in its path is a layer, whose container is a `Block`."""
        path = tensor_name.removesuffix(".weight")
        config = self.config.vision if name.startswith("vision.") else self.config
        assert config is not None
        *parents, last = path.split(".")
        owner: nn.Module = self
        for part, following in zip(parents, [*parents, last][1:], strict=True):
            child = getattr(owner, part, None)
            if child is None:
                plain = nn.ModuleList() if following.isdigit() else nn.Module()
                child = Block(config, int(part)) if part.isdigit() else plain
                owner.add_module(part, child)
            owner = child
        owner.add_module(last, module)
        self.paths[name] = path
        layer = _LAYER.match(name)
        if layer is None:
            return
        index = layer[1].rpartition(".")[2]
        block_path, _, below = path.partition(f".{index}.")
        self._block_paths[layer[1]] = f"{block_path}.{index}"
        block = self.get_submodule(self._block_paths[layer[1]])
        assert isinstance(block, Block)
        block.paths[layer[2]] = below


def module_of(
    tensor: Tensor,
    lookup: Callable[[str], Leaf],
    dtype: torch.dtype,
    device: torch.device,
    linear: type[nn.Linear] = nn.Linear,
) -> nn.Module:
    """The module of one weight, holding its values in `dtype` on `device`. linear: the class of the linear layers."""
    leaf = lookup(tensor.name)
    if leaf.shape != tensor.shape:
        raise ValueError(f"{tensor.name} is {leaf.shape}, not {tensor.shape}")
    bias = torch.tensor(leaf.bias, dtype=dtype, device=device) if isinstance(leaf, Affine) else None
    weight = leaf.weight if isinstance(leaf, Affine) else leaf
    if isinstance(weight, LoRA):
        return AdaptedLinear(_tensor(weight.base, dtype).to(device), weight, bias)
    module: nn.Module
    if tensor.is_norm:
        module = (LayerNorm if tensor.bias else RMSNorm)(leaf.shape[0], device="meta")
    elif tensor.name in TABLES:
        module = nn.Embedding(leaf.shape[0], leaf.shape[1], device="meta")
    else:
        module = linear(leaf.shape[1], leaf.shape[0], bias=tensor.bias, device="meta")
    module.weight = nn.Parameter(_tensor(weight, dtype).to(device))
    if bias is not None:
        module.bias = nn.Parameter(bias)
    return module


def _tensor(leaf: Leaf, dtype: torch.dtype) -> torch.Tensor:
    """The weight's values, in memory of their own: a leaf may be mapped from a file, or be shared."""
    if isinstance(leaf, Dense) and leaf.format == "BF16" and dtype == torch.bfloat16:
        return torch.from_numpy(np.array(leaf.array).view(np.int16)).view(torch.bfloat16)
    values = leaf.dequantize()
    if isinstance(leaf, Dense) and np.may_share_memory(values, leaf.array):
        values = values.copy()
    return torch.from_numpy(values).to(dtype)
