"""GGUF metadata <-> Config. GGUF leaves out what llama.cpp derives, so reading has to derive the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from gemmary.checkpoints.fields import Fields, periodic, show
from gemmary.checkpoints.tensors import PADDED_ROWS
from gemmary.config import Config, Family, LayerType
from gemmary.errors import GemmaryError
from gemmary.zoo import alternating, five_to_one

ARCHITECTURES: dict[str, Family] = {
    "gemma": "gemma",
    "gemma2": "gemma2",
    "gemma3": "gemma3",
    "gemma-embedding": "embeddinggemma",
}
_NAMES = {family: name for name, family in ARCHITECTURES.items()}
_DERIVED_QUERY_SCALE = {("gemma2", 46), ("gemma3", 62)}
"""(architecture, layers) of the 27B models, whose scores are scaled by hidden_size / heads (trap T9)."""


def read_config(where: str, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], notices: list[str]) -> Config:
    """The Config of a file's metadata and its tensors' shapes (rows first).

    Raises GemmaryError for another architecture, or a key of the wrong type or range.
    """
    stored = metadata.get("general.architecture")
    arch = stored.decode("ascii", "replace") if isinstance(stored, bytes) else ""
    if arch not in ARCHITECTURES:
        raise GemmaryError(f"{where} is of architecture {show(arch)}: only {', '.join(ARCHITECTURES)} can be read")
    family = ARCHITECTURES[arch]
    get = Fields(where, metadata, arch + ".")
    layers = get.size("block_count", most=1024)
    hidden_size, heads = get.size("embedding_length"), get.size("attention.head_count")
    head_dim = get.size("attention.key_length", max(1, hidden_size // heads))
    if get.size("attention.value_length", head_dim) != head_dim:
        raise GemmaryError(f"{where}: keys and values of different lengths are not known for Gemma")
    if metadata.get("tokenizer.ggml.add_bos_token") is False:
        notices.append("the file asks for no BOS token; it is added all the same, as Gemma needs it")
    layer_types = _layer_types(where, metadata, arch, layers)
    window = get.size("attention.sliding_window", 4096 if family == "gemma2" else None, most=1 << 30) \
        if "local" in layer_types else None  # fmt: skip
    theta = get.number("rope.freq_base", 10_000.0)
    pooled = _pooled_dense(where, shapes)
    if family == "embeddinggemma" and not pooled:
        notices.append("the file has no dense_2 and dense_3: sentence embeddings are the pooled states themselves")
    return get.config(
        family=family,
        num_layers=layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=get.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        intermediate_size=get.size("feed_forward_length"),
        vocab_size=_vocab_size(where, metadata, shapes),
        context_length=get.size("context_length", most=1 << 30),
        layer_types=layer_types,
        query_pre_attn_scalar=_query_scalar(get, arch, layers, hidden_size, heads, head_dim),
        sliding_window=window,
        rope_theta=theta,
        rope_theta_local=get.number("rope.freq_base_swa", _local_theta(family, theta)),
        rope_scaling_factor=_rope_factor(where, metadata, get, arch),
        attn_logit_softcap=get.number("attn_logit_softcapping", 50.0) if family == "gemma2" else None,
        final_logit_softcap=_final_softcap(metadata, get, arch),
        post_norms=family != "gemma",
        qk_norm=family in ("gemma3", "embeddinggemma"),
        bidirectional=family == "embeddinggemma",
        pooled_dense=pooled,
        rms_norm_eps=as_written(get.number("attention.layer_norm_rms_epsilon")),
    )


def write_config(config: Config, notices: list[str]) -> dict[str, Any]:
    """The metadata of a Config: ints as uint32, floats as float32, lists of bool as arrays.

    `notices` says where llama.cpp, which derives a number instead of reading it, will compute something else.
    Raises GemmaryError for a Config that the format cannot say.
    """
    arch = _NAMES[config.family]
    data: dict[str, Any] = {
        "context_length": config.context_length,
        "embedding_length": config.hidden_size,
        "block_count": config.num_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
    }
    if config.sliding_window:
        data["attention.sliding_window"] = config.sliding_window
    if config.rope_theta_local != _local_theta(config.family, config.rope_theta):
        data["rope.freq_base_swa"] = config.rope_theta_local
    if config.rope_scaling_factor != 1.0:
        data |= {"rope.scaling.type": "linear", "rope.scaling.factor": config.rope_scaling_factor}
    if config.attn_logit_softcap:
        data["attn_logit_softcapping"] = config.attn_logit_softcap
    if config.final_logit_softcap:
        data["final_logit_softcapping"] = config.final_logit_softcap
    if "local" in config.layer_types and config.layer_types != _usual_layer_types(config.family, config.num_layers):
        data["attention.sliding_window_pattern"] = [kind == "local" for kind in config.layer_types]
    for i, (inside, outside) in enumerate(zip(_widths(config), config.pooled_dense, strict=False)):
        data |= {f"dense_{i + 2}_feat_in": inside, f"dense_{i + 2}_feat_out": outside}
    if config.bidirectional:
        data["pooling_type"] = 1  # mean
    scalar = config.query_pre_attn_scalar
    usual = _usual_query_scalar(arch, config.num_layers, config.hidden_size, config.num_heads, config.head_dim)
    if scalar != usual:
        data["attention.scale"] = config.attention_scale
        notices.append(f"llama.cpp takes the query scale of this size for {usual:g} and will not follow {scalar:g}")
    return {f"{arch}.{key}": value for key, value in data.items()} | {"general.architecture": arch}


def _widths(config: Config) -> tuple[int, ...]:
    return (config.hidden_size, *config.pooled_dense)


def _usual_layer_types(family: Family, layers: int) -> tuple[LayerType, ...]:
    if family == "gemma":
        return periodic(1, layers)
    return alternating(layers) if family == "gemma2" else five_to_one(layers)


def _layer_types(where: str, metadata: dict[str, Any], arch: str, layers: int) -> tuple[LayerType, ...]:
    """The family's pattern, unless the file carries a period or one truth value a layer (true: local)."""
    family = ARCHITECTURES[arch]
    if family == "gemma" or (family == "gemma3" and f"{arch}.attention.sliding_window" not in metadata):
        return periodic(1, layers)
    pattern = metadata.get(f"{arch}.attention.sliding_window_pattern")
    if pattern is None:
        return _usual_layer_types(family, layers)
    if type(pattern) is int and 1 <= pattern <= 1024:
        return periodic(pattern, layers)
    if isinstance(pattern, np.ndarray) and pattern.dtype == np.uint8 and len(pattern) == layers:
        kinds: list[LayerType] = ["local" if local else "global" for local in pattern]
        return tuple(kinds)
    raise GemmaryError(f"{where}: its sliding_window_pattern is neither a period nor a truth value for each layer")


