"""How well a model predicts text that nothing of it was made from: per token, and per byte for any tokenizer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch
from gemmary.config import Config
from gemmary.tune.packing import micro_batch
from gemmary.tune.rows import Example

BATCH = 16
"""Windows computed together."""


class Scorer(Protocol):
    """What is asked of an engine."""

    def new_cache(self, capacity: int) -> Any: ...

    def step(self, batch: Batch, caches: Sequence[Any]) -> npt.NDArray[np.float32]: ...


@dataclass(frozen=True)
class HeldOut:
    """What the documents cost together."""

    nats: float
    tokens: int
    """Predicted ones: all of each document's, and its end."""
    bytes: int
    """Of the documents' text in UTF-8."""

    @property
    def perplexity(self) -> float:
        """Per token. Compares models with the same tokenizer only."""
        return math.exp(self.nats / self.tokens)

    @property
    def bits_per_byte(self) -> float:
        """Compares models with any tokenizers."""
        return self.nats / math.log(2) / self.bytes

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return {**asdict(self), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}


def measure(engine: Scorer, config: Config, documents: Sequence[tuple[str, Sequence[int]]]) -> HeldOut:
    """documents: a text, and its ids with <bos> and <eos>.

    Every token is predicted once, from at least half a context of what precedes it, where there is so much: windows of
    a context that overlap by half, each but the first scored in its second half only, and each behind a <bos>.
    """
    windows = [window for _, ids in documents for window in _windows(np.asarray(ids, np.int32), config.context_length)]
    nats = 0.0
    for start in range(0, len(windows), BATCH):
        micro = micro_batch(config, windows[start : start + BATCH])
        caches = [engine.new_cache(rows.stop - rows.start) for rows in micro.batch.sequences]
        logits = engine.step(micro.batch, caches).astype(np.float64)
        top = logits.max(axis=1)
        normal = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        nats += float((normal - logits[np.arange(len(logits)), micro.targets]).sum())
    tokens = sum(int(window.scored.sum()) for window in windows)
    return HeldOut(nats, tokens, sum(len(text.encode()) for text, _ in documents))


def _windows(ids: npt.NDArray[np.int32], context: int) -> Iterator[Example]:
    """ids: with <bos> in front. A window is at most `context` inputs and the token after them."""
    half = max(1, context // 2)
    yield Example(ids[: context + 1], np.arange(min(context + 1, len(ids))) > 0, "")
    for first in range(context + 1, len(ids), half):
        last = min(first + half, len(ids))
        tokens = np.concatenate([ids[:1], ids[max(1, last - context) : last]])
        yield Example(tokens, np.arange(len(tokens)) >= len(tokens) - (last - first), "")
