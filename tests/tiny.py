"""Tiny models of every family, at odd sizes at which each feature changes the logits, with random typed leaves.

Windows are shorter than the texts of the tests, softcaps small enough to bend, RoPE bases low enough to turn within a
few positions, query scales unlike the head size (as in the 27B models), and heads * head_dim unlike the width. The
names ending in `-q32` and `-q256` have every row length a multiple of 32 or of 256, for block-quantized leaves.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from gemmary.config import Config
from gemmary.quantize.leaves import Dense, Leaf
from gemmary.zoo import alternating, five_to_one


def _gemma(*, layers: int, d: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int) -> Config:
    return Config(
        family="gemma",
        num_layers=layers,
        hidden_size=d,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        context_length=64,
        layer_types=("global",) * layers,
        query_pre_attn_scalar=head_dim,
        rope_theta=60.0,
        rope_theta_local=60.0,
    )


def _gemma2(
    *, layers: int, d: int, heads: int, kv_heads: int, head_dim: int, ffn: int, vocab: int, query_scalar: float
) -> Config:
    return Config(
        family="gemma2",
        num_layers=layers,
        hidden_size=d,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        context_length=64,
        layer_types=alternating(layers),
        query_pre_attn_scalar=query_scalar,
        sliding_window=5,
        rope_theta=60.0,
        rope_theta_local=60.0,
        attn_logit_softcap=1.5,
        final_logit_softcap=2.5,
        post_norms=True,
    )


def _gemma3(
    *,
    layers: int,
    d: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    query_scalar: float,
    window: int = 4,
    factor: float = 1.0,
    pooled_dense: tuple[int, ...] = (),
) -> Config:
    return Config(
        family="embeddinggemma" if pooled_dense else "gemma3",
        num_layers=layers,
        hidden_size=d,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=ffn,
        vocab_size=vocab,
        context_length=64,
        layer_types=five_to_one(layers),
        query_pre_attn_scalar=query_scalar,
        sliding_window=window,
        rope_theta=400.0,
        rope_theta_local=20.0,
        rope_scaling_factor=factor,
        post_norms=True,
        qk_norm=True,
        bidirectional=bool(pooled_dense),
        pooled_dense=pooled_dense,
    )


TINY: dict[str, Config] = {
    # MQA, as Gemma 1 2B; then MHA, as Gemma 1 7B.
    "gemma": _gemma(layers=3, d=35, heads=5, kv_heads=1, head_dim=6, ffn=53, vocab=101),
    "gemma-mha": _gemma(layers=2, d=33, heads=3, kv_heads=3, head_dim=14, ffn=47, vocab=97),
    # GQA with the query scale of 27B: hidden_size / heads = 7, not head_dim = 10; then head_dim, as 2B and 9B.
    "gemma2": _gemma2(layers=4, d=42, heads=6, kv_heads=2, head_dim=10, ffn=59, vocab=103, query_scalar=7),
    "gemma2-head-scale": _gemma2(layers=3, d=38, heads=2, kv_heads=1, head_dim=22, ffn=61, vocab=89, query_scalar=22),
    # One global layer in a period cut short; linear scaling and the 27B query scale; then neither, as 270M and 1B.
    "gemma3": _gemma3(layers=8, d=44, heads=4, kv_heads=2, head_dim=6, ffn=57, vocab=107, query_scalar=11, factor=8.0),
    "gemma3-mqa": _gemma3(layers=7, d=39, heads=3, kv_heads=1, head_dim=18, ffn=43, vocab=83, query_scalar=18),
    "embeddinggemma": _gemma3(
        layers=7,
        d=39,
        heads=3,
        kv_heads=1,
        head_dim=14,
        ffn=45,
        vocab=91,
        query_scalar=14,
        window=6,
        pooled_dense=(81, 39),
    ),
    # Row lengths for blocks of 32 (hidden_size, heads * head_dim, intermediate_size, dense widths).
    "gemma-q32": _gemma(layers=2, d=64, heads=2, kv_heads=1, head_dim=48, ffn=160, vocab=101),
    "gemma2-q32": _gemma2(layers=3, d=96, heads=4, kv_heads=2, head_dim=16, ffn=160, vocab=103, query_scalar=24),
    "gemma3-q32": _gemma3(
        layers=7, d=64, heads=4, kv_heads=2, head_dim=24, ffn=96, vocab=107, query_scalar=16, factor=8.0
    ),
    "embeddinggemma-q32": _gemma3(
        layers=7,
        d=96,
        heads=2,
        kv_heads=1,
        head_dim=32,
        ffn=64,
        vocab=91,
        query_scalar=32,
        window=6,
        pooled_dense=(128, 96),
    ),
    # ... and for the 256 of the K types.
    "gemma-q256": _gemma(layers=2, d=256, heads=2, kv_heads=1, head_dim=128, ffn=512, vocab=101),
    "gemma2-q256": _gemma2(layers=2, d=256, heads=4, kv_heads=2, head_dim=128, ffn=256, vocab=103, query_scalar=64),
    "gemma3-q256": _gemma3(
        layers=7, d=256, heads=4, kv_heads=1, head_dim=64, ffn=512, vocab=107, query_scalar=64, factor=8.0
    ),
}

ODD = tuple(name for name in TINY if "-q" not in name)
"""The names for parity tests: every family at odd sizes."""


def leaf_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every leaf of the model, by our name (those of `model/leaves.py`)."""
    d, ffn = config.hidden_size, config.intermediate_size
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "q": (config.query_size, d),
        "k": (config.kv_size, d),
        "v": (config.kv_size, d),
        "o": (d, config.query_size),
        "ffn_norm": (d,),
        "gate": (ffn, d),
        "up": (ffn, d),
        "down": (d, ffn),
    }
    if config.qk_norm:
        layer |= {"q_norm": (config.head_dim,), "k_norm": (config.head_dim,)}
    if config.post_norms:
        layer |= {"post_attn_norm": (d,), "post_ffn_norm": (d,)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (config.vocab_size, d), "final_norm": (d,)}
    widths = (d, *config.pooled_dense)
    shapes |= {f"dense.{i}": (widths[i + 1], widths[i]) for i in range(len(config.pooled_dense))}
    shapes |= {f"layers.{i}.{name}": shape for i in range(config.num_layers) for name, shape in layer.items()}
    return shapes


def random_leaves(config: Config, seed: int = 0, scale: float = 2.0) -> Callable[[str], Leaf]:
    """Float32 leaves for `config`, the same for the same seed whatever order they are asked for in.

    Matrices have the standard deviation scale / sqrt(columns): with the default, attention scores and logits spread
    over several units, so that softcaps bend and softmaxes are far from flat. Norm weights have 0.3 around zero.
    """
    shapes = leaf_shapes(config)

    def lookup(name: str) -> Leaf:
        shape = shapes[name]
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        spread = 0.3 if len(shape) == 1 else scale / shape[-1] ** 0.5
        return Dense((rng.standard_normal(shape) * spread).astype(np.float32))

    return lookup


def random_tokens(config: Config, count: int, seed: int = 0) -> list[int]:
    """`count` ids, any of the vocabulary but 0 (padding in transformers)."""
    return [int(t) for t in np.random.default_rng([seed, count]).integers(1, config.vocab_size, count)]
