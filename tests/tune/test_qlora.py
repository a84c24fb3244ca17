"""A base that stays as stored, quantized or in 16 bits: the loss and every gradient are those of an adapter on the same
base in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Blocks, Dense, Leaf, quantized
from tests.checkpoints.test_packed import packed
from tests.engines.helpers import stored
from tests.parity.peers import torch
from tests.tiny import TINY, random_leaves
from tests.tune.tiny_runs import Documents, Run, checkpoint_of

from gemmary.engines.torch_quantized import QuantizedEmbedding, QuantizedLinear  # isort: skip (needs torch)
from gemmary.tune.lora import LoraLinear  # isort: skip
from gemmary.tune.model import TuneModel, build  # isort: skip

WAYS: dict[str, dict[str, Any]] = {"lora": {}, "dora": {"dora": True}, "recomputed": {"gradient_checkpointing": "on"}}


def model(family: str, format: str, dtype: Any = torch.float32, *, widened: bool = False, **settings: Any) -> TuneModel:
    """With an adapter whose B is not zero, so that A has a gradient. Panels in every other matrix, blocks elsewhere;
    widened: float32 in all of them."""
    lookup = stored(TINY[family], format)

    def leaf(name: str) -> Leaf:
        found = lookup(name)
        if widened:
            return Dense(found.dequantize())
        return packed(found) if isinstance(found, Blocks) and name.endswith(("q", "up", "embed")) else found

    made = build(checkpoint_of(TINY[family], leaf), Run(**settings), torch.device("cpu"), dtype)
    generator = torch.Generator().manual_seed(4)
    for layer in made.adapters.values():
        layer.lora_B.weight.data = torch.randn(layer.lora_B.weight.shape, generator=generator) * 0.3
    return made


@pytest.mark.parametrize("family", ["gemma-q32", "gemma2-q32", "gemma3-q32"])
@pytest.mark.parametrize(("method", "format"), [("qlora", "Q4_0"), ("lora", "Q8_0"), ("lora", "BF16")])
@pytest.mark.parametrize("way", WAYS)
def test_gradients_are_those_of_the_dequantized_base(family: str, method: str, format: str, way: str) -> None:
    documents = Documents.random(TINY[family])
    models = [
        model(family, format, widened=wide, method="lora" if wide else method, **WAYS[way]) for wide in (False, True)
    ]
    assert any(isinstance(module, QuantizedLinear) for module in models[0].modules())
    assert not any(isinstance(module, QuantizedLinear) for module in models[1].modules())
    losses = [each.loss(documents) for each in models]
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=1e-6)
    (ours, theirs) = (each.trained() for each in models)
    assert set(ours) == set(theirs)
    for name, weight in ours.items():
        wanted = theirs[name].grad
        assert (weight.grad - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("dora", [False, True])
def test_a_tower_in_blocks(dora: bool) -> None:
    """Rows that are filled up to whole blocks, and a bias, which is no part of what an adapter changes."""
    rng = np.random.default_rng(2)
    whole, bias = Dense(rng.standard_normal((20, 41), np.float32)), rng.standard_normal(20, np.float32)
    leaf = quantized(Affine(whole, bias), "Q8_0")
    assert isinstance(leaf, Affine)
    plain = torch.nn.Linear(41, 20)
    plain.weight.data, plain.bias.data = torch.from_numpy(leaf.dequantize()), torch.from_numpy(bias)
    found = []
    for base in (QuantizedLinear(leaf), plain):
        layer = LoraLinear(base, 3, 6.0, dora=dora, generator=torch.Generator().manual_seed(1))
        layer.lora_B.weight.data = torch.from_numpy(np.random.default_rng(3).standard_normal((20, 3), np.float32))
        x = torch.from_numpy(np.random.default_rng(4).standard_normal((5, 41), np.float32)).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(weight.grad for weight in layer.parameters() if weight.requires_grad)])
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    sum_OI = torch.from_numpy(leaf.dequantize()) + 2 * (layer.lora_B.weight @ layer.lora_A.weight).detach()
    if dora:
        sum_OI *= (plain.weight.norm(dim=1) / sum_OI.norm(dim=1))[:, None]
    expected = x.detach() @ sum_OI.t() + torch.from_numpy(bias)
    assert (found[0][0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_in_bfloat16() -> None:
    documents = Documents.random(TINY["gemma2-q32"])
    models = [model("gemma2-q32", "Q8_0", torch.bfloat16, method=method) for method in ("qlora", "lora")]
    losses = [each.loss(documents) for each in models]
    for loss in losses:
        loss.backward()
    assert float(losses[0].detach()) == pytest.approx(float(losses[1].detach()), rel=2e-2)
    for ours, theirs in zip(*(each.trained().values() for each in models), strict=True):
        assert torch.cosine_similarity(ours.grad.flatten(), theirs.grad.flatten(), dim=0) > 0.99


def test_what_is_quantized_stays_so_and_the_rest_becomes_int4() -> None:
    for format, kept in (("Q8_0", "Q8_0"), ("BF16", "Q4_0"), ("F32", "Q4_0")):
        made = model("gemma3-q32", format, method="qlora")
        matrices = [m.matrix for m in made.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
        assert len(matrices) == 7 * TINY["gemma3-q32"].num_layers + 1
        assert {matrix.format for matrix in matrices} == {kept}
        assert not [name for name, each in made.named_parameters() if each.ndim == 2 and "lora" not in name]


def test_int4_is_that_of_quant() -> None:
    leaf = Dense(random_leaves(TINY["gemma-q32"])("layers.0.gate").dequantize())
    from gemmary.quantize import blocks

    wanted = blocks.dequantize("Q4_0", blocks.quantize("Q4_0", leaf.array))
    assert torch.equal(QuantizedLinear(leaf, format="Q4_0").tile(0, len(wanted)), torch.from_numpy(wanted))


def test_refusals() -> None:
    odd = checkpoint_of(TINY["gemma"])
    with pytest.raises(GemmaryError, match="rows must be a multiple of 32"):
        build(odd, Run(method="qlora"), torch.device("cpu"), torch.float32)
    with pytest.raises(GemmaryError, match="on the CPU only, not on meta"):
        build(odd, Run(method="qlora"), torch.device("meta"), torch.float32)
