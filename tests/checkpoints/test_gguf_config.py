"""GGUF metadata of every model: what it says, what it leaves to be derived, what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gemmary import zoo
from gemmary.checkpoints.gguf_config import read_config, write_config
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from tests.tiny import TINY

CONFIGS = {row.name: replace(row.config, vision=None) for row in zoo.ZOO if not row.config.prefix_lm} | TINY


def as_read(config: Config, data: dict[str, Any]) -> dict[str, Any]:
    """Metadata as the parser gives it back: float32 numbers, bytes for text, arrays for lists."""

    def change(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return np.array(value, np.uint8)
        return float(np.float32(value)) if isinstance(value, float) else value

    return {k: change(v) for k, v in data.items()}


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return {t.gguf: t.shape for t in tensors(config)}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_config_survives(config: Config) -> None:
    said: list[str] = []
    data = write_config(config, said)
    assert read_config("x.gguf", as_read(config, data), shapes(config), []) == config
    # llama.cpp is warned of exactly the tiny models whose query scale it cannot derive.
    assert bool(said) == (config.query_pre_attn_scalar != config.head_dim and config.num_layers < 46)


def test_an_unusual_pattern_survives() -> None:
    config = replace(TINY["gemma3"], layer_types=("global", "local", "local", "global", *("local",) * 4))
    data = write_config(config, [])
    assert data["gemma3.attention.sliding_window_pattern"] == [False, True, True, False, True, True, True, True]
    assert read_config("x", as_read(config, data), shapes(config), []) == config
    period = {**as_read(config, data), "gemma3.attention.sliding_window_pattern": 2}
    assert read_config("x", period, shapes(config), []).layer_types == ("local", "global") * 4


def test_keys_that_old_files_leave_out_are_derived() -> None:
    def without(name: str, *keys: str) -> Config:
        config = CONFIGS[name]
        data = as_read(config, write_config(config, []))
        left = {k: v for k, v in data.items() if not k.endswith(keys)}
        return read_config("x", left, shapes(config), [])

    assert without("gemma-2-27b", "softcapping", "sliding_window", "freq_base") == CONFIGS["gemma-2-27b"]
    assert without("gemma-3-27b-it", "freq_base_swa") == CONFIGS["gemma-3-27b-it"]
    assert without("gemma-2b", "freq_base", "value_length", "key_length") == CONFIGS["gemma-2b"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"general.architecture": b"llama"}, "architecture 'llama'"),
        ({"general.architecture": 3}, "architecture ''"),
        ({"gemma3.block_count": 1 << 31}, "block_count"),
        ({"gemma3.block_count": None}, "gemma3.block_count is missing"),
        ({"gemma3.attention.value_length": 8}, "different lengths"),
        ({"gemma3.attention.head_count": np.array([4, 4], np.int32)}, "not a size"),
        ({"gemma3.rope.scaling.type": b"yarn"}, "yarn"),
        ({"gemma3.attention.sliding_window_pattern": np.zeros(3, np.uint8)}, "sliding_window_pattern"),
        ({"gemma3.attention.layer_norm_rms_epsilon": float("inf")}, "not a number above zero"),
        (
            {"tokenizer.ggml.tokens": (b"ab", np.array([0, 1, 2]))},
            "107 rows in its embedding table for a vocabulary of 2",
        ),
    ],
)
def test_metadata_of_other_models_is_refused(change: dict[str, Any], words: str) -> None:
    config = TINY["gemma3"]
    data = as_read(config, write_config(config, [])) | change
    with pytest.raises(GemmaryError) as caught:
        read_config("x.gguf", {k: v for k, v in data.items() if v is not None}, shapes(config), [])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_padded_rows_are_cut_to_the_vocabulary() -> None:
    config = CONFIGS["gemma-3-4b-it"]
    stored = shapes(config) | {"token_embd.weight": (262_208, 2560)}
    data = as_read(config, write_config(config, []))
    assert read_config("x", data, stored, []).vocab_size == 262_144
    data["tokenizer.ggml.tokens"] = (b"", np.zeros(262_145, np.int64))
    assert read_config("x", data, stored, []).vocab_size == 262_144
