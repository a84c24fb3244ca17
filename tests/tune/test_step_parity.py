"""One optimizer step on several documents, packed on our side and padded on theirs: the loss, every gradient and every
weight after it are those of transformers with peft, for each family and each kind of training."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parity.peers import torch
from tests.tiny import TINY
from tests.tune.tiny_runs import Documents, adapted_weights, ours, theirs

FAMILIES = ["gemma", "gemma2", "gemma3"]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "some": {"lora_targets": ("v", "down")},
    "recomputed": {"gradient_checkpointing": "on"},
    "full": {"method": "full"},
}

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's own


def close(actual: Any, expected: Any, bound: float) -> None:
    """To the largest magnitude of the expected tensor."""
    assert (actual - expected).abs().max() <= bound * expected.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_step(family: str, method: str) -> None:
    documents = Documents.random(TINY[family])
    mine = ours(family, **METHODS[method])
    peer = theirs(mine, family)
    weights, expected = mine.trained(), adapted_weights(peer)
    assert set(weights) == set(expected)

    ids, mask, labels = documents.padded()
    count = len(documents.targets)
    loss = mine.loss(documents) / count
    peer_loss = peer(ids, attention_mask=mask, labels=labels).loss
    close(loss.detach(), peer_loss.detach(), 1e-6)

    loss.backward()
    peer_loss.backward()
    for name, weight in weights.items():
        assert weight.dtype == torch.float32
        close(weight.grad, expected[name].grad, 2e-5)

    before = {name: weight.detach().clone() for name, weight in weights.items()}
    for group in (weights, expected):
        torch.optim.AdamW(group.values(), lr=0.05, eps=1.0).step()
    for name, weight in weights.items():
        assert (weight.detach() - before[name]).abs().max() > 1e-4
        close(weight.detach(), expected[name].detach(), 1e-5)
