"""Adapters in half precision are what they were, and are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gemmary.checkpoints.peft import Adapter, AdapterConfig, LoraWeights, linear_names, read_adapter, write_adapter
from gemmary.errors import GemmaryError
from recipes.half import halve
from tests.tiny import TINY

CONFIG = TINY["gemma3-mqa"]


def adapter(size: float) -> Adapter:
    generator = np.random.default_rng(0)
    names = {tensor.name: tensor.shape for tensor in linear_names(CONFIG).values() if tensor.name.endswith(".up")}
    weights = {
        name: LoraWeights(
            generator.normal(size=(4, shape[1])).astype(np.float32),
            (size * generator.normal(size=(shape[0], 4))).astype(np.float32),
            scale=2.0,
        )
        for name, shape in names.items()
    }
    return Adapter(AdapterConfig(rank=4, alpha=8.0, targets=("up_proj",)), weights)


def test_a_halved_adapter_is_read_as_it_was(tmp_path: Path) -> None:
    write_adapter(tmp_path / "whole", adapter(0.01))
    worst = halve(tmp_path / "whole", tmp_path / "half", "org/base")
    assert 0 < worst < 2**-11
    before, after = (read_adapter(tmp_path / name, CONFIG) for name in ("whole", "half"))
    assert after.config == replace(before.config, base_model="org/base")
    for name, weights in before.weights.items():
        np.testing.assert_allclose(after.weights[name].a, weights.a, rtol=2**-10, atol=1e-7)
        assert after.weights[name].scale == weights.scale
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_numbers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_adapter(tmp_path / "whole", adapter(1e6))
    with pytest.raises(GemmaryError, match="float16 cannot hold"):
        halve(tmp_path / "whole", tmp_path / "half")
    assert not (tmp_path / "half" / "adapter_model.safetensors").exists()
