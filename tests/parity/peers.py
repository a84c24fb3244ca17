"""The same tiny models in transformers, with the same weights, and what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from tests.runs import Array, Lookup

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def randomize(model: Any) -> Any:
    """The same model, with a tower, with random weights that are bfloat16 already and make every part of it count."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = 0.3 if weight.ndim == 1 or "position" in name else 1.5 / weight[0].numel() ** 0.5
            weight.normal_(0, spread)
            if "layer_norm" in name or "post_layernorm" in name:
                weight.add_(float(name.endswith("weight")))
            weight.copy_(weight.bfloat16())
    return model.eval()


def peer_config(config: Config) -> Any:
    """The transformers configuration of a tiny model, written by hand from its fields."""
    shared: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.rms_norm_eps,
        "attn_implementation": "eager",
        "pad_token_id": 0,
    }
    one_rope = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.family == "gemma":
        return transformers.GemmaConfig(**shared, rope_parameters=one_rope)
    shared |= {
        "query_pre_attn_scalar": int(config.query_pre_attn_scalar),
        "sliding_window": config.sliding_window,
        "layer_types": ["full_attention" if t == "global" else "sliding_attention" for t in config.layer_types],
    }
    if config.family == "gemma2":
        return transformers.Gemma2Config(
            **shared,
            rope_parameters=one_rope,
            attn_logit_softcapping=config.attn_logit_softcap,
            final_logit_softcapping=config.final_logit_softcap,
        )
    if config.rope_scaling_factor != 1:
        one_rope |= {"rope_type": "linear", "factor": config.rope_scaling_factor}
    local_rope = {"rope_type": "default", "rope_theta": config.rope_theta_local}
    return transformers.Gemma3TextConfig(
        **shared,
        rope_parameters={"full_attention": one_rope, "sliding_attention": local_rope},
        use_bidirectional_attention=config.bidirectional,
    )


PEER_CLASSES = {
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "embeddinggemma": "Gemma3TextModel",
}


def peer(config: Config, lookup: Lookup, dtype: Any = None, training_scale: bool = True) -> Any:
    """The model in transformers (eager attention, which keeps softcaps), loaded strictly.

    training_scale: transformers rounds its embedding normaliser sqrt(hidden_size) to the dtype of the weights, so to
    bfloat16 as in training only where they are bfloat16 (spec §1.5). Ours is bfloat16's in every dtype. True puts the
    value of training in the float32 peer as well; False leaves it as it is.
    """
    dtype = dtype or torch.float32
    made = getattr(transformers, PEER_CLASSES[config.family])(peer_config(config)).to(dtype).eval()
    prefix = "" if config.pooled_dense else "model."
    state = {
        prefix + t.hugging_face: torch.tensor(lookup(t.name).dequantize()).to(dtype)
        for t in tensors(config)
        if not t.is_pooled_dense
    }
    if not config.pooled_dense:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    made.load_state_dict(state, strict=True)
    if training_scale:
        made.get_input_embeddings().embed_scale.fill_(config.embedding_scale)
    return made


def peer_logits(model: Any, tokens: Sequence[int], masks: dict[str, npt.NDArray[np.bool_]] | None = None) -> Array:
    """Every position's logits [T, V] (hidden states of a base model) from one forward pass over the sequence.

    masks: for each of transformers' layer types a [T, T] array, True where query (row) sees key; None: its own.
    """
    attention_mask: Any = None
    if masks is not None:
        least = torch.finfo(torch.float32).min
        additive = {kind: torch.where(torch.tensor(mask), 0.0, least)[None, None] for kind, mask in masks.items()}
        attention_mask = additive if len(additive) > 1 else additive["full_attention"]
    with torch.inference_mode():
        out = model(torch.tensor([list(tokens)]), attention_mask=attention_mask, use_cache=False)
    return _first(out)


def peer_decode(model: Any, tokens: Sequence[int], prompt: int) -> Array:
    """The same logits from transformers' own cache: the prompt in one pass, then token by token."""
    cache, rows = None, []
    pieces = [list(tokens[:prompt]), *([t] for t in tokens[prompt:])]
    with torch.inference_mode():
        for piece in pieces:
            out = model(torch.tensor([piece]), past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(_first(out))
    return np.concatenate(rows)


def _first(out: Any) -> Array:
    values = out.logits if hasattr(out, "logits") else out.last_hidden_state
    array: Array = values[0].float().numpy()
    return array
