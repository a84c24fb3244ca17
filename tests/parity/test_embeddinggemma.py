"""EmbeddingGemma: transformers' bidirectional encoder, then pooling, the dense layers and the norm written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.engines import Engine
from gemmary.errors import GemmaryError
from tests.parity.peers import peer, peer_config, peer_logits, torch
from tests.runs import Array, Lookup, Precision, each_bfloat16, each_float32, relative_error, relative_rms, rounded
from tests.tiny import TINY, random_leaves, random_tokens

CONFIG = TINY["embeddinggemma"]
LENGTHS = (19, 1, 4, 11)


def sentence_vector(hidden: Array, lookup: Lookup) -> Array:
    """Hidden states [T, D] -> mean over tokens, both dense layers, L2 norm (spec §1.8), in plain torch."""
    pooled = torch.tensor(hidden).mean(dim=0)
    for name in ("dense.0", "dense.1"):
        pooled = torch.tensor(lookup(name).dequantize()) @ pooled
    return torch.nn.functional.normalize(pooled, dim=0).numpy()


def embed(engine: Engine, sequences: Sequence[Sequence[int]]) -> tuple[Array, list[Array]]:
    """The vectors, and the hidden states of each sequence."""
    taps: dict[str, Array] = {}
    vectors = engine.embed(Batch.of(engine.config, [Chunk(tokens, outputs="none") for tokens in sequences]), taps)
    return vectors, np.split(taps["hidden"], np.cumsum([len(s) for s in sequences])[:-1])


@each_float32
@pytest.mark.parametrize("name", ["embeddinggemma", "embeddinggemma-q32"])
def test_ragged_batch(name: str, precision: Precision) -> None:
    """Hidden states and vectors of several texts together, transformers' one by one."""
    config = TINY[name]
    lookup = random_leaves(config)
    encoder = peer(config, lookup)
    sequences = [random_tokens(config, n) for n in LENGTHS]
    vectors, hidden = embed(precision.open(config, lookup), sequences)
    assert vectors.shape == (len(LENGTHS), config.pooled_dense[-1])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    for tokens, vector, states in zip(sequences, vectors, hidden, strict=True):
        theirs = peer_logits(encoder, tokens)
        assert relative_error(states, theirs) < precision.worst
        assert relative_error(vector, sentence_vector(theirs, lookup)) < precision.worst


@each_bfloat16
def test_bfloat16(precision: Precision) -> None:
    lookup = rounded(random_leaves(CONFIG))
    sequences = [random_tokens(CONFIG, n) for n in LENGTHS]
    vectors, _ = embed(precision.open(CONFIG, lookup), sequences)
    encoder = peer(CONFIG, lookup)
    theirs = np.stack([sentence_vector(peer_logits(encoder, tokens), lookup) for tokens in sequences])
    assert relative_error(vectors, theirs) < precision.worst
    assert relative_rms(vectors, theirs) < precision.typical


@each_float32
@pytest.mark.parametrize("window", [2, 3, 5, 6, 512])
def test_reach_of_the_window(window: int, precision: Precision) -> None:
    """W keys are W/2 to each side: 256 for 512. Transformers stores W//2 + 1 and excludes it, which is the same."""
    config = replace(CONFIG, sliding_window=window)
    assert peer_config(config).sliding_window == window // 2 + 1
    tokens = random_tokens(config, 19)
    _, (hidden,) = embed(precision.open(config, random_leaves(config)), [tokens])
    assert relative_error(hidden, peer_logits(peer(config, random_leaves(config)), tokens)) < precision.worst


@each_float32
def test_reach_of_one_local_layer(precision: Precision) -> None:
    """In a model of one local layer, changing a token moves the states at W/2 from it and no further."""
    config = replace(CONFIG, num_layers=1, layer_types=("local",))
    tokens = random_tokens(config, 19)
    changed = [*tokens[:9], tokens[9] % (config.vocab_size - 1) + 1, *tokens[10:]]
    _, (before, after) = embed(precision.open(config, random_leaves(config)), [tokens, changed])
    moved = np.flatnonzero(np.abs(before - after).max(axis=1) > 1e-4)
    assert config.sliding_window == 6
    assert moved.tolist() == list(range(9 - 3, 9 + 3 + 1))


@each_float32
def test_it_bites(precision: Precision) -> None:
    """Causal attention and no window each give other vectors."""
    tokens = random_tokens(CONFIG, 19)

    def vector(config: Config) -> Array:
        return embed(precision.open(config, random_leaves(CONFIG)), [tokens])[0][0]

    usual = vector(CONFIG)
    for other in (replace(CONFIG, bidirectional=False), replace(CONFIG, sliding_window=40)):
        assert relative_error(vector(other), usual) > 100 * precision.worst


def test_no_scores_from_an_embedding_model() -> None:
    engine = Precision("torch", "float32", 0, 0).open(CONFIG, random_leaves(CONFIG))
    with pytest.raises(GemmaryError, match="embedding model"):
        engine.step(Batch.of(CONFIG, [Chunk([1, 2])]), [engine.new_cache(2)])
