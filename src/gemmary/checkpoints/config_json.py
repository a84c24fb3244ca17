"""Hugging Face's `config.json` <-> Config, in the dialects of transformers 4 and 5.

4: `rope_theta`, `rope_local_base_freq`, `rope_scaling`, `sliding_window_pattern`. 5: `rope_parameters`, `layer_types`.
What is written is 4's dialect plus `layer_types`: that of the official folders, which both read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from gemmary.checkpoints.fields import Fields, periodic, show
from gemmary.checkpoints.tensors import PADDED_ROWS
from gemmary.config import Config, Family, LayerType, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.zoo import alternating

MODEL_TYPES: dict[str, Family] = {"gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}
_PALIGEMMA: dict[str, Family] = {"gemma": "paligemma", "gemma2": "paligemma2"}
_ARCHITECTURES: dict[Family, tuple[str, str]] = {
    "gemma": ("gemma", "GemmaForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "paligemma": ("gemma", "GemmaForCausalLM"),
    "paligemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "embeddinggemma": ("gemma3_text", "Gemma3TextModel"),
}

# What transformers assumes for a key that a file leaves out. The official multimodal Gemma 3 files leave most out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {
        "vocab_size": 256_000,
        "hidden_size": 3072,
        "intermediate_size": 24_576,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "max_position_embeddings": 8192,
    },
    "gemma2": {
        "vocab_size": 256_000,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 8192,
    },
    "gemma3": {
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
}
_LAYER_TYPES: dict[str, LayerType] = {"sliding_attention": "local", "full_attention": "global"}

EMBEDDING_WINDOW = 512
_HALVED_EMBEDDING_WINDOW = 257
"""transformers halves EmbeddingGemma's window of 512 when it loads it, and until 5.x saved the half (spec ≠14)."""


