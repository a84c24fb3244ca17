"""Gemma 1, 2 and 3 against transformers, float32: prefill, decoding past the window, ragged batches, chunks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from tests.parity.peers import peer, peer_decode, peer_logits, torch
from tests.runs import FLOAT32, Array, Precision, each_float32, relative_error, run, run_in_chunks
from tests.tiny import ODD, TINY, random_leaves, random_tokens

DECODERS = [name for name in ODD if not TINY[name].pooled_dense]
LENGTH = 23
"""Tokens: more than four windows of any tiny model."""

each_decoder = pytest.mark.parametrize("name", DECODERS)


@cache
def expected(name: str, length: int = LENGTH) -> Array:
    config = TINY[name]
    return peer_logits(peer(config, random_leaves(config)), random_tokens(config, length))


@each_float32
@each_decoder
def test_prefill(name: str, precision: Precision) -> None:
    engine = precision.open(TINY[name], random_leaves(TINY[name]))
    (logits,) = run(engine, [random_tokens(TINY[name], LENGTH)])
    assert relative_error(logits, expected(name)) < precision.worst


@each_float32
@each_decoder
def test_token_by_token_past_the_window(name: str, precision: Precision) -> None:
    """Against transformers' own decode: a prompt shorter than the window, then single tokens until four windows."""
    config = TINY[name]
    tokens = random_tokens(config, LENGTH)
    logits = run_in_chunks(precision.open(config, random_leaves(config)), tokens, [3] + [1] * (LENGTH - 3))
    theirs = peer_decode(peer(config, random_leaves(config)), tokens, prompt=3)
    assert relative_error(logits, theirs) < precision.worst


@each_float32
@each_decoder
@pytest.mark.parametrize("sizes", [(7, 7, 7, 2), (1, 5, 17), (22, 1)], ids=str)
def test_chunked_prefill(name: str, sizes: tuple[int, ...], precision: Precision) -> None:
    engine = precision.open(TINY[name], random_leaves(TINY[name]))
    logits = run_in_chunks(engine, random_tokens(TINY[name], LENGTH), sizes)
    assert relative_error(logits, expected(name)) < precision.worst


@each_float32
@each_decoder
def test_ragged_batch(name: str, precision: Precision) -> None:
    """Sequences of all lengths in one step, ours together and transformers' one by one."""
    config = TINY[name]
    lengths = [1, 9, 4, LENGTH, 2]
    engine = precision.open(config, random_leaves(config))
    for logits, length in zip(run(engine, [random_tokens(config, n) for n in lengths]), lengths, strict=True):
        assert relative_error(logits, expected(name, length)) < precision.worst


@each_float32
@each_decoder
def test_step_that_mixes_prefill_and_decode(name: str, precision: Precision) -> None:
    """One step holds a decode past the window, the middle of a prompt and a fresh prompt; only some rows are asked."""
    config = TINY[name]
    engine = precision.open(config, random_leaves(config))
    first, second, third = (random_tokens(config, n) for n in (12, 17, 6))
    caches = [engine.new_cache(20) for _ in range(3)]
    before = [Chunk(first[:11], outputs="none"), Chunk(second[:2], outputs="none")]
    none = engine.step(Batch.of(config, before), caches[:2])
    assert none.shape == (0, config.vocab_size)
    mixed = [Chunk(second[2:], start=2, outputs="last"), Chunk(third, outputs="all"), Chunk(first[11:], start=11)]
    logits = engine.step(Batch.of(config, mixed), [caches[1], caches[2], caches[0]])
    wanted = np.concatenate([expected(name, 17)[-1:], expected(name, 6), expected(name, 12)[-1:]])
    assert relative_error(logits, wanted) < precision.worst


@pytest.mark.parametrize("precision", [p for p in FLOAT32 if p.engine != "reference"], ids=lambda p: p.name)
@pytest.mark.parametrize("name", ["gemma-q32", "gemma2-q32", "gemma3-q32", "gemma3-q256"])
def test_larger_tiny_models(name: str, precision: Precision) -> None:
    """Widths that are whole vectors and blocks, where kernels have no tails."""
    config = TINY[name]
    (logits,) = run(precision.open(config, random_leaves(config)), [random_tokens(config, LENGTH)])
    assert relative_error(logits, expected(name)) < precision.worst


@each_float32
@each_decoder
def test_prefix_of_tokens_that_see_each_other(name: str, precision: Precision) -> None:
    """A prefix-LM prompt, as PaliGemma's, against transformers under masks written out by brute force."""
    config = TINY[name]
    length, prefix = 17, 9
    tokens = random_tokens(config, length)
    query, key = np.mgrid[:length, :length]
    causal_ones, in_prefix = key <= query, (key < prefix) & (query < prefix)
    masks = {"full_attention": causal_ones | in_prefix}
    if config.sliding_window:  # which the prefix is not cut by: transformers' PaliGemma 2
        masks["sliding_attention"] = (causal_ones & (query - key < config.sliding_window)) | in_prefix
    engine = precision.open(config, random_leaves(config))
    theirs = peer_logits(peer(config, random_leaves(config)), tokens, masks)
    (logits,) = run(engine, [tokens], [prefix])
    assert relative_error(logits, theirs) < precision.worst
    (causal,) = run(engine, [tokens])
    assert relative_error(causal, theirs) > 0.01


@each_float32
@each_decoder
def test_prefix_first_and_the_rest_token_by_token(name: str, precision: Precision) -> None:
    config = TINY[name]
    tokens = random_tokens(config, 14)
    engine = precision.open(config, random_leaves(config))
    (whole,) = run(engine, [tokens], [8])
    cache = engine.new_cache(14)
    rows = [engine.step(Batch.of(config, [Chunk(tokens[:8], prefix=8, outputs="all")]), [cache])]
    for start in range(8, 14):
        rows.append(engine.step(Batch.of(config, [Chunk(tokens[start : start + 1], start=start, prefix=8)]), [cache]))
    assert relative_error(np.concatenate(rows), whole) < precision.worst


def test_peers_are_not_trivial() -> None:
    """Logits spread over units, so that an error relative to the largest says something about the others."""
    for name in DECODERS:
        assert expected(name).std() > 1
        assert torch.isfinite(torch.tensor(expected(name))).all()
