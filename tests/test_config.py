"""What a config says of its model: scales, frequencies, costs. The numbers of real models stand in `test_zoo.py`."""

from __future__ import annotations

import math
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.config import Config, round_to_bfloat16
from tests.tiny import TINY, leaf_shapes


@settings(derandomize=True, deadline=None)
@given(st.floats(-(2.0**127), 2.0**127, width=32))
def test_round_to_bfloat16(value: float) -> None:
    assert round_to_bfloat16(value) == float(np.float32(value).astype(ml_dtypes.bfloat16))


def test_round_to_bfloat16_takes_ties_to_even() -> None:
    assert [round_to_bfloat16(1 + x / 256) for x in (0.99, 1, 1.01, 3)] == [1, 1, 1 + 1 / 128, 1 + 2 / 128]


@pytest.mark.parametrize("name", TINY)
def test_counts_are_those_of_the_tensors(name: str) -> None:
    """Every parameter count, against the shapes of the leaves themselves."""
    config, shapes = TINY[name], leaf_shapes(TINY[name])
    sizes = {leaf: math.prod(shape) for leaf, shape in shapes.items()}
    assert config.embedding_parameters == sizes["embed"]
    assert config.layer_parameters == sum(n for leaf, n in sizes.items() if leaf.startswith("layers.0."))
    assert config.dense_parameters == sum(n for leaf, n in sizes.items() if leaf.startswith("dense."))
    assert config.parameters + config.dense_parameters == sum(sizes.values())
    assert config.weight_bytes() == 2 * config.parameters
    assert config.weight_bytes(bits=4) == config.parameters // 2


def test_rope_frequencies() -> None:
    config = TINY["gemma3"]
    for i, (wide, near) in enumerate(
        zip(config.rope_frequencies("global"), config.rope_frequencies("local"), strict=True)
    ):
        assert wide == pytest.approx(1 / 400 ** (2 * i / config.head_dim) / 8, rel=1e-12)
        assert near == pytest.approx(1 / 20 ** (2 * i / config.head_dim), rel=1e-12)
    assert len(config.rope_frequencies("global")) == config.head_dim // 2


def test_windows_belong_to_local_layers() -> None:
    config = TINY["gemma2"]
    assert config.window("local") == 5
    assert config.window("global") is None
    assert config.kinds == ("local", "global")
    assert TINY["gemma"].kinds == ("global",)


def test_attention_scale_is_not_always_of_the_head() -> None:
    assert TINY["gemma2"].attention_scale == pytest.approx(7**-0.5, rel=1e-15)
    assert TINY["gemma2"].head_dim == 10


def test_kv_cache_bytes() -> None:
    """7 layers of 2 * 18 numbers a token, the 6 local ones keeping 4 tokens; in float32."""
    config = replace(TINY["gemma3-mqa"], head_dim=18, num_kv_heads=1)
    each = 2 * 18 * 4
    assert config.kv_bytes_per_token(4) == 7 * each
    assert config.kv_growth_per_token(4) == each
    assert config.kv_window_bytes(4) == 6 * 4 * each
    assert config.kv_cache_bytes(3, 4) == 7 * 3 * each
    assert config.kv_cache_bytes(30, 4) == config.kv_window_bytes(4) + 30 * each


def test_flops_per_token() -> None:
    """Two for each number of each matrix, the head's among them, and 4 H a head and key seen, for scores and values."""
    config = TINY["gemma2"]
    matrices = sum(math.prod(s) for name, s in leaf_shapes(config).items() if len(s) == 2)
    assert config.flops_per_token() == 2 * matrices
    keys = 2 * 5 + 2 * 30
    assert config.flops_per_token(30) == 2 * matrices + 4 * config.num_heads * config.head_dim * keys


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer_types": ("global",)}, "1 layer types for 4 layers"),
        ({"num_kv_heads": 4}, "6 query heads"),
        ({"sliding_window": None}, "sliding_window"),
        ({"head_dim": 7}, "even head_dim"),
    ],
)
def test_impossible_configs_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY["gemma2"], **fields)  # type: ignore[arg-type]


def test_a_config_is_frozen_and_hashable() -> None:
    config: Config = TINY["gemma"]
    with pytest.raises(AttributeError):
        config.num_layers = 2  # type: ignore[misc]
    assert len({config, replace(config), replace(config, vocab_size=3)}) == 2
