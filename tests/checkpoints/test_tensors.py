"""The tensor table against the parameter counts of the zoo and the names of transformers."""

from __future__ import annotations

from math import prod

import pytest

from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.zoo import ZOO
from tests.tiny import TINY, leaf_shapes

CONFIGS = list({row.config: row.name for row in ZOO}.items())


@pytest.mark.parametrize("config", [c for c, _ in CONFIGS], ids=[n for _, n in CONFIGS])
def test_table_has_every_parameter(config: Config) -> None:
    table = tensors(config)
    decoder = [t for t in table if not t.is_pooled_dense and not t.name.startswith("vision.")]
    assert sum(prod(t.shape) for t in decoder) == config.parameters
    tower = [t for t in table if t.name.startswith("vision.")]
    assert sum(prod(t.shape) + t.bias * t.shape[0] for t in tower) == config.vision_parameters
    assert sum(prod(t.shape) for t in table if t.is_pooled_dense) == config.dense_parameters
    for names in ([t.name for t in table], [t.hugging_face for t in table], [t.gguf for t in table]):
        assert len(set(names)) == len(table)


@pytest.mark.parametrize("name", TINY)
def test_leaf_names_and_shapes_are_the_models(name: str) -> None:
    assert {t.name: t.shape for t in tensors(TINY[name])} == leaf_shapes(TINY[name])


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3", "embeddinggemma"])
def test_names_and_shapes_equal_transformers(name: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = TINY[name]
    data = write_config(config, "float32", [1])
    kind = transformers.AutoModel if config.bidirectional else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(transformers.AutoConfig.for_model(**data))
    theirs = {k: tuple(v.shape) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    prefix = "" if config.bidirectional else "model."
    assert {prefix + t.hugging_face: t.shape for t in tensors(config) if not t.is_pooled_dense} == theirs


def test_gemma_1_calls_its_second_norm_post_attention() -> None:
    names = {t.name: t.hugging_face for t in tensors(TINY["gemma"])}
    assert names["layers.1.ffn_norm"] == "layers.1.post_attention_layernorm.weight"
    names = {t.name: t.hugging_face for t in tensors(TINY["gemma2"])}
    assert names["layers.1.ffn_norm"] == "layers.1.pre_feedforward_layernorm.weight"
    assert names["layers.1.post_attn_norm"] == "layers.1.post_attention_layernorm.weight"
