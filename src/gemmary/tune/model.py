"""The model as it is tuned: modules with the Hugging Face names, of which the trained ones ask for gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from gemmary.batch import patches
from gemmary.checkpoints import Checkpoint, save_checkpoint
from gemmary.checkpoints.peft import Adapter, AdapterConfig, LoraWeights, target_ends, write_adapter
from gemmary.checkpoints.tensors import Tensor, module_layout
from gemmary.config import Config, VisionConfig
from gemmary.engines.torch_modules import TABLES, Model, module_of
from gemmary.engines.torch_ops import StepCache, TorchOps, Visible
from gemmary.errors import GemmaryError
from gemmary.model import decoder
from gemmary.model.leaves import Leaves
from gemmary.model.vision import Pictures
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf
from gemmary.tune.data import codec_file
from gemmary.tune.heap import give_back_holes
from gemmary.tune.lora import LoraLinear, attach
from gemmary.tune.losses import DenseTable, Table, cross_entropy
from gemmary.tune.packing import MicroBatch
from gemmary.tune.settings import Settings
from gemmary.tune.tensor_parallel import check

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer


FEW = 0.75
"""Share of scored rows below which it pays to pick them out before the last layer's MLP."""


class TuneModel(Model):
    """The decoder with a loss. Weights that stand still are in the dtype of computing, trained ones float32."""

    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, make: Callable[[Tensor], nn.Module], dtype: torch.dtype
    ) -> None:
        super().__init__(checkpoint.config, make)
        self.checkpoint, self.settings, self.dtype = checkpoint, settings, dtype
        self.adapters: dict[str, LoraLinear] = {}
        """Name in the tensor table -> the layer that is adapted; none where the whole model is trained."""
        self.recomputes = settings.gradient_checkpointing == "on"
        """Activations inside the blocks are computed again in the backward pass, to the same bits, and not kept.
        Whether `auto` means that, `tune/room.py` has decided before."""
        self.trains_tower = checkpoint.config.prefix_lm and settings.trains_tower
        if settings.method != "full":
            self.requires_grad_(False)
            self.adapters = attach(self, settings)
        elif not self.trains_tower:
            for name, path in self.paths.items():
                self.get_submodule(path).requires_grad_(not name.startswith("vision."))

    def loss(self, micro: MicroBatch) -> torch.Tensor:
        """Sum of -log p over the scored tokens, a float32 scalar."""
        result: torch.Tensor = self(micro)
        return result

    def forward(self, micro: MicroBatch) -> torch.Tensor:  # type: ignore[override]
        """`loss`, where wrappers of modules (FSDP) look for it."""
        batch, device = micro.batch, self.device

        def tensor(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(device, torch.int64)

        ops, cache = TorchOps(self.dtype), StepCache([None] * len(batch.sequences), batch.sequences)
        visible = {kind: Visible.of(spans, batch.sequences, device) for kind, spans in batch.visible.items()}
        seen = (tensor(batch.pictures[0]), self._seen(ops, micro)) if batch.pictures is not None else None
        tokens, positions, outputs = tensor(batch.tokens), tensor(batch.positions), tensor(batch.outputs)
        step = decoder.Step(tokens, positions, dict(visible), outputs, seen)
        # Not with dropout, whose masks are drawn row by row, as PEFT draws them.
        drops = self.training and self.settings.lora_dropout > 0
        few = len(batch.outputs) < FEW * len(batch.tokens) and not drops
        hidden = super().forward(ops, step, cache, hidden_only=True, outputs_only=few)
        scored = hidden if few else ops.take(hidden, step.outputs)
        smoothing = self.settings.label_smoothing if self.training else 0.0
        return cross_entropy(scored, self._table(), tensor(micro.targets), self.config.final_logit_softcap, smoothing)

    def _seen(self, ops: TorchOps, micro: MicroBatch) -> torch.Tensor:
        """What stands in the places for pictures [M, D]: one run of the tower, over each picture once."""
        assert micro.pixels is not None
        assert micro.shown is not None
        fed, rows = patches(self.config, micro.pixels)
        pictures = Pictures(
            torch.from_numpy(fed.patches).to(self.device, self.dtype),
            torch.from_numpy(fed.positions).to(self.device, torch.int64),
            Visible.of(fed.visible, rows, self.device),
        )
        with nullcontext() if self.trains_tower else torch.no_grad():
            tokens = self.see(ops, pictures, StepCache([None] * len(rows), rows))
        if np.array_equal(micro.shown, np.arange(len(rows))):
            return tokens
        return tokens.view(len(rows), -1, tokens.shape[1])[torch.from_numpy(micro.shown).to(self.device)].flatten(0, 1)

    def trained(self) -> dict[str, nn.Parameter]:
        """What is trained, in the order of the computation."""
        return {name: weight for name, weight in self.named_parameters() if weight.requires_grad}

    def save(self, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
        """Writes what was trained: an adapter in PEFT's format, or the whole model as a Hugging Face folder (float32).

        weights: those of `trained()`, whole and on the CPU, where this process holds a share of each. Raises
        GemmaryError where the disk refuses.
        """
        weights = weights or {name: weight.detach().cpu() for name, weight in self.trained().items()}
        if self.settings.method == "full":
            save_checkpoint(Trained(self, weights), folder, dtype="float32")
            return
        settings = self.settings
        config = AdapterConfig(
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            targets=target_ends(self.config, self.adapters),
            layout=module_layout(self.config),
            dropout=settings.lora_dropout,
            rslora=settings.rslora,
            dora=settings.dora,
            base_model=self.checkpoint.name,
        )

        def learnt(name: str, layer: LoraLinear) -> LoraWeights:
            a, b, magnitude = (f"{self.paths[name]}.{part}" for part in ("lora_A.weight", "lora_B.weight", "magnitude"))
            stretch = None if layer.magnitude is None else weights[magnitude].numpy()
            return LoraWeights(weights[a].numpy(), weights[b].numpy(), layer.scale, stretch)

        write_adapter(folder, Adapter(config, {name: learnt(name, layer) for name, layer in self.adapters.items()}))

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def _table(self) -> Table | nn.Parameter:
        embedding: Any = self.get_submodule(self.paths["embed"])
        if not isinstance(embedding, nn.Embedding):
            quantized: Table = embedding
            return quantized
        assert isinstance(embedding.weight, nn.Parameter)
        return embedding.weight if embedding.weight.requires_grad else DenseTable(embedding.weight)

    def _run_block(self, ops: TorchOps, config: Config | VisionConfig, weights: Leaves, index: int, *rest: Any) -> Any:
        run = super()._run_block
        if not torch.is_grad_enabled():
            return run(ops, config, weights, index, *rest)
        if self.recomputes:
            return recomputed(run, ops, config, weights, index, *rest, use_reentrant=False)
        out, cache = run(ops, config, weights, index, *rest)
        if out.device.type == "cpu":
            give_back_holes(index, out.nbytes)
        return out, cache


class MasterLinear(nn.Linear):
    """A trained layer: its weight is float32, the product in the dtype of x."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class Trained:
    """A tuned model as `save_checkpoint` reads it."""

    def __init__(self, model: TuneModel, weights: Mapping[str, torch.Tensor]) -> None:
        """weights: whole ones by the names of the model's parameters."""
        self.model, self.weights = model, weights
        self.config: Config = model.config
        self.name = model.checkpoint.name

    @property
    def mask_codec_file(self) -> Path | None:
        return codec_file(self.model.settings, self.model.checkpoint)

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.model.checkpoint.tokenizer

    @property
    def chat_template(self) -> str | None:
        return self.model.checkpoint.chat_template

    def lookup(self, name: str) -> Leaf:
        path = self.model.paths[name]
        if f"{path}.weight" not in self.weights:
            return self.model.checkpoint.lookup(name)
        leaf = Dense(self.weights[f"{path}.weight"].numpy())
        bias = self.weights.get(f"{path}.bias")
        return leaf if bias is None else Affine(leaf, bias.numpy())


def build(checkpoint: Checkpoint, settings: Settings, device: torch.device, dtype: torch.dtype) -> TuneModel:
    """The model of a checkpoint as a run tunes it, in training mode.

    dtype: of computing, float32 or bfloat16. Raises GemmaryError for a model that has no next-token scores, for one
    whose rows do not divide into blocks where it is to be quantized, and for a quantized one on another device.
    """
    if checkpoint.config.bidirectional:
        raise GemmaryError(f"{checkpoint.name} is an embedding model: it has no next-token scores to tune on")
    if settings.tensor_parallel > 1:
        check(checkpoint.config, settings.tensor_parallel, settings.method, settings.lora_dropout, settings.dora)
    if settings.method == "qlora" and device.type != "cpu":
        raise GemmaryError(f"a quantized base is tuned on the CPU only, not on {device}: choose --device cpu")

    def dense(tensor: Tensor) -> nn.Module:
        return module_of(tensor, checkpoint.lookup, dtype, device)

    def frozen(tensor: Tensor) -> nn.Module:
        """Widened to float32 a tile at a time, with the same result as all at once: narrow weights stay narrow."""
        leaf = checkpoint.lookup(tensor.name)
        wide = tensor.is_norm or leaf.format == "F32" or dtype != torch.float32 or device.type != "cpu"
        wide = wide or (settings.tensor_parallel > 1 and tensor.name != "embed")  # panels cannot be divided
        return dense(tensor) if wide or tensor.name in TABLES[1:] else packed(tensor, leaf, None)

    def quantized(tensor: Tensor) -> nn.Module:
        leaf = checkpoint.lookup(tensor.name)
        if tensor.name.startswith("vision.") and (leaf.format in FLOATS or tensor.blocks("Q4_0") is None):
            return frozen(tensor)  # rows that are no multiple of a block
        format = "Q4_0" if leaf.format in FLOATS else None  # what is quantized already stays as it is
        return dense(tensor) if tensor.is_norm else packed(tensor, leaf, format)

    def packed(tensor: Tensor, leaf: Leaf, format: str | None) -> nn.Module:
        from gemmary.engines.torch_quantized import QuantizedEmbedding, QuantizedLinear

        return QuantizedEmbedding(leaf, format) if tensor.name == "embed" else QuantizedLinear(leaf, dtype, format)

    def master(tensor: Tensor) -> nn.Module:
        if tensor.name.startswith("vision.") and not (checkpoint.config.prefix_lm and settings.trains_tower):
            return frozen(tensor)
        return module_of(tensor, checkpoint.lookup, torch.float32, device, MasterLinear)

    make = {"lora": frozen, "qlora": quantized, "full": master}[settings.method]
    return TuneModel(checkpoint, settings, make, dtype).train()
