"""Texts to vectors with an embedding model: its prompts, batches, shorter vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from gemmary.batch import Batch, Chunk
from gemmary.engines import Engine, Logits
from gemmary.errors import GemmaryError

PROMPTS: dict[str, str] = {
    "query": "task: search result | query: ",
    "document": "title: {title} | text: ",
    "clustering": "task: clustering | query: ",
    "classification": "task: classification | query: ",
    "similarity": "task: sentence similarity | query: ",
    "summarization": "task: summarization | query: ",
    "code": "task: code retrieval | query: ",
}
"""What EmbeddingGemma was trained to read before a text, by what the vector is for (its model card; spec 1.8)."""

DIMENSIONS = (512, 256, 128)
"""How many leading numbers of a vector make a vector of their own (Matryoshka training; spec 1.8)."""

_BATCH_TOKENS = 2048


def prompted(text: str, prompt: str | None, title: str | None) -> str:
    """`text` behind its prompt. Raises GemmaryError for an unknown prompt, or a title that has no place."""
    if prompt is not None and prompt not in PROMPTS:
        raise GemmaryError(f"no embedding prompt is called {prompt!r}: choose {', '.join(PROMPTS)}, or None")
    if title is not None and prompt != "document":
        raise GemmaryError('a title goes with prompt="document" only')
    return (PROMPTS[prompt].format(title=title or "none") if prompt else "") + text


def embed(engine: Engine, sequences: Sequence[Sequence[int]], dimensions: int | None, adapter: int = 0) -> Logits:
    """Unit vectors float32 [S, dimensions], one for each sequence of ids, whatever else is in the batch. adapter: as
    in `Chunk`."""
    width = engine.config.pooled_dense[-1]
    if dimensions not in (None, width, *(d for d in DIMENSIONS if d < width)):
        shorter = ", ".join(str(d) for d in DIMENSIONS if d < width)
        raise GemmaryError(f"this model gives vectors of {width} numbers, or the first {shorter}: not {dimensions}")
    vectors = np.concatenate(
        [
            engine.embed(Batch.of(engine.config, [Chunk(ids, outputs="none", adapter=adapter) for ids in some]))
            for some in _some(sequences)
        ]
    )
    if dimensions is not None and dimensions < width:
        vectors = vectors[:, :dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return vectors


def _some(sequences: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Batches of a bounded number of tokens."""
    batch: list[Sequence[int]] = []
    count = 0
    for ids in sequences:
        if batch and count + len(ids) > _BATCH_TOKENS:
            yield batch
            batch, count = [], 0
        batch.append(ids)
        count += len(ids)
    if batch:
        yield batch
