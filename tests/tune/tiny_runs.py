"""Tiny models in training, ours and those of transformers with peft, on the same weights and documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from tests.parity.peers import peer, torch
from tests.tiny import TINY, random_leaves, random_tokens

from gemmary.tune.model import TuneModel, build  # isort: skip (needs torch, which peers skips without)


@dataclass(frozen=True)
class Run:
    """The settings that a model is built from."""

    method: str = "lora"
    lora_rank: int = 3
    lora_alpha: float = 5.0
    lora_dropout: float = 0.0
    lora_targets: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")
    rslora: bool = False
    dora: bool = False
    seed: int = 0
    gradient_checkpointing: str = "off"
    trains_tower: bool = False
    label_smoothing: float = 0.0
    tensor_parallel: int = 1
    mask_codec: str | None = None


@dataclass(frozen=True)
class Documents:
    """Documents, and for each of their tokens whether the loss counts its prediction; as a micro-batch of ours."""

    tokens: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[bool, ...], ...]
    batch: Batch
    targets: npt.NDArray[np.int64]

    @classmethod
    def random(cls, config: Config, lengths: Sequence[int] = (23, 9, 2, 14)) -> Documents:
        tokens = tuple(tuple(random_tokens(config, n, seed=8)) for n in lengths)
        rng = np.random.default_rng(3)
        scored = tuple((False, *(bool(yes) for yes in rng.random(n - 1) < 0.7)) for n in lengths)
        scored = (*scored[:-1], (False,) * (lengths[-1] - 1) + (True,))
        whole = Batch.of(config, [Chunk(each) for each in tokens])
        flat = [token for each in tokens for token in each]
        counted = np.flatnonzero([yes for each in scored for yes in each])
        batch = Batch(whole.tokens, whole.positions, whole.visible, (counted - 1).astype(np.int32), whole.sequences)
        return cls(tokens, scored, batch, np.array(flat)[counted])

    def padded(self) -> tuple[Any, Any, Any]:
        """Tokens, attention mask and labels of transformers, [documents, longest]: padding behind, labels -100."""
        shape = (len(self.tokens), max(map(len, self.tokens)))
        ids, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
        for row, (tokens, scored) in enumerate(zip(self.tokens, self.scored, strict=True)):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
            labels[row, : len(tokens)] = torch.where(torch.tensor(scored), torch.tensor(tokens), -100)
        return ids, mask, labels


def checkpoint_of(config: Config, lookup: Any = None) -> Checkpoint:
    lookup = lookup or random_leaves(config)
    leaves = {tensor.name: (lambda name=tensor.name: lookup(name)) for tensor in tensors(config)}
    return Checkpoint(Path("tiny"), "safetensors", config, "tiny", leaves, lambda: None, lambda: None)  # type: ignore[arg-type,return-value]


def ours(name: str, dtype: Any = None, **settings: Any) -> TuneModel:
    """An adapter's B is random here, where training starts from zero: A has no gradient there."""
    model = build(checkpoint_of(TINY[name]), Run(**settings), torch.device("cpu"), dtype or torch.float32)
    generator = torch.Generator().manual_seed(4)
    for layer in model.adapters.values():
        b = layer.lora_B.weight
        b.data = torch.randn(b.shape, generator=generator) * 0.3
        if layer.magnitude is not None:
            layer.magnitude.data *= 0.7 + 0.6 * torch.rand(len(layer.magnitude), generator=generator)
    return model


def theirs(model: TuneModel, name: str) -> Any:
    """The same model in transformers, with peft's adapter of the same values where ours has one."""
    made = peer(TINY[name], random_leaves(TINY[name])).train()
    if not model.adapters:
        return made
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = model.settings
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=sorted({model.paths[name].rpartition(".")[2] for name in model.adapters}),
        use_rslora=settings.rslora,
        use_dora=settings.dora,
    )
    adapted = peft.inject_adapter_in_model(config, made)
    with torch.no_grad():
        for path, weight in adapted_weights(adapted).items():
            weight.copy_(model.get_parameter(path))
    return adapted


def adapted_weights(made: Any) -> dict[str, Any]:
    """The trained weights of peft's model, or all of transformers', by our paths."""
    ends = {"lora_magnitude_vector.default.weight": "magnitude", ".default.weight": ".weight"}
    found: dict[str, Any] = {}
    for path, weight in made.named_parameters():
        if weight.requires_grad:
            for end, mine in ends.items():
                path = path.removesuffix(end) + mine if path.endswith(end) else path
            found[path] = weight
    return found
