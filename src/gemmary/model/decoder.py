"""Every Gemma text model, once. B sequences are flattened: T tokens in all, each with a position and its visible keys.

Axes: T tokens of this step, R rows whose logits are wanted, D hidden_size, N heads, K kv heads, H head_dim,
F intermediate_size, V vocabulary, S sequences.

`ops` is an implementation of `gemmary.ops.spec.Ops`; `weights` are typed leaves; `step` says which tokens there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gemmary.config import Config, LayerType
from gemmary.model.leaves import Leaves
from gemmary.ops.spec import Ops


@dataclass(frozen=True)
class Step:
    """What one step of the model is fed: arrays of the engine, or their names while the engine traces."""

    tokens: Any
    """[T] token ids."""
    positions: Any
    """[T] place of each token in its own sequence, from 0."""
    visible: dict[LayerType, Any]
    """For each kind of layer [T, 2]: first and last key position that the token sees (`model/masks.py`)."""
    outputs: Any
    """[R] rows of T whose logits are wanted."""
    pictures: Any = None
    """None, or ([M] rows of T that are places for pictures, [M, D] what goes there: `model/vision.py`)."""


def block(
    ops: Ops, config: Config, w: Leaves, index: int, x: Any, angles: Any, visible: Any, cache: Any, rows: Any = None
) -> tuple[Any, Any]:
    """One layer: attention and MLP, each added to the residual stream. [T, D]

    rows: None, or the rows [R] that alone are wanted of it: [R, D].
    """
    attended, cache = attention(ops, config, w, index, x, angles, visible, cache, rows)
    x = ops.add(x if rows is None else ops.take(x, rows), attended)
    return ops.tap(f"layers.{index}.out", ops.add(x, mlp(ops, config, w, index, x))), cache


def hidden_states(
    ops: Ops,
    config: Config,
    weights: Leaves,
    step: Step,
    cache: Any,
    run_block: Callable[..., Any] = block,
    outputs_only: bool = False,
) -> tuple[Any, Any]:
    """Final hidden states [T, D], normalised, and the cache with this step's keys and values in it.

    run_block: `block`, or what an engine wraps around it (a module with hooks, a checkpoint of activations).
    outputs_only: those of the rows `step.outputs` [R, D], with most of the last layer computed for these alone.
    """
    x = ops.embed(weights.embed, step.tokens, config.embedding_scale)
    if step.pictures is not None:
        x = ops.place(x, *step.pictures)
    x = ops.tap("embedding", x)
    angles = {kind: ops.rope_angles(step.positions, config.rope_frequencies(kind)) for kind in config.kinds}
    for index, kind in enumerate(config.layer_types):
        w = weights.layer(index)
        rows = (step.outputs,) if outputs_only and index == config.num_layers - 1 else ()
        x, cache = run_block(ops, config, w, index, x, angles[kind], step.visible[kind], cache, *rows)
    return ops.tap("hidden", ops.rms_norm(x, weights.final_norm, config.rms_norm_eps)), cache


def attention(
    ops: Ops, config: Config, w: Leaves, index: int, x: Any, angles: Any, visible: Any, cache: Any, rows: Any = None
) -> tuple[Any, Any]:
    """The attention branch of a block: norm, q k v, rotation, attention over the cache, projection, norm. [T, D], or
    of some rows [R, D]."""
    eps = config.rms_norm_eps
    x = ops.rms_norm(x, w.attn_norm, eps)
    q_TNH = ops.split_heads(ops.linear(x, w.q), config.num_heads)
    k_TKH = ops.split_heads(ops.linear(x, w.k), config.num_kv_heads)
    v_TKH = ops.split_heads(ops.linear(x, w.v), config.num_kv_heads)
    if config.qk_norm:
        q_TNH = ops.rms_norm(q_TNH, w.q_norm, eps)
        k_TKH = ops.rms_norm(k_TKH, w.k_norm, eps)
    q_TNH, k_TKH = ops.rope(q_TNH, angles), ops.rope(k_TKH, angles)
    out, cache = ops.attention(
        q_TNH, k_TKH, v_TKH, cache, index, visible, config.attention_scale, config.attn_logit_softcap
    )
    out = ops.tap(f"layers.{index}.heads", out)
    out = ops.linear(out if rows is None else ops.take(out, rows), w.o)
    if config.post_norms:
        out = ops.rms_norm(out, w.post_attn_norm, eps)
    return ops.tap(f"layers.{index}.attn_out", out), cache


def mlp(ops: Ops, config: Config, w: Leaves, index: int, x: Any) -> Any:
    """The GeGLU branch of a block: norm, gate and up, down, norm. [T, D]"""
    x = ops.rms_norm(x, w.ffn_norm, config.rms_norm_eps)
    out = ops.linear(ops.geglu(ops.linear(x, w.gate), ops.linear(x, w.up)), w.down)
    if config.post_norms:
        out = ops.rms_norm(out, w.post_ffn_norm, config.rms_norm_eps)
    return ops.tap(f"layers.{index}.ffn_out", out)


def logits(ops: Ops, config: Config, weights: Leaves, step: Step, hidden: Any) -> Any:
    """Scores of every token of the vocabulary [R, V], float32; the head is the embedding table."""
    z = ops.linear(ops.take(hidden, step.outputs), weights.embed)
    if config.final_logit_softcap:
        z = ops.softcap(z, config.final_logit_softcap)
    return ops.tap("logits", z)


def sentence_embedding(ops: Ops, config: Config, weights: Leaves, sequences: Any, hidden: Any) -> Any:
    """One unit vector a sequence [S, pooled_dense[-1]]: mean over its tokens, dense layers, L2 norm."""
    x = ops.tap("pooled", ops.mean_pool(hidden, sequences))
    for index in range(len(config.pooled_dense)):
        x = ops.linear(x, weights.dense(index))
    return ops.tap("sentence_embedding", ops.l2_normalize(x))
