"""Every feature changes the logits by far more than the engines may differ, so that none can be lost unseen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from gemmary.config import Config
from gemmary.ops.reference import ReferenceOps
from gemmary.quantize.leaves import Dense, Leaf
from tests.runs import Array, Lookup, Precision, each_float32, relative_error, run
from tests.tiny import TINY, random_leaves, random_tokens

MUCH = 100
"""How many times the bound of a float32 engine a lost feature must be worth."""


@dataclass(frozen=True)
class Loss:
    """One feature of one model, lost: other fields of its config, or other leaves."""

    model: str
    feature: str
    fields: dict[str, Any]
    leaves: Callable[[Config], Lookup] = random_leaves


def norms_without_one(config: Config) -> Lookup:
    """Leaves with which 1 + w comes out as w: what a decoder computes that forgets the 1."""
    lookup = random_leaves(config)

    def lower(name: str) -> Leaf:
        leaf = lookup(name)
        return Dense(leaf.dequantize() - 1) if len(leaf.shape) == 1 else leaf

    return lower


def neighbours_paired(config: Config) -> Lookup:
    """Rows of q with RoPE's halves interleaved: what a decoder computes that pairs neighbours."""
    lookup = random_leaves(config)
    order = np.arange(config.head_dim).reshape(2, -1).T.ravel()

    def interleaved(name: str) -> Leaf:
        leaf = lookup(name)
        if name.rsplit(".", 1)[-1] not in ("q", "k"):
            return leaf
        rows = leaf.dequantize().reshape(-1, config.head_dim, leaf.shape[1])[:, order]
        return Dense(rows.reshape(leaf.shape))

    return interleaved


LOSSES = [
    Loss("gemma", "norm +1", {}, norms_without_one),
    Loss("gemma", "rope pairs", {}, neighbours_paired),
    Loss("gemma", "rope theta", {"rope_theta": 70.0}),
    Loss("gemma", "embedding scale", {"exact_embedding_scale": True}),
    Loss("gemma", "query scale", {"query_pre_attn_scalar": 7}),
    Loss("gemma", "norm epsilon", {"rms_norm_eps": 1e-2}),
    Loss("gemma2", "norm +1", {}, norms_without_one),
    Loss("gemma2", "attention softcap", {"attn_logit_softcap": None}),
    Loss("gemma2", "final softcap", {"final_logit_softcap": None}),
    Loss("gemma2", "window", {"sliding_window": 64}),
    Loss("gemma2", "window, one key more", {"sliding_window": 6}),
    Loss("gemma2", "window, one key less", {"sliding_window": 4}),
    Loss("gemma2", "which layers are local", {"layer_types": ("global", "local") * 2}),
    Loss("gemma2", "query scale of 27B", {"query_pre_attn_scalar": 10}),
    Loss("gemma2", "norms after the branches", {"post_norms": False}),
    Loss("gemma2", "rope theta of local layers", {"rope_theta_local": 70.0}),
    Loss("gemma2", "embedding scale", {"exact_embedding_scale": True}),
    Loss("gemma3", "norm +1", {}, norms_without_one),
    Loss("gemma3", "qk norm", {"qk_norm": False}),
    Loss("gemma3", "window", {"sliding_window": 64}),
    Loss("gemma3", "window, one key more", {"sliding_window": 5}),
    Loss("gemma3", "which layers are local", {"layer_types": ("local",) * 8}),
    Loss("gemma3", "rope theta of global layers", {"rope_theta": 20.0}),
    Loss("gemma3", "rope theta of local layers", {"rope_theta_local": 400.0}),
    Loss("gemma3", "rope scaling", {"rope_scaling_factor": 1.0}),
    Loss("gemma3", "query scale of 27B", {"query_pre_attn_scalar": 6}),
    Loss("gemma3", "norms after the branches", {"post_norms": False}),
    Loss("gemma3", "embedding scale", {"exact_embedding_scale": True}),
]


@cache
def usual(precision: Precision, model: str) -> Array:
    config = TINY[model]
    return run(precision.open(config, random_leaves(config)), [random_tokens(config, 23)])[0]


@each_float32
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{loss.model}: {loss.feature}")
def test_losing_it_shows(loss: Loss, precision: Precision) -> None:
    config = replace(TINY[loss.model], **loss.fields)
    engine = precision.open(config, loss.leaves(TINY[loss.model]))
    (logits,) = run(engine, [random_tokens(config, 23)])
    assert relative_error(logits, usual(precision, loss.model)) > MUCH * precision.worst


@pytest.mark.parametrize("model", ["gemma", "gemma2", "gemma3"])
def test_losing_the_tanh_form_of_gelu_shows(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two forms differ by at most 5e-4, so this is the smallest of the losses; it is seen all the same."""
    precision = Precision("reference", "float32", 2e-5, 1e-5)
    right = usual(precision, model)
    erf = np.vectorize(math.erf)

    def geglu(self: ReferenceOps, gate: Array, up: Array) -> Array:
        result: Array = (gate / 2 * (1 + erf(gate / np.sqrt(2))) * up).astype(np.float32)
        return result

    monkeypatch.setattr(ReferenceOps, "geglu", geglu)
    config = TINY[model]
    (logits,) = run(precision.open(config, random_leaves(config)), [random_tokens(config, 23)])
    assert relative_error(logits, right) > 5 * precision.worst
