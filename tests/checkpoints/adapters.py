"""Random adapters of tiny models, and the same in peft."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np

from gemmary.checkpoints.peft import Adapter, AdapterConfig, LoraWeights, linear_names, target_ends
from gemmary.checkpoints.tensors import module_layout
from gemmary.config import Config
from gemmary.quantize.leaves import Dense, Leaf, with_weight
from tests.runs import Lookup


def random_adapter(
    config: Config, *, seed: int = 0, rank: int = 3, targets: tuple[str, ...] = (), **rest: Any
) -> Adapter:
    """One that bites: scale · B·A is about a third of a weight of `tests.tiny`. targets: of all linear layers where
    none are given. rest: of AdapterConfig."""
    names = {tensor.name for tensor in linear_names(config).values()}
    layout = rest.pop("layout", module_layout(config))
    targets = targets or target_ends(config, names, layout)
    described = AdapterConfig(rank, 2.0 * rank, targets, layout=layout, **rest)
    weights = {}
    for path, tensor in linear_names(config, layout).items():
        if described.targeted(path):
            rng = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
            outputs, inputs = tensor.shape
            a = rng.standard_normal((rank, inputs), np.float32) / np.float32(inputs**0.5)
            b = rng.standard_normal((outputs, rank), np.float32) / np.float32(3 * rank**0.5)
            magnitude = rng.uniform(1, 3, outputs).astype(np.float32) if described.dora else None
            weights[tensor.name] = LoraWeights(a, b, described.scale(rank, described.alpha), magnitude)
    return Adapter(described, weights)


def mixed_adapter(config: Config, **rest: Any) -> Adapter:
    """One whose down projections have another rank, and whose first layer's query another alpha."""
    plain, other = random_adapter(config, **rest), random_adapter(config, seed=1, rank=5, **rest)
    weights = {name: other.weights[name] if name.endswith("down") else w for name, w in plain.weights.items()}
    weights["layers.0.q"] = replace(weights["layers.0.q"], scale=0.75)
    return Adapter(plain.config, weights)


def merged(lookup: Lookup, adapter: Adapter) -> Lookup:
    """Leaves with the adapter in them, by its definition, in float64."""

    def leaf(name: str) -> Any:
        base = lookup(name)
        weights = adapter.weights.get(name)
        return base if weights is None else with_weight(base, lambda bare: summed(bare, weights))

    def summed(base: Leaf, weights: LoraWeights) -> Dense:
        whole = base.dequantize() + weights.scale * (weights.b.astype(np.float64) @ weights.a)
        if weights.magnitude is not None:
            whole *= (weights.magnitude / np.linalg.norm(whole, axis=1))[:, None]
        return Dense(whole.astype(np.float32))

    return leaf
