"""What a tuned model promises beside its gradients: dropout as peft's, the first values, what is saved, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.checkpoints.peft import read_adapter
from gemmary.errors import GemmaryError
from tests.models import tiny_checkpoint
from tests.parity.peers import torch
from tests.tiny import TINY
from tests.tune.tiny_runs import Documents, Run, adapted_weights, checkpoint_of, ours, theirs

from gemmary.tune.model import build  # isort: skip (needs torch, which peers skips without)

CPU = torch.device("cpu")


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_that_of_peft(dora: bool) -> None:
    """One document, so that both sides drop the same numbers."""
    documents = Documents.random(TINY["gemma2"], (21,))
    model = ours("gemma2", dora=dora, lora_dropout=0.3)
    peer = theirs(model, "gemma2")
    ids, mask, labels = documents.padded()
    count = len(documents.targets)
    torch.manual_seed(5)
    loss = model.loss(documents) / count
    torch.manual_seed(5)
    expected = peer(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for name, weight in adapted_weights(peer).items():
        assert (model.trained()[name].grad - weight.grad).abs().max() <= 2e-5 * weight.grad.abs().max()
    with torch.no_grad():
        still = [float(each.loss(documents)) for each in (model.eval(), ours("gemma2", dora=dora))]
    assert still[0] == still[1] != pytest.approx(count * float(loss.detach()), rel=1e-3)


def test_recomputing_changes_no_bit() -> None:
    documents = Documents.random(TINY["gemma3"])
    grads = []
    for recomputes in ("off", "on"):
        model = ours("gemma3", gradient_checkpointing=recomputes, lora_dropout=0.2)
        torch.manual_seed(3)
        model.loss(documents).backward()
        grads.append([weight.grad for weight in model.trained().values()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_first_values_come_from_the_seed_and_change_nothing() -> None:
    documents = Documents.random(TINY["gemma"])
    one, same, other = (build(checkpoint_of(TINY["gemma"]), Run(seed=n), CPU, torch.float32) for n in (1, 1, 2))
    plain = build(checkpoint_of(TINY["gemma"]), Run(method="full"), CPU, torch.float32)
    for name, weight in one.trained().items():
        assert torch.equal(weight, same.trained()[name])
        assert torch.equal(weight, other.trained()[name]) == name.endswith("lora_B.weight")
        if name.endswith("lora_A.weight"):
            bound = weight.shape[1] ** -0.5  # kaiming_uniform with a = sqrt 5
            assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
    with torch.no_grad():
        assert float(one.loss(documents)) == pytest.approx(float(plain.loss(documents)), rel=1e-6)


def test_bfloat16_computes_near_float32_with_masters() -> None:
    documents = Documents.random(TINY["gemma3"])
    for settings in ({}, {"dora": True}, {"method": "full"}):
        rough, exact = (ours("gemma3", dtype, **settings) for dtype in (torch.bfloat16, torch.float32))
        losses = [model.loss(documents) for model in (rough, exact)]
        for loss in losses:
            loss.backward()
        assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=0.05)
        for name, weight in rough.trained().items():
            assert weight.dtype == weight.grad.dtype == torch.float32
            expected = exact.trained()[name].grad
            assert torch.nn.functional.cosine_similarity(weight.grad.flatten(), expected.flatten(), dim=0) > 0.8


@pytest.mark.parametrize("settings", [{}, {"rslora": True}, {"dora": True, "lora_targets": ("q", "down")}], ids=str)
def test_an_adapter_is_saved(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = ours("gemma3", **settings)
    model.save(tmp_path)
    adapter = read_adapter(tmp_path, model.config)
    assert list(adapter.weights) == list(model.adapters)
    for name, layer in model.adapters.items():
        saved = adapter.weights[name]
        assert saved.scale == layer.scale
        assert np.array_equal(saved.a, layer.lora_A.weight.detach().numpy())
        assert np.array_equal(saved.b, layer.lora_B.weight.detach().numpy())
        if layer.magnitude is not None:
            assert np.array_equal(saved.magnitude, layer.magnitude.detach().numpy())


def test_a_whole_model_is_saved(tmp_path: Path) -> None:
    model = build(tiny_checkpoint("gemma2"), Run(method="full"), CPU, torch.float32)
    with torch.no_grad():
        for weight in model.trained().values():
            weight += 0.125
    model.save(tmp_path / "whole")
    saved = open_checkpoint(tmp_path / "whole")
    for name, path in model.paths.items():
        expected = model.get_parameter(path + ".weight").detach().numpy()
        assert np.array_equal(saved.lookup(name).dequantize(), expected)


def test_an_embedding_model_is_refused() -> None:
    checkpoint = replace(checkpoint_of(TINY["embeddinggemma"]), name="encoder")
    with pytest.raises(GemmaryError, match="encoder is an embedding model: it has no next-token scores to tune on"):
        build(checkpoint, Run(), CPU, torch.float32)
