"""What the backward pass keeps: as many bytes as are foreseen, and nothing that is made again from what is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gemmary.config import Config
from gemmary.plan.training import activation_bytes_per_token
from tests.parity.peers import torch
from tests.tiny import TINY
from tests.tune.tiny_runs import Documents, Run, checkpoint_of

from gemmary.tune import heap  # isort: skip (needs torch, which peers skips without)
from gemmary.tune.model import build  # isort: skip

TOKENS = 40


def kept_bytes(config: Config, **settings: Any) -> int:
    """Of distinct memory, weights left out."""
    model = build(checkpoint_of(config), Run(lora_rank=1, **settings), torch.device("cpu"), torch.float32)
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model.loss(Documents.random(config, (TOKENS,)))
    assert loss.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_as_many_bytes_as_foreseen(family: str, method: str) -> None:
    """For each layer more: what a step keeps once does not count."""
    shallow = TINY[family]
    deep = replace(shallow, num_layers=2 * shallow.num_layers, layer_types=2 * shallow.layer_types)
    counted = kept_bytes(deep, method=method) - kept_bytes(shallow, method=method)
    foreseen = activation_bytes_per_token(shallow, 4, full=method == "full")
    of_rows = 4 if shallow.post_norms else 2  # the inverse root of each norm
    of_rows += (shallow.num_heads + shallow.num_kv_heads) * shallow.qk_norm
    of_rows += 7 * (method == "lora")  # between A and B
    assert counted == TOKENS * (foreseen + 4 * of_rows * shallow.num_layers)


def test_holes_are_given_back_after_every_few_large_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(heap, "_malloc_trim", lambda: given.append)
    for nbytes, times in ((heap.LARGE, 2), (heap.LARGE - 1, 0)):
        for layer in range(2 * heap.EVERY):
            heap.give_back_holes(layer, nbytes)
        assert given == [0] * times
        given.clear()
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)  # where the C library has none
    heap.give_back_holes(heap.EVERY - 1, heap.LARGE)
