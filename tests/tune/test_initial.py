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


def test_places_of_a_tower_begin_apart_and_neighbours_alike() -> None:
    shape = {"image_size": 32, "patch_size": 4, "num_layers": 2, "hidden_size": 64, "num_heads": 2}
    settings = PretrainSettings(
        data="x", out="x", vocab_size=1500, hidden_size=96, vision={**shape, "intermediate_size": 96}
    )
    checkpoint = initial_checkpoint(settings.config(), small.build(), "new", seed=0)

    def weights(name: str) -> np.ndarray:
        return checkpoint.lookup(name).dequantize()

    filters = weights("vision.patch").reshape(64, 3, 16)
    assert np.abs(filters.mean(axis=2)).max() < 1e-6
    assert abs(filters.var() * 48 / 4 - 1) < 0.1
    assert abs(weights("vision.layers.1.down").var() / weights("vision.layers.1.up").var() - 1 / 4) < 0.02
    places = weights("vision.position")
    apart = ((places[:, None] - places) ** 2).sum(axis=2)
    assert apart[0, 1] < apart[0, 2]
    assert apart[0, 8] < apart[0, 16]
    assert apart[~np.eye(64, dtype=bool)].min() > 1
    locations = weights("embed")[-1152:-128]
    assert np.allclose((locations**2).sum(axis=1), 1, atol=0.02)
    near = locations @ locations[500]
    assert near[500] > near[504] > near[508] > near[520] > near[600]
