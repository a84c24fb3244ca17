"""How the arrays of Flax's Gemma become our matrices, and back.

Both of its layouts (big_vision's `.npz`, DeepMind's Orbax checkpoints) hold them as the einsums of the model take them:
heads apart, input before output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from gemmary.config import Config, VisionConfig

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Entry:
    """One of our weights or biases (`.bias` after the name) in the file. `{i}` stands for the number of a layer."""

    name: str
    key: str
    half: int | None
    """Which of the two matrices that one array of a layer holds; None: it holds one."""
    ours: Callable[[Array, Config], Array]
    theirs: Callable[[Array, Config], Array]


def as_entry(name: str, key: str, kind: str, half: int | None = None) -> Entry:
    return Entry(name, key, half, *KINDS[kind])


def _heads(count: str, size: str) -> tuple[Callable[[Array, Config], Array], Callable[[Array, Config], Array]]:
    """[heads, in, head_dim] <-> [heads * head_dim, in]."""

    def ours(x: Array, c: Config) -> Array:
        return x.transpose(0, 2, 1).reshape(-1, x.shape[1])

    def theirs(x: Array, c: Config) -> Array:
        return x.reshape(getattr(c, count), getattr(c, size), -1).transpose(0, 2, 1)

    return ours, theirs


def vision_of(c: Config) -> VisionConfig:
    assert c.vision is not None
    return c.vision


KINDS: dict[str, tuple[Callable[[Array, Config], Array], Callable[[Array, Config], Array]]] = {
    "same": (lambda x, c: x, lambda x, c: x),
    "transposed": (lambda x, c: x.T, lambda x, c: x.T),
    "queries": _heads("num_heads", "head_dim"),
    "keys": _heads("num_kv_heads", "head_dim"),
    "heads out": (
        lambda x, c: x.reshape(-1, x.shape[-1]).T,
        lambda x, c: x.T.reshape(c.num_heads, c.head_dim, -1),
    ),
    "positions": (lambda x, c: x[0], lambda x, c: x[None]),
    # A patch is [rows, columns, 3, out] there, and its channels lie one after the other here.
    "patch": (
        lambda x, c: x.transpose(3, 2, 0, 1).reshape(x.shape[3], -1),
        lambda x, c: x.reshape(-1, 3, vision_of(c).patch_size, vision_of(c).patch_size).transpose(2, 3, 1, 0),
    ),
    "tower heads": (
        lambda x, c: x.reshape(x.shape[0], -1).T,
        lambda x, c: x.T.reshape(-1, vision_of(c).num_heads, vision_of(c).head_dim),
    ),
    "tower head biases": (
        lambda x, c: x.reshape(-1),
        lambda x, c: x.reshape(vision_of(c).num_heads, vision_of(c).head_dim),
    ),
    "tower heads out": (
        lambda x, c: x.reshape(-1, x.shape[-1]).T,
        lambda x, c: x.T.reshape(vision_of(c).num_heads, vision_of(c).head_dim, -1),
    ),
}
"""How an array of a layer becomes ours, and back."""


def tower_entries(base: str, block: str) -> tuple[Entry, ...]:
    """Those of the tower below `base`; block: what a layer is called, `{i}` in it where each has arrays of its own."""
    vision, layer = "vision.", "vision.layers.{i}."
    block = base + "Transformer/" + block
    attention = block + "MultiHeadDotProductAttention_0/"
    return (
        as_entry(vision + "patch", base + "embedding/kernel", "patch"),
        as_entry(vision + "patch.bias", base + "embedding/bias", "same"),
        as_entry(vision + "position", base + "pos_embedding", "positions"),
        as_entry(layer + "attn_norm", block + "LayerNorm_0/scale", "same"),
        as_entry(layer + "attn_norm.bias", block + "LayerNorm_0/bias", "same"),
        as_entry(layer + "ffn_norm", block + "LayerNorm_1/scale", "same"),
        as_entry(layer + "ffn_norm.bias", block + "LayerNorm_1/bias", "same"),
        *(
            each
            for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value"))
            for each in (
                as_entry(layer + ours, attention + theirs + "/kernel", "tower heads"),
                as_entry(layer + ours + ".bias", attention + theirs + "/bias", "tower head biases"),
            )
        ),
        as_entry(layer + "o", attention + "out/kernel", "tower heads out"),
        as_entry(layer + "o.bias", attention + "out/bias", "same"),
        as_entry(layer + "up", block + "MlpBlock_0/Dense_0/kernel", "transposed"),
        as_entry(layer + "up.bias", block + "MlpBlock_0/Dense_0/bias", "same"),
        as_entry(layer + "down", block + "MlpBlock_0/Dense_1/kernel", "transposed"),
        as_entry(layer + "down.bias", block + "MlpBlock_0/Dense_1/bias", "same"),
        as_entry(vision + "final_norm", base + "Transformer/encoder_norm/scale", "same"),
        as_entry(vision + "final_norm.bias", base + "Transformer/encoder_norm/bias", "same"),
    )
