"""The tower that reads pictures, and its projection to the decoder's width: SigLIP, as PaliGemma and Gemma 3 have it.

Axes: P patches of all pictures of the call, M tokens that become of them (where none are pooled, P), C the tower's
width, N heads, H head_dim, F intermediate_size, D the decoder's width. A picture's patches lie in a row and see each
other and no other picture's; those that become one token lie side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmary.config import Config, VisionConfig
from gemmary.model.leaves import Leaves
from gemmary.ops.spec import Ops


@dataclass(frozen=True)
class Pictures:
    """What one call of the tower is fed: arrays of the engine, or their names while the engine traces."""

    patches: Any
    """[P, 3 * rows * columns] pixel values in [-1, 1], a patch's channels one after the other."""
    positions: Any
    """[P] place of each patch in its picture, counted from 0, line by line."""
    visible: Any
    """[P, 2] first and last of its picture's patches that each sees: all of them."""


def block(ops: Ops, vision: VisionConfig, w: Leaves, index: int, x: Any, visible: Any, cache: Any) -> tuple[Any, Any]:
    """One layer: attention and MLP, each of the normalised stream and added to it. [P, C]"""
    normed = ops.layer_norm(x, w.attn_norm, vision.layer_norm_eps)
    q_PNH, k_PNH, v_PNH = (ops.split_heads(ops.linear(normed, each), vision.num_heads) for each in (w.q, w.k, w.v))
    out, cache = ops.attention(q_PNH, k_PNH, v_PNH, cache, index, visible, vision.attention_scale, None)
    x = ops.add(x, ops.linear(out, w.o))
    inner = ops.gelu(ops.linear(ops.layer_norm(x, w.ffn_norm, vision.layer_norm_eps), w.up))
    return ops.tap(f"vision.layers.{index}.out", ops.add(x, ops.linear(inner, w.down))), cache


def embeddings(
    ops: Ops,
    config: Config,
    weights: Leaves,
    pictures: Pictures,
    cache: Any,
    run_block: Callable[..., Any] = block,
) -> Any:
    """Pictures as tokens of the decoder [M, D], to be put in the place of placeholders, unscaled.

    run_block: as in `decoder.hidden_states`.
    """
    vision = config.vision
    assert vision is not None
    w = weights.vision()
    x = ops.add(ops.linear(pictures.patches, w.patch), ops.embed(w.position, pictures.positions, 1.0))
    for index in range(vision.num_layers):
        x, cache = run_block(ops, vision, w.layer(index), index, x, pictures.visible, cache)
    x = ops.tap("vision.hidden", ops.layer_norm(x, w.final_norm, vision.layer_norm_eps))
    if vision.pool > 1:
        x = ops.pool(x, vision.pool**2)
    if vision.soft_norm:
        x = ops.rms_norm(x, w.soft_norm, vision.layer_norm_eps)
    return ops.tap("vision.embeddings", ops.linear(x, w.projector))
