"""`config.json` in the dialects that exist, the official folders' own among them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gemmary import zoo
from gemmary.checkpoints.config_json import read_config, write_config
from gemmary.config import Config
from gemmary.errors import GemmaryError
from tests.tiny import TINY

CONFIGS = {row.name: replace(row.config, pooled_dense=()) for row in zoo.ZOO}

# The keys that matter of the official folders' files.
GEMMA_2B: dict[str, Any] = {
    "model_type": "gemma",
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA2_27B: dict[str, Any] = {
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "head_dim": 128,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 4608,
    "intermediate_size": 36864,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 46,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "vocab_size": 256000,
}
OFFICIAL_TOWER: dict[str, Any] = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}
GEMMA3_4B: dict[str, Any] = {
    "model_type": "gemma3",
    "boi_token_index": 255999,
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "image_token_index": 262144,
    "mm_tokens_per_image": 256,
    "vision_config": OFFICIAL_TOWER,
}
GEMMA3_27B: dict[str, Any] = {
    "model_type": "gemma3",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "model_type": "gemma3_text",
        "num_attention_heads": 32,
        "num_hidden_layers": 62,
        "num_key_value_heads": 16,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": OFFICIAL_TOWER,
}
GEMMA3_1B: dict[str, Any] = {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
EMBEDDING: dict[str, Any] = {
    **GEMMA3_1B,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "max_position_embeddings": 2048,
    "num_attention_heads": 3,
    "num_hidden_layers": 24,
    "use_bidirectional_attention": True,
}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (GEMMA_2B, "gemma-2b"),
        (GEMMA2_27B, "gemma-2-27b"),
        (GEMMA3_4B, "gemma-3-4b-it"),
        (GEMMA3_27B, "gemma-3-27b-pt"),
        (GEMMA3_1B, "gemma-3-1b-pt"),
        (EMBEDDING, "embeddinggemma-300m"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_official_files_are_the_zoo(data: dict[str, Any], name: str) -> None:
    notices: list[str] = []
    assert read_config(data, notices) == CONFIGS[name]
    assert notices == []


@pytest.mark.parametrize("config", [*CONFIGS.values(), *TINY.values()], ids=[*CONFIGS, *TINY])
def test_what_is_written_is_read(config: Config) -> None:
    data = json.loads(json.dumps(write_config(config, "bfloat16", [1, 106])))
    assert read_config(data, []) == replace(config, pooled_dense=())


@pytest.mark.parametrize("config", [*CONFIGS.values(), *TINY.values()], ids=[*CONFIGS, *TINY])
def test_transformers_means_the_same(config: Config) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.AutoConfig.for_model(**write_config(config, "bfloat16", [1, 106]))
    assert theirs.eos_token_id == [1, 106]
    # What transformers 5 saves is in its own dialect: rope_parameters, layer_types.
    data = json.loads(theirs.to_json_string())
    assert "rope_parameters" in data.get("text_config", data)
    assert read_config(data, []) == replace(config, pooled_dense=())


def test_a_window_that_transformers_had_halved_is_doubled_and_told() -> None:
    notices: list[str] = []
    assert read_config({**EMBEDDING, "sliding_window": 257}, notices).sliding_window == 512
    assert len(notices) == 1
    assert "257" in notices[0]


def test_padded_vocabularies_are_cut() -> None:
    assert read_config({**GEMMA3_1B, "vocab_size": 262_208}, []).vocab_size == 262_144
    assert read_config({**GEMMA_2B, "vocab_size": 256_128}, []).vocab_size == 256_000


def test_gemma_2_softcaps_default_to_set_and_can_be_switched_off() -> None:
    absent = {k: v for k, v in GEMMA2_27B.items() if "softcapping" not in k}
    assert read_config(absent, []) == CONFIGS["gemma-2-27b"]
    off = read_config({**GEMMA2_27B, "attn_logit_softcapping": None}, [])
    assert (off.attn_logit_softcap, off.final_logit_softcap) == (None, 30.0)


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (GEMMA_2B, {"model_type": "llama"}, "model_type 'llama'"),
        (GEMMA_2B, {"model_type": ["gemma"]}, "model_type"),
        (GEMMA_2B, {"attention_bias": True}, "attention_bias"),
        (GEMMA_2B, {"tie_word_embeddings": False}, "tie_word_embeddings"),
        (GEMMA_2B, {"hidden_act": "silu"}, "hidden_act is 'silu'"),
        (GEMMA_2B, {"use_bidirectional_attention": True}, "bidirectional"),
        (GEMMA_2B, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling"),
        (GEMMA_2B, {"num_hidden_layers": 1 << 40}, "num_hidden_layers"),
        (GEMMA_2B, {"num_hidden_layers": True}, "num_hidden_layers"),
        (GEMMA_2B, {"num_key_value_heads": 3}, "do not divide"),
        (GEMMA_2B, {"head_dim": 7}, "even head_dim"),
        (GEMMA_2B, {"rope_theta": float("nan")}, "rope_theta"),
        (GEMMA_2B, {"rms_norm_eps": "1e-6"}, "rms_norm_eps"),
        (GEMMA2_27B, {"layer_types": ["full_attention"]}, "1 layer types for 46 layers"),
        (GEMMA2_27B, {"layer_types": ["chunked_attention"] * 46}, "layer_types"),
        (GEMMA2_27B, {"query_pre_attn_scalar": -1}, "query_pre_attn_scalar"),
        (GEMMA3_1B, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'"),
        (GEMMA3_1B, {"rope_parameters": {"rope_theta": 5.0}}, "rope_parameters"),
        (GEMMA3_1B, {"sliding_window_pattern": 0}, "sliding_window_pattern"),
        (GEMMA3_4B, {"text_config": []}, "text_config"),
        (GEMMA3_4B, {"image_token_index": 5}, "image_token_index is 5, not the 262144"),
        (GEMMA3_4B, {"mm_tokens_per_image": 250}, "64 x 64 patches do not become 250 tokens"),
        (GEMMA3_4B, {"mm_tokens_per_image": 9}, "64 x 64 patches do not become 9 tokens"),
    ],
)
def test_other_models_are_refused(base: dict[str, Any], change: dict[str, Any], words: str) -> None:
    with pytest.raises(GemmaryError) as caught:
        read_config({**base, **change}, [])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [{"exact_embedding_scale": True}, {"attn_logit_softcap": 50.0}, {"rope_theta_local": 5.0}]
)
def test_a_config_that_the_format_cannot_say_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(GemmaryError, match=f"cannot say {next(iter(change))}"):
        write_config(replace(TINY["gemma"], **change), "float32", [1])