def _local_theta(family: Family, theta: float) -> float:
    """The base of the local layers where a file does not say it."""
    return 10_000.0 if family in ("gemma3", "embeddinggemma") else theta


def _rope_factor(where: str, metadata: dict[str, Any], get: Fields, arch: str) -> float:
    kind = metadata.get(f"{arch}.rope.scaling.type", b"none")
    if kind not in (b"none", b"linear"):
        raise GemmaryError(f"{where}: RoPE scaling of type {show(kind)} is not known for Gemma")
    factor = get.number("rope.scaling.factor") if kind == b"linear" else 1.0
    if factor != 1.0 and ARCHITECTURES[arch] in ("gemma", "gemma2"):
        raise GemmaryError(f"{where}: RoPE scaling is not known for {arch}")
    return factor


def _final_softcap(metadata: dict[str, Any], get: Fields, arch: str) -> float | None:
    """Gemma 2 has it (30 where an old file leaves it out); the others have it only where the file says so."""
    if arch == "gemma2":
        return get.number("final_logit_softcapping", 30.0)
    return get.number("final_logit_softcapping") if f"{arch}.final_logit_softcapping" in metadata else None


def _query_scalar(get: Fields, arch: str, layers: int, hidden_size: int, heads: int, head_dim: int) -> float:
    usual = _usual_query_scalar(arch, layers, hidden_size, heads, head_dim)
    scale = get.number("attention.scale", usual**-0.5)
    # The scalars are whole numbers; the file's float32 holds their inverse square root.
    return float(round(scale**-2)) if abs(scale**-2 - round(scale**-2)) < 1e-4 else scale**-2


def _usual_query_scalar(arch: str, layers: int, hidden_size: int, heads: int, head_dim: int) -> int:
    return max(1, hidden_size // heads) if (arch, layers) in _DERIVED_QUERY_SCALE else head_dim


def _vocab_size(where: str, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> int:
    rows = shapes.get("token_embd.weight", (0,))[0]
    if not rows:
        raise GemmaryError(f"{where} lacks token_embd.weight")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return PADDED_ROWS.get(rows, rows)
    count = len(tokens[1]) - 1 if isinstance(tokens, tuple) else 0
    if count != rows and PADDED_ROWS.get(rows) != count:
        raise GemmaryError(f"{where} has {rows} rows in its embedding table for a vocabulary of {count}")
    return count


def _pooled_dense(where: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    found = [shapes.get(f"dense_{i}.weight") for i in (2, 3)]
    if found == [None, None]:
        return ()
    if any(shape is None or len(shape) != 2 for shape in found):
        raise GemmaryError(f"{where} has only one of dense_2 and dense_3, or not as a matrix")
    return tuple(shape[0] for shape in found if shape is not None)


def as_written(value: float) -> float:
    """A float32 as the short decimal it was written from: 1e-06, not 9.99999997e-07."""
    return float(f"{value:.7g}")