def read_config(data: dict[str, Any], notices: list[str]) -> Config:
    """The Config of a parsed `config.json`, its pooled dense layers aside. What is unusual is told in `notices`.

    Raises GemmaryError for another kind of model, a key of the wrong type or range, or an option that no Gemma has.
    """
    model_type = data.get("model_type")
    if model_type == "paligemma":
        return _paligemma(data, notices)
    if model_type == "gemma3":
        return _gemma3(data, notices)
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        known = ", ".join((*MODEL_TYPES, "gemma3", "paligemma"))
        raise GemmaryError(f"config.json is of model_type {show(model_type)}: only {known} can be read")
    family = MODEL_TYPES[model_type]
    bidirectional = _flag(data, "use_bidirectional_attention", False)
    if bidirectional and family != "gemma3":
        raise GemmaryError(f"config.json: a bidirectional {family} model is not known")
    _refuse_other_models(data)

    get = Fields("config.json", {**_DEFAULTS[family], **{k: v for k, v in data.items() if v is not None}})
    layers = get.size("num_hidden_layers", most=1024)
    hidden_size, heads = get.size("hidden_size"), get.size("num_attention_heads")
    head_dim = get.size("head_dim", 256)
    rows = get.size("vocab_size", most=1 << 22)
    window = None if family == "gemma" else get.size("sliding_window", 4096, most=1 << 30)
    if bidirectional and window == _HALVED_EMBEDDING_WINDOW:
        window = EMBEDDING_WINDOW
        notices.append("config.json holds the window that transformers had halved (257): read as 512, as trained")
    theta, theta_local, factor = _rope(data, family)
    return get.config(
        family="embeddinggemma" if bidirectional else family,
        num_layers=layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=get.size("num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=get.size("intermediate_size"),
        vocab_size=PADDED_ROWS.get(rows, rows),
        context_length=get.size("max_position_embeddings", most=1 << 30),
        layer_types=_layer_types(data, family, layers),
        query_pre_attn_scalar=head_dim if family == "gemma" else get.number("query_pre_attn_scalar", 256),
        sliding_window=window,
        rope_theta=theta,
        rope_theta_local=theta_local,
        rope_scaling_factor=factor,
        attn_logit_softcap=_softcap(data, family, "attn_logit_softcapping", 50.0),
        final_logit_softcap=_softcap(data, family, "final_logit_softcapping", 30.0),
        post_norms=family != "gemma",
        qk_norm=family == "gemma3",
        bidirectional=bidirectional,
        rms_norm_eps=get.number("rms_norm_eps", 1e-6),
    )


def _gemma3(data: dict[str, Any], notices: list[str]) -> Config:
    """A Gemma 3 of 4B and more: its text, and the tower where the file speaks of one."""
    text, seen = data.get("text_config", {}), data.get("vision_config")
    if not isinstance(text, dict) or not isinstance(seen, dict | None):
        raise GemmaryError("config.json: text_config or vision_config is not an object")
    decoder = read_config({**text, "model_type": "gemma3_text"}, notices)
    if seen is None:
        return decoder
    _check_place(data, decoder)
    tokens = Fields("config.json", data).size("mm_tokens_per_image", 256)
    tower, side = _tower(seen, 896), math.isqrt(tokens)
    if side**2 != tokens or tower.side % side:
        raise GemmaryError(f"config.json: {tower.side} x {tower.side} patches do not become {tokens} tokens")
    return replace(decoder, vision=replace(tower, pool=tower.side // side, soft_norm=True))


def _paligemma(data: dict[str, Any], notices: list[str]) -> Config:
    """The decoder as big_vision runs it: no window and no cap of the logits, whatever the file copied from Gemma 2.

    (Spec 3.7. The cap moves no greedy token.)
    """
    stored = paligemma_as_stored(data, notices)
    if "local" in stored.layer_types or stored.final_logit_softcap:
        notices.append(
            "config.json's sliding window and cap of the logits are Gemma 2's: PaliGemma 2 runs without, unless "
            'loaded with conventions="transformers"'
        )
    layers = periodic(1, stored.num_layers)
    return replace(stored, layer_types=layers, sliding_window=None, final_logit_softcap=None)


def paligemma_as_stored(data: dict[str, Any], notices: list[str]) -> Config:
    """The same with the window and the cap of the logits that the file has, which transformers 5 heeds."""
    text, seen = data.get("text_config"), data.get("vision_config")
    if not isinstance(text, dict) or not isinstance(seen, dict) or text.get("model_type") not in _PALIGEMMA:
        raise GemmaryError("config.json: text_config (gemma or gemma2) or vision_config is missing")
    rows = text.get("vocab_size") or 257_216
    decoder = read_config({**text, "vocab_size": rows, "use_bidirectional_attention": None}, notices)
    _check_place(data, decoder)
    family = _PALIGEMMA[text["model_type"]]
    return replace(decoder, family=family, vision=_tower(seen, 224), prefix_lm=True)


def _check_place(data: dict[str, Any], decoder: Config) -> None:
    if (place := data.get("image_token_index", decoder.vocab_size)) != decoder.vocab_size:
        raise GemmaryError(
            f"config.json: image_token_index is {show(place)}, not the {decoder.vocab_size} after the text's"
        )


def _tower(seen: dict[str, Any], image_size: int) -> VisionConfig:
    """The tower of a vision_config; image_size: where it says none."""
    get = Fields("config.json", {k: v for k, v in seen.items() if v is not None}, "")
    try:
        return VisionConfig(
            image_size=get.size("image_size", image_size, most=4096),
            num_layers=get.size("num_hidden_layers", 27, most=1024),
            hidden_size=get.size("hidden_size", 1152),
            num_heads=get.size("num_attention_heads", 16),
            intermediate_size=get.size("intermediate_size", 4304),
            patch_size=get.size("patch_size", 14, most=1024),
            layer_norm_eps=get.number("layer_norm_eps", 1e-6),
        )
    except ValueError as error:
        raise GemmaryError(f"config.json: {error}") from None


def write_config(config: Config, dtype: str, eos_ids: list[int]) -> dict[str, Any]:
    """A `config.json` that transformers 4 and 5 load. dtype: of the stored weights ("bfloat16", …).

    Raises GemmaryError for a Config that no model_type of transformers can say.
    """
    data = _write_decoder(config, dtype, eos_ids)
    if config.vision:
        del data["architectures"]
        write = _write_paligemma if config.prefix_lm else _write_gemma3
        data = write(config, config.vision, data, dtype)
    _check_said(config, data)
    return data


def _write_decoder(config: Config, dtype: str, eos_ids: list[int]) -> dict[str, Any]:
    model_type, architecture = _ARCHITECTURES[config.family]
    data: dict[str, Any] = {
        "architectures": [architecture],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": eos_ids[0] if len(eos_ids) == 1 else eos_ids,
        "head_dim": config.head_dim,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "model_type": model_type,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": 0,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": dtype,
        "use_cache": not config.bidirectional,
        "vocab_size": config.vocab_size,
    }
    if config.family == "gemma":
        data["hidden_act"] = "gelu_pytorch_tanh"
    else:
        names = {kind: name for name, kind in _LAYER_TYPES.items()}
        data |= {
            "attn_logit_softcapping": config.attn_logit_softcap,
            "final_logit_softcapping": config.final_logit_softcap,
            "layer_types": [names[kind] for kind in config.layer_types],
            "query_pre_attn_scalar": int(config.query_pre_attn_scalar),  # transformers refuses 256.0
            "sliding_window": config.sliding_window,
        }
    if model_type == "gemma3_text":
        factor = config.rope_scaling_factor
        data |= {
            "rope_local_base_freq": config.rope_theta_local,
            "rope_scaling": None if factor == 1.0 else {"factor": factor, "rope_type": "linear"},
            "use_bidirectional_attention": config.bidirectional,
        }
    return data


def _write_gemma3(config: Config, vision: VisionConfig, text: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "eos_token_id": text["eos_token_id"],
        "image_token_index": config.image_token_id,
        "initializer_range": 0.02,
        "mm_tokens_per_image": vision.num_tokens,
        "model_type": "gemma3",
        "text_config": text,
        "torch_dtype": dtype,
        "vision_config": _write_tower(vision),
    }


def _write_paligemma(config: Config, vision: VisionConfig, text: dict[str, Any], dtype: str) -> dict[str, Any]:
    if config.family == "paligemma2":
        text["sliding_window"] = config.context_length  # transformers wants one: it sees everything
    images = {"num_image_tokens": vision.num_tokens}
    return {
        "architectures": ["PaliGemmaForConditionalGeneration"],
        "bos_token_id": 2,
        "eos_token_id": text["eos_token_id"],
        "hidden_size": config.hidden_size,
        "image_token_index": config.image_token_id,
        "model_type": "paligemma",
        "pad_token_id": 0,
        "projection_dim": config.hidden_size,
        "text_config": text | images,
        "torch_dtype": dtype,
        "vision_config": _write_tower(vision) | images | {"projection_dim": config.hidden_size},
    }


def _write_tower(vision: VisionConfig) -> dict[str, Any]:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": vision.hidden_size,
        "image_size": vision.image_size,
        "intermediate_size": vision.intermediate_size,
        "layer_norm_eps": vision.layer_norm_eps,
        "model_type": "siglip_vision_model",
        "num_attention_heads": vision.num_heads,
        "num_hidden_layers": vision.num_layers,
        "patch_size": vision.patch_size,
        "vision_use_head": False,
    }


def _check_said(config: Config, data: dict[str, Any]) -> None:
    """Reads back what will be written: a Config that the format cannot say must not become another model."""
    said = read_config(data, [])
    for field in Config.__dataclass_fields__:
        mine, theirs = getattr(config, field), getattr(said, field)
        if field != "pooled_dense" and mine != theirs:  # those stand in folders of their own
            raise GemmaryError(f"a Hugging Face {config.family} folder cannot say {field} = {mine} (it means {theirs})")


def _refuse_other_models(data: dict[str, Any]) -> None:
    if _flag(data, "attention_bias", False):
        raise GemmaryError("config.json: attention_bias is set, which no Gemma has")
    if not _flag(data, "tie_word_embeddings", True):
        raise GemmaryError("config.json: tie_word_embeddings is off, which no Gemma has")
    for key in ("hidden_activation", "hidden_act"):
        # Gemma 1.0 says "gelu" and means the tanh form, which it was trained with (trap T8).
        if data.get(key) not in (None, "gelu", "gelu_pytorch_tanh"):
            raise GemmaryError(f"config.json: {key} is {show(data[key])}, which no Gemma has")


def _layer_types(data: dict[str, Any], family: Family, layers: int) -> tuple[LayerType, ...]:
    if family == "gemma":
        return periodic(1, layers)
    stored = data.get("layer_types")
    if stored is not None:
        if not isinstance(stored, list) or not all(isinstance(kind, str) and kind in _LAYER_TYPES for kind in stored):
            raise GemmaryError(f"config.json: layer_types is not a list of {' and '.join(_LAYER_TYPES)}")
        return tuple(_LAYER_TYPES[kind] for kind in stored)
    if family == "gemma2":
        return alternating(layers)
    # 4.57 saved the period with an underscore before it.
    period = data.get("sliding_window_pattern", data.get("_sliding_window_pattern", 6))
    period = Fields("config.json", {"sliding_window_pattern": period}).size("sliding_window_pattern")
    return periodic(period, layers)


def _rope(data: dict[str, Any], family: Family) -> tuple[float, float, float]:
    """(base of the global layers, base of the local ones, divisor of the global layers' angles)."""
    rope = data.get("rope_parameters") or {}
    scaling = data.get("rope_scaling") or {}
    if not isinstance(rope, dict) or not isinstance(scaling, dict):
        raise GemmaryError("config.json: rope_parameters or rope_scaling is not an object")
    default = 1_000_000.0 if family == "gemma3" else 10_000.0
    if family != "gemma3":
        theta, factor = _rope_kind({"rope_theta": data.get("rope_theta"), **rope, **scaling}, default)
        if factor != 1.0:
            raise GemmaryError(f"config.json: RoPE scaling is not known for {family}")
        return theta, theta, 1.0
    far, near = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    if not isinstance(far, dict) or not isinstance(near, dict) or (rope and not (far or near)):
        raise GemmaryError("config.json: rope_parameters lacks full_attention and sliding_attention")
    theta, factor = _rope_kind({"rope_theta": data.get("rope_theta"), **far, **scaling}, default)
    theta_local, local_factor = _rope_kind({"rope_theta": data.get("rope_local_base_freq"), **near}, 10_000.0)
    if local_factor != 1.0:
        raise GemmaryError("config.json: RoPE scaling of the local layers is not known")
    return theta, theta_local, factor


def _rope_kind(rope: dict[str, Any], default: float) -> tuple[float, float]:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "linear"):
        raise GemmaryError(f"config.json: RoPE of type {show(kind)} is not known for Gemma")
    get = Fields("config.json", {k: v for k, v in rope.items() if v is not None})
    return get.number("rope_theta", default), get.number("factor", 1.0) if kind == "linear" else 1.0


def _softcap(data: dict[str, Any], family: Family, key: str, default: float) -> float | None:
    """Gemma 2 has the caps unless they are set to null; Gemma 3 has none unless they are set."""
    if family == "gemma" or data.get(key, 0) is None or (key not in data and family != "gemma2"):
        return None
    return Fields("config.json", data).number(key, default)


def _flag(data: dict[str, Any], key: str, default: bool) -> bool:
    value = data.get(key)
    if value is not None and not isinstance(value, bool):
        raise GemmaryError(f"config.json: {key} is neither true nor false")
    return default if value is None else value
