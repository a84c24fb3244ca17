"""The oracle as an engine: numpy float32, every key kept, no speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from gemmary.batch import Batch, Pixels, adapted_rows, patches
from gemmary.config import Config
from gemmary.engines import EngineInfo, Logits
from gemmary.errors import GemmaryError
from gemmary.model import decoder, vision
from gemmary.model.leaves import Leaves
from gemmary.ops.reference import ReferenceOps, SequenceCache, StepCache
from gemmary.quantize.leaves import Leaf


class ReferenceEngine:
    """`gemmary.engines.Engine` on `ops/reference.py`."""

    def __init__(self, config: Config, lookup: Callable[[str], Leaf], *, dtype: str | None = None) -> None:
        if dtype not in (None, "float32"):
            raise GemmaryError(f"the reference engine computes in float32 only, not {dtype}")
        self.config = config
        self.weights = Leaves(lru_cache(maxsize=None)(lookup))
        self.info = EngineInfo("reference", "cpu (numpy)", "float32", {}, 1)

    def new_cache(self, capacity: int) -> SequenceCache:
        return SequenceCache()

    def cache_bytes(self, capacity: int) -> int:
        """See `Engine.cache_bytes`. Every key of every layer is kept, in float32."""
        return self.config.kv_bytes_per_token(4) * capacity

    def can_truncate(self, cache: SequenceCache, length: int) -> bool:
        """See `Engine.can_truncate`. Every key is kept."""
        return True

    def fork(self, cache: SequenceCache, length: int, capacity: int) -> SequenceCache:
        """See `Engine.fork`. Arrays are never written to again, so the two share them."""
        forked = SequenceCache(dict(cache.layers))
        forked.truncate(length)
        return forked

    def step(self, batch: Batch, caches: Sequence[SequenceCache], taps: dict[str, Logits] | None = None) -> Logits:
        for sequence, rows in zip(caches, batch.sequences, strict=True):
            held = len(sequence.layers[0][0]) if sequence.layers else 0
            if batch.positions[rows.start] != held:
                raise ValueError(f"tokens at {batch.positions[rows.start]}, cache holds {held}")
        ops = ReferenceOps(taps=taps, adapted=batch.adapted())
        step = decoder.Step(batch.tokens, batch.positions, dict(batch.visible), batch.outputs, batch.pictures)
        cache = StepCache(caches, batch.sequences)
        hidden, _ = decoder.hidden_states(ops, self.config, self.weights, step, cache)
        result: Logits = decoder.logits(ops, self.config, self.weights, step, hidden)
        return result

    def see(self, pixels: Pixels, taps: dict[str, Logits] | None = None, adapter: int = 0) -> Logits:
        fed, rows = patches(self.config, pixels)
        cache = StepCache([SequenceCache() for _ in rows], rows)
        ops = ReferenceOps(taps=taps, adapted=adapted_rows([adapter] * len(rows), rows))
        tokens: Logits = vision.embeddings(ops, self.config, self.weights, fed, cache)
        return tokens

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        ops = ReferenceOps(taps=taps, adapted=batch.adapted())
        step = decoder.Step(batch.tokens, batch.positions, dict(batch.visible), batch.outputs)
        cache = StepCache([SequenceCache() for _ in batch.sequences], batch.sequences)
        hidden, _ = decoder.hidden_states(ops, self.config, self.weights, step, cache)
        vectors: Logits = decoder.sentence_embedding(ops, self.config, self.weights, batch.sequences, hidden)
        return vectors
