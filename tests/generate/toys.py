"""A tokenizer of a hundred pieces and engines that follow a script or keep a record, for the tests of generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gemmary.batch import Batch
from gemmary.config import Config
from gemmary.engines import Engine, EngineInfo, Logits
from gemmary.engines.reference import ReferenceEngine
from gemmary.generate import Request, SamplingParams
from gemmary.generate.text import TextStream
from gemmary.tokenizer import StreamDecoder
from tests.tiny import TINY, random_leaves

LETTERS = "abcdefghijklmnopqrstuvwxyz .,\n"
BYTES = "é€🙂".encode()
WORDS = ("the", "sto", "pping", " stop", "ST", "OP", "STOP!")


class ToyTokenizer:
    """0 pad, 1 eos, 2 bos, 3 unk, 4 and 5 turns, then letters, single bytes and words; the rest are one sign each."""

    bos_id, eos_id, pad_id, unk_id = 2, 1, 0, 3
    turn_ids = (4, 5)

    def __init__(self, vocab_size: int = 128) -> None:
        self.vocab_size = vocab_size
        named: list[str | bytes] = ["", "", "", "?", "<start_of_turn>", "<end_of_turn>", *LETTERS]
        named += [bytes([b]) for b in dict.fromkeys(BYTES)]
        named += WORDS
        self.surfaces = named + [chr(0x4E00 + i) for i in range(vocab_size - len(named))]

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, escape_markers: bool = False) -> list[int]:
        ids = [self.surfaces.index(sign) if sign in self.surfaces else self.unk_id for sign in text]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def ids(self, *surfaces: str | bytes) -> list[int]:
        return [self.surfaces.index(surface) for surface in surfaces]

    def stream(self) -> StreamDecoder:
        return StreamDecoder(lambda token: self.surfaces[token])

    def decode(self, ids: Sequence[int]) -> str:
        stream = self.stream()
        return "".join([stream.push(i) for i in ids]) + stream.finish()


def spell(text: str, tokenizer: ToyTokenizer) -> list[int]:
    """Byte by byte where there is no letter for it."""
    ids = []
    for sign in text:
        ids += tokenizer.ids(sign) if sign in LETTERS else tokenizer.ids(*(bytes([b]) for b in sign.encode()))
    return ids


class ScriptedEngine:
    """After position p of any sequence the likeliest token is script[p]; past its end, token 6."""

    def __init__(self, script: Sequence[int], config: Config | None = None) -> None:
        self.config = config or replace(TINY["gemma3-mqa"], context_length=64)
        self.info = EngineInfo("scripted", "none", "float32", {}, 1)
        self.script = list(script)

    def new_cache(self, capacity: int) -> Any:
        return object()

    def cache_bytes(self, capacity: int) -> int:
        return 0

    def step(self, batch: Batch, caches: Sequence[Any], taps: dict[str, Logits] | None = None) -> Logits:
        logits = np.zeros((len(batch.outputs), self.config.vocab_size), dtype=np.float32)
        for row, output in enumerate(batch.outputs):
            position = int(batch.positions[output])
            logits[row, self.script[position] if position < len(self.script) else 6] = 20
        return logits

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        raise AssertionError("a scripted engine embeds nothing")


class RecordingEngine:
    """Another engine, and the batches and caches that it was given."""

    def __init__(self, inner: Engine) -> None:
        self.inner, self.config, self.info = inner, inner.config, inner.info
        self.batches: list[Batch] = []
        self.capacities: list[int] = []

    def new_cache(self, capacity: int) -> Any:
        self.capacities.append(capacity)
        return self.inner.new_cache(capacity)

    def cache_bytes(self, capacity: int) -> int:
        return self.inner.cache_bytes(capacity)

    def can_truncate(self, cache: Any, length: int) -> bool:
        return self.inner.can_truncate(cache, length)

    def fork(self, cache: Any, length: int, capacity: int) -> Any:
        return self.inner.fork(cache, length, capacity)

    def step(self, batch: Batch, caches: Sequence[Any], taps: dict[str, Logits] | None = None) -> Logits:
        assert len(caches) == len(batch.sequences)
        assert all(cache is not None for cache in caches)
        self.batches.append(batch)
        return self.inner.step(batch, caches, taps)

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        return self.inner.embed(batch, taps)

    @property
    def shapes(self) -> list[list[int]]:
        """Tokens of each sequence in each step."""
        return [[rows.stop - rows.start for rows in batch.sequences] for batch in self.batches]


def reference(name: str = "gemma3-mqa", **changes: Any) -> ReferenceEngine:
    return ReferenceEngine(replace(TINY[name], **changes), random_leaves(TINY[name]))


def request(prompt: Sequence[int], *, prefix: int = 0, **options: Any) -> Request:
    """With the toy tokenizer's end token, greedy and 8 tokens long unless told otherwise."""
    params = SamplingParams.of({"temperature": 0, "max_tokens": 8, **options})
    tokenizer = ToyTokenizer()
    text = TextStream(tokenizer.stream(), params.stop_strings)
    return Request(prompt, params, text, frozenset((tokenizer.eos_id,)), prefix, params.seed or 0)
