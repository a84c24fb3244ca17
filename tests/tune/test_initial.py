"""The weights that a model from scratch begins with."""

from __future__ import annotations

import numpy as np

from gemmary.checkpoints.tensors import tensors
from gemmary.tune.initial import initial_checkpoint
from gemmary.tune.pretrain_settings import PretrainSettings
from tests.tokenizer import small

SETTINGS = PretrainSettings(text=("x",), out="x", vocab_size=512, num_layers=2, hidden_size=96, intermediate_size=128)

FIRST = [-0.046363841742277145, 0.04713943600654602, -0.01567096635699272]
"""Three weights of seed 3."""


def test_weights_have_the_stated_spread_and_norms_the_stated_sizes() -> None:
    checkpoint = initial_checkpoint(SETTINGS.config(), small.build(), "new", seed=0)
    for tensor in tensors(checkpoint.config):
        values = checkpoint.lookup(tensor.name).dequantize()
        assert values.shape == tensor.shape
        assert values.dtype == np.float32
        if tensor.name.endswith(("post_attn_norm", "post_ffn_norm")):
            assert np.allclose(1 + values, 0.5)  # four branches of a quarter of the variance each
        elif tensor.is_norm:
            assert (values == 0).all()
        else:
            variance = 1 / tensor.shape[1]
            assert abs(values.mean()) < 5 * (variance / values.size) ** 0.5
            assert abs(values.var() / variance - 1) < 0.05
            assert np.abs(values).max() <= (3 * variance) ** 0.5


def test_the_seed_and_the_name_of_a_tensor_fix_its_bits() -> None:
    first, second, other = (initial_checkpoint(SETTINGS.config(), small.build(), "new", seed) for seed in (3, 3, 4))
    gate = first.lookup("layers.1.gate").dequantize()
    assert np.array_equal(gate, second.lookup("layers.1.gate").dequantize())
    assert not np.array_equal(gate, other.lookup("layers.1.gate").dequantize())
    assert not np.array_equal(gate, first.lookup("layers.0.gate").dequantize())
    # The generator's raw words are the same in every version of numpy: so are these.
    assert gate[0, :3].tolist() == FIRST
