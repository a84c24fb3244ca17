"""The Gemma series: one row for each released variant, and its short name.

Sources of the sizes: the Gemma 1, 2 and 3 reports and the reference configurations of google-deepmind/gemma, checked
against each other (the shared specification's table 1.2); of the models that see, big_vision's (3.1, 3.7).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from gemmary.config import Config, Family, LayerType, VisionConfig
from gemmary.errors import GemmaryError

Tuning = Literal["pretrained", "instruction", "fill-in-the-middle", "safety", "embedding", "mix"]


@dataclass(frozen=True)
class Variant:
    """A released checkpoint."""

    name: str
    """Short name, as the command line takes it."""
    hub_id: str
    config: Config
    tuning: Tuning


_GLOBAL: tuple[LayerType, ...] = ("global",)


def _gemma1(num_layers: int, hidden_size: int, heads: int, kv_heads: int, intermediate_size: int) -> Config:
    return Config(
        family="gemma",
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=256,
        intermediate_size=intermediate_size,
        vocab_size=256_000,
        context_length=8192,
        layer_types=_GLOBAL * num_layers,
        query_pre_attn_scalar=256,
    )


def _gemma2(
    num_layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    query_scalar: float = 256,
) -> Config:
    return Config(
        family="gemma2",
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=256_000,
        context_length=8192,
        layer_types=alternating(num_layers),
        sliding_window=4096,
        query_pre_attn_scalar=query_scalar,
        attn_logit_softcap=50.0,
        final_logit_softcap=30.0,
        post_norms=True,
    )


def _gemma3(
    num_layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    *,
    context_length: int = 131_072,
    sliding_window: int = 1024,
    rope_scaling_factor: float = 8.0,
    query_scalar: float = 256,
) -> Config:
    return Config(
        family="gemma3",
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        vocab_size=262_144,
        context_length=context_length,
        layer_types=five_to_one(num_layers),
        sliding_window=sliding_window,
        query_pre_attn_scalar=query_scalar,
        rope_theta=1_000_000.0,
        rope_scaling_factor=rope_scaling_factor,
        post_norms=True,
        qk_norm=True,
    )


def _gemma3_sees(decoder: Config) -> Config:
    """Gemma 3 of 4B and more: 64 x 64 patches, 16 of which become one of 256 tokens (spec 1.7)."""
    return replace(decoder, vision=VisionConfig(896, pool=4, soft_norm=True))


def _sees(decoder: Config, family: Family, image_size: int) -> Config:
    """PaliGemma on a decoder: location and mask tokens in its vocabulary; no window, no cap of the logits (3.7)."""
    return replace(
        decoder,
        family=family,
        vocab_size=257_152,
        layer_types=_GLOBAL * decoder.num_layers,
        sliding_window=None,
        final_logit_softcap=None,
        vision=VisionConfig(image_size),
        prefix_lm=True,
    )


def alternating(num_layers: int) -> tuple[LayerType, ...]:
    """Gemma 2: local, global, local, …"""
    return tuple("global" if i % 2 else "local" for i in range(num_layers))


def five_to_one(num_layers: int) -> tuple[LayerType, ...]:
    """Gemma 3: five local layers, then a global one; the last period may be cut short."""
    return tuple("local" if (i + 1) % 6 else "global" for i in range(num_layers))


GEMMA_2B = _gemma1(18, 2048, 8, 1, 16_384)
GEMMA_7B = _gemma1(28, 3072, 16, 16, 24_576)
GEMMA2_2B = _gemma2(26, 2304, 8, 4, 256, 9216)
GEMMA2_9B = _gemma2(42, 3584, 16, 8, 256, 14_336)
GEMMA2_27B = _gemma2(46, 4608, 32, 16, 128, 36_864, query_scalar=144)
GEMMA3_270M = _gemma3(18, 640, 4, 1, 256, 2048, context_length=32_768, sliding_window=512, rope_scaling_factor=1.0)
GEMMA3_1B = _gemma3(26, 1152, 4, 1, 256, 6912, context_length=32_768, sliding_window=512, rope_scaling_factor=1.0)
GEMMA3_4B = _gemma3_sees(_gemma3(34, 2560, 8, 4, 256, 10_240))
GEMMA3_12B = _gemma3_sees(_gemma3(48, 3840, 16, 8, 256, 15_360))
GEMMA3_27B = _gemma3_sees(_gemma3(62, 5376, 32, 16, 128, 21_504, query_scalar=168))
EMBEDDINGGEMMA_300M = replace(
    _gemma3(24, 768, 3, 1, 256, 1152, context_length=2048, sliding_window=512, rope_scaling_factor=1.0),
    family="embeddinggemma",
    bidirectional=True,
    pooled_dense=(3072, 768),
)


def _paligemma(name: str, decoder: Config, family: Family) -> list[Variant]:
    """The variants of one size: pretrained at three resolutions, and on a mix of tasks at two."""
    rows: list[Variant] = []
    for image_size in (224, 448, 896):
        rows += _rows("pretrained", _sees(decoder, family, image_size), f"{name}-pt-{image_size}")
    for image_size in (224, 448):
        rows += _rows("mix", _sees(decoder, family, image_size), f"{name}-mix-{image_size}")
    return rows


def _rows(tuning: Tuning, config: Config, *names: str) -> list[Variant]:
    return [Variant(name, f"google/{name}", config, tuning) for name in names]


ZOO: tuple[Variant, ...] = (
    *_rows("pretrained", GEMMA_2B, "gemma-2b"),
    *_rows("instruction", GEMMA_2B, "gemma-2b-it", "gemma-1.1-2b-it"),
    *_rows("pretrained", GEMMA_7B, "gemma-7b"),
    *_rows("instruction", GEMMA_7B, "gemma-7b-it", "gemma-1.1-7b-it"),
    *_rows("fill-in-the-middle", GEMMA_2B, "codegemma-2b", "codegemma-1.1-2b"),
    *_rows("fill-in-the-middle", GEMMA_7B, "codegemma-7b"),
    *_rows("instruction", GEMMA_7B, "codegemma-7b-it", "codegemma-1.1-7b-it"),
    *_rows("pretrained", GEMMA2_2B, "gemma-2-2b"),
    *_rows("instruction", GEMMA2_2B, "gemma-2-2b-it"),
    *_rows("pretrained", GEMMA2_9B, "gemma-2-9b"),
    *_rows("instruction", GEMMA2_9B, "gemma-2-9b-it"),
    *_rows("pretrained", GEMMA2_27B, "gemma-2-27b"),
    *_rows("instruction", GEMMA2_27B, "gemma-2-27b-it"),
    *_rows("safety", GEMMA2_2B, "shieldgemma-2b"),
    *_rows("safety", GEMMA2_9B, "shieldgemma-9b"),
    *_rows("safety", GEMMA2_27B, "shieldgemma-27b"),
    *_rows("pretrained", GEMMA3_270M, "gemma-3-270m"),
    *_rows("instruction", GEMMA3_270M, "gemma-3-270m-it"),
    *_rows("pretrained", GEMMA3_1B, "gemma-3-1b-pt"),
    *_rows("instruction", GEMMA3_1B, "gemma-3-1b-it"),
    *_rows("pretrained", GEMMA3_4B, "gemma-3-4b-pt"),
    *_rows("instruction", GEMMA3_4B, "gemma-3-4b-it"),
    *_rows("pretrained", GEMMA3_12B, "gemma-3-12b-pt"),
    *_rows("instruction", GEMMA3_12B, "gemma-3-12b-it"),
    *_rows("pretrained", GEMMA3_27B, "gemma-3-27b-pt"),
    *_rows("instruction", GEMMA3_27B, "gemma-3-27b-it"),
    *_rows("embedding", EMBEDDINGGEMMA_300M, "embeddinggemma-300m"),
    *_paligemma("paligemma-3b", GEMMA_2B, "paligemma"),
    *_paligemma("paligemma2-3b", GEMMA2_2B, "paligemma2"),
    *_paligemma("paligemma2-10b", GEMMA2_9B, "paligemma2"),
    *_paligemma("paligemma2-28b", GEMMA2_27B, "paligemma2"),
)

_BY_NAME = {row.name: row for row in ZOO} | {row.hub_id: row for row in ZOO}


def find(name: str) -> Variant | None:
    """The row of a short name (`gemma-2-2b-it`) or a hub id (`google/gemma-2-2b-it`), or None."""
    return _BY_NAME.get(name)


def get(name: str) -> Variant:
    """Like `find`, with a GemmaryError that names the nearest rows where there is none."""
    row = find(name)
    if row is None:
        raise GemmaryError(f"no model is called {name!r}{did_you_mean(name, (v.name for v in ZOO))}")
    return row


def did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else "; `gemmary list --all` shows the names"
