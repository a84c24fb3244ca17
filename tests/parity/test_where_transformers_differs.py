"""Where transformers computes something else than what the models were trained with, and that ours is the right one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.zoo import ZOO
from tests.parity.peers import peer, peer_config, peer_logits, torch, transformers
from tests.runs import Array, Precision, each_float32, relative_error, run
from tests.tiny import TINY, random_leaves, random_tokens

MODELS = ["gemma", "gemma2", "gemma3"]


@each_float32
@pytest.mark.parametrize("name", MODELS)
def test_embedding_scale(name: str, precision: Precision) -> None:
    """Transformers rounds sqrt(hidden_size) to the weights' dtype (§7.5): the value of training only in bfloat16.

    Ours is bfloat16's in every dtype, so that float32 computes the model that was trained; the exact mode is theirs.
    """
    config = TINY[name]
    tokens = random_tokens(config, 23)
    lookup = random_leaves(config)
    theirs = peer(config, lookup, training_scale=False)
    scale = theirs.get_input_embeddings().embed_scale
    assert float(scale.to(torch.bfloat16)) == config.embedding_scale
    assert float(scale) == pytest.approx(math.sqrt(config.hidden_size), rel=1e-7)
    exact = replace(config, exact_embedding_scale=True)
    (in_exact_mode,) = run(precision.open(exact, lookup), [tokens])
    assert relative_error(in_exact_mode, peer_logits(theirs, tokens)) < precision.worst
    (usual,) = run(precision.open(config, lookup), [tokens])
    assert relative_error(usual, peer_logits(theirs, tokens)) > 10 * precision.worst


@each_float32
def test_embedding_is_the_row_times_the_rounded_root(precision: Precision) -> None:
    """The independent calculation: d = 35, sqrt 5.916, whose nearest bfloat16 is 5.90625 = 189 / 32."""
    config = TINY["gemma"]
    table = random_leaves(config)("embed").dequantize()
    taps: dict[str, Array] = {}
    engine = precision.open(config, random_leaves(config))
    engine.step(Batch.of(config, [Chunk([7, 100])]), [engine.new_cache(2)], taps)
    np.testing.assert_allclose(taps["embedding"], table[[7, 100]] * np.float32(189 / 32), rtol=1e-6)


@each_float32
def test_legacy_gelu(precision: Precision) -> None:
    """Trap T8: Gemma 1.0's configurations on the Hub say "gelu" and mean its tanh form, as trained.

    Some versions of transformers (4.57, 5.0) took them at their word and computed the erf form. 5.23 maps the word to
    the tanh form again. The decoder has no such setting; `tests/ops` holds its GELU to the formula.
    """
    config = TINY["gemma"]
    tokens = random_tokens(config, 23)
    theirs = peer(config, random_leaves(config))
    assert transformers.GemmaConfig(hidden_act="gelu").hidden_act == "gelu_pytorch_tanh"
    (logits,) = run(precision.open(config, random_leaves(config)), [tokens])
    assert relative_error(logits, peer_logits(theirs, tokens)) < precision.worst
    for layer in theirs.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()  # erf
    assert relative_error(logits, peer_logits(theirs, tokens)) > 5 * precision.worst


@each_float32
def test_softcap_and_sdpa(precision: Precision) -> None:
    """Trap T6: PyTorch's fused attention has no softcap. Transformers used to drop it there without a word; 5.23
    refuses SDPA for Gemma 2. Without the cap its logits are far from ours, and with it they are ours."""
    config = TINY["gemma2"]
    tokens = random_tokens(config, 23)
    lookup = random_leaves(config)
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        transformers.Gemma2ForCausalLM._from_config(peer_config(config), attn_implementation="sdpa")
    (logits,) = run(precision.open(config, lookup), [tokens])
    assert relative_error(logits, peer_logits(peer(config, lookup), tokens)) < precision.worst
    dropped = peer_logits(peer(replace(config, attn_logit_softcap=None), lookup), tokens)
    assert relative_error(logits, dropped) > 100 * precision.worst


def test_query_scale_of_gemma_1() -> None:
    """Transformers has no query_pre_attn_scalar for Gemma 1 and takes head_dim, which is what every row of the zoo
    says."""
    assert not hasattr(peer_config(TINY["gemma"]), "query_pre_attn_scalar")
    rows = [row.config for row in ZOO if row.config.family == "gemma"]
    assert rows
    assert all(c.query_pre_attn_scalar == c.head_dim for c in rows)
