"""The starter's real weights: the native engine against torch, and the same bits however the work is cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint, open_checkpoint
from gemmary.engines.native import NativeEngine
from gemmary.verify import SAME, builtin_text, verify

PROMPT = 560  # longer than the 512 keys of a local layer
FOLLOWING = 3


@pytest.fixture(scope="module")
def checkpoint(starter_gguf: Path) -> Checkpoint:
    return open_checkpoint(starter_gguf)


@pytest.fixture(scope="module")
def ids(checkpoint: Checkpoint) -> list[int]:
    return list(checkpoint.tokenizer.encode(builtin_text(), bos=True))


def test_native_on_the_quantized_weights_says_what_torch_says_in_float32(starter_gguf: Path) -> None:
    """Over 2,000 tokens: mean KL at most 2e-3 nats, top-1 at least 98 %, mean NLL within 0.5 %."""
    with (
        gemmary.load(starter_gguf) as model,
        gemmary.load(starter_gguf, engine="torch", dtype="float32") as against,
    ):
        ids = model.tokenizer.encode(builtin_text(), bos=True)[:2001]
        assert len(ids) == 2001
        report = verify(model, against, ids=ids, limits=SAME)
    assert report.passed, report.failures
    assert (SAME.mean_kl, SAME.top1, SAME.nll) == (2e-3, 0.98, 0.005)


class Run:
    """One engine, asked for the logits after a prompt and after each of the tokens that follow it."""

    def __init__(self, checkpoint: Checkpoint, ids: list[int], threads: int) -> None:
        self.engine = NativeEngine(checkpoint.config, checkpoint.lookup, threads=threads)
        self.prompt, self.following = ids[:PROMPT], ids[PROMPT : PROMPT + FOLLOWING]
        self.others = [ids[start : start + 3 + start % 14] for start in range(600, 600 + 63 * 20, 20)]

    def logits(self, chunk: int, others: int = 0) -> npt.NDArray[np.float32]:
        """[1 + FOLLOWING, V]: the prompt in pieces of `chunk` tokens, each step shared with `others` sequences."""
        engine, config = self.engine, self.engine.config
        cache = engine.new_cache(PROMPT + FOLLOWING)
        steps = [self.prompt[start : start + chunk] for start in range(0, PROMPT, chunk)]
        steps += [[token] for token in self.following]
        rows = []
        start = 0
        for number, piece in enumerate(steps):
            last = start + len(piece) >= PROMPT
            chunks = [Chunk(other, outputs="last") for other in self.others[:others]] if last else []
            caches = [engine.new_cache(32) for _ in chunks]
            place = number % (len(chunks) + 1)
            chunks.insert(place, Chunk(piece, start, outputs="last" if last else "none"))
            caches.insert(place, cache)
            result = engine.step(Batch.of(config, chunks), caches)
            if last:
                rows.append(result[place])
            start += len(piece)
        return np.stack(rows)


@pytest.fixture(scope="module")
def alone(checkpoint: Checkpoint, ids: list[int]) -> npt.NDArray[np.float32]:
    return Run(checkpoint, ids, threads=2).logits(PROMPT)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_bits_do_not_depend_on_threads_chunks_or_company(
    checkpoint: Checkpoint, ids: list[int], alone: npt.NDArray[np.float32], threads: int
) -> None:
    assert np.isfinite(alone).all()
    assert alone.std() > 1
    run = Run(checkpoint, ids, threads)
    cuts = [(1, 0), (7, 0), (64, 3), (PROMPT, 0)] if threads == 2 else [(64, 0), (PROMPT, 3)]
    for chunk, others in cuts:
        assert np.array_equal(run.logits(chunk, others), alone), f"pieces of {chunk}, {others} other sequences"


def test_bits_do_not_depend_on_63_other_sequences(
    checkpoint: Checkpoint, ids: list[int], alone: npt.NDArray[np.float32]
) -> None:
    run = Run(checkpoint, ids, threads=2)
    for others in (1, 63):
        assert np.array_equal(run.logits(PROMPT, others), alone), f"{others} other sequences"


def test_the_plain_kernels_give_the_same_bits(checkpoint: Checkpoint, ids: list[int]) -> None:
    """The scalar fallback, forced, against what this machine would choose."""
    short = ids[:24]
    rows = []
    for isa in ("scalar", None):
        engine = NativeEngine(checkpoint.config, checkpoint.lookup, isa=isa)
        assert (isa or "") in engine.info.device
        chunks = [Chunk(short, outputs="last")]
        rows.append(engine.step(Batch.of(checkpoint.config, chunks), [engine.new_cache(len(short))]))
    assert np.array_equal(rows[0], rows[1])
