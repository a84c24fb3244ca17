"""A conversion that is not done before it was checked: the same weights in another format, and proof that they are.

What is written stands under a temporary name beside its own until (1) every number of it is the source's, or the
source's rounded to the format that was asked for, and nothing else; (2) both, loaded, give the same logits, bit for
bit. Weights in blocks (int8, int4) are held to (1), and how far they move the logits is measured and told. Where source
or result does not fit into memory, (1) stands alone, and that is told too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.api import Model, load_checkpoint
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.convert import Progress
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.files import staged
from gemmary.quantize.blocks import quantize, row_bytes
from gemmary.quantize.leaves import FLOATS, Affine, Leaf, padded_columns, slices
from gemmary.quantize.pieces import piece
from gemmary.verify import builtin_text

Floats = npt.NDArray[np.float32]

FOLDERS = ("safetensors", "compressed-tensors", "packed", "orbax")
"""The formats that are folders."""
PROMPT_TOKENS = 24
"""Of each of the prompts whose logits are compared."""


@dataclass(frozen=True)
class Checked:
    """What was compared."""

    weights: int
    """Tensors, each whole."""
    positions: int
    """Of prompts, whose logits (or embeddings) were compared; 0: none were."""
    mean_kl: float | None
    """KL(source ‖ result) in nats where weights were put into blocks; None where the logits are the same."""
    reason: str | None
    """Why no logits were compared."""

    def __str__(self) -> str:
        weights = f"checked: all {self.weights} weights are the source's"
        if self.reason is not None:
            return f"{weights}; logits were not compared: {self.reason}"
        if self.mean_kl is not None:
            return f"{weights}, rounded; mean KL to the source {self.mean_kl:.1e} nats over {self.positions} tokens"
        return f"{weights}, and so are the logits of {self.positions} tokens, bit for bit"


def convert(
    source: Checkpoint,
    target: str | Path,
    *,
    format: str = "safetensors",
    dtype: str | None = None,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> tuple[list[str], Checked]:
    """Writes a checkpoint in another format, checks it and only then gives it its name. Returns lines that a user
    should be told, and what was checked.

    format, dtype, shard_bytes, progress: as `save_checkpoint`, which writes it. Raises GemmaryError where it cannot be
    written, or says something else than the source: then nothing is left of it.
    """
    target = Path(target)
    with staged(target, is_folder=format in FOLDERS) as place:
        made = place / target.name
        notices = save_checkpoint(source, made, format=format, dtype=dtype, shard_bytes=shard_bytes, progress=progress)
        checked = check(source, open_checkpoint(made), dtype, progress)
    return notices, checked


def check(
    source: Checkpoint, written: Checkpoint, dtype: str | None = None, progress: Progress | None = None
) -> Checked:
    """Holds what was written against what it was written from. dtype: what the weights were to be rounded to.

    Raises GemmaryError, one line, at the first thing that is not the same.
    """
    config = _same_config(source.config, written.config, written.format)
    _same_tokens(source, written)
    rounding: dict[str, Callable[[], Leaf]] = {}
    table = tensors(config)
    now, before = written.formats(), source.formats()
    rounded_to = now["layers.0.gate"] if dtype is not None else None
    sizes = [_size(now[tensor.name], tensor.shape) for tensor in table]
    for tensor, done in zip(table, accumulate(sizes), strict=True):
        rounding[tensor.name] = _same_weight(source, written, tensor, rounded_to)
        if progress:
            progress("checking weights", done, sum(sizes))
    in_blocks = any(now[t.name] not in (*FLOATS, before[t.name]) for t in table if not t.is_norm)
    if in_blocks and config.bidirectional:
        return Checked(len(table), 0, None, "blocks move an embedding's vectors, `gemmary verify` measures how far")
    trusted = replace(source, config=config, leaves=source.leaves if in_blocks else rounding, notices=[])
    prompts = _prompts(trusted)
    try:
        expected = _answers(trusted, prompts)
        found = _answers(written, prompts)
    except GemmaryError as error:
        return Checked(len(table), 0, None, str(error))
    positions = sum(map(len, prompts))
    if in_blocks:
        return Checked(len(table), positions, _mean_kl(expected, found), None)
    for mine, theirs in zip(found, expected, strict=True):
        if not np.array_equal(mine, theirs, equal_nan=True):
            raise GemmaryError("the conversion changed the logits, so it was thrown away")
    return Checked(len(table), positions, None, None)


def _same_config(source: Config, written: Config, format: str) -> Config:
    """The shape that both have. GGUF keeps a tower in another file, so what read pictures reads text there."""
    if format == "gguf" and written.vision is None:
        source = replace(source, vision=None)
    for field in fields(Config):
        mine, theirs = getattr(written, field.name), getattr(source, field.name)
        if mine != theirs:
            raise GemmaryError(
                f"the format cannot say {field.name} = {theirs} (it means {mine}), so nothing was written"
            )
    return source


def _same_tokens(source: Checkpoint, written: Checkpoint) -> None:
    """Where both have a tokenizer, it is the same."""
    try:
        tokenizers = source.tokenizer, written.tokenizer
    except GemmaryError:
        return
    ids = [tokenizer.encode(builtin_text()) for tokenizer in tokenizers]
    if ids[0] != ids[1]:
        raise GemmaryError("the conversion changed the tokenizer, so it was thrown away")


def _same_weight(source: Checkpoint, written: Checkpoint, tensor: Tensor, asked: str | None) -> Callable[[], Leaf]:
    """What makes the source's leaf as the format holds it, once that was seen to be the written one's numbers. asked:
    the format of the matrices, where one was asked for."""
    mine, theirs = written.lookup(tensor.name), source.lookup(tensor.name)
    same = mine.shape == theirs.shape and isinstance(mine, Affine) == isinstance(theirs, Affine)
    if same and isinstance(mine, Affine) and isinstance(theirs, Affine):
        same = _is_stated(mine.bias, theirs.bias, written.format, asked)
    if same and tensor.is_norm:
        same = _is_stated(mine.dequantize(), theirs.dequantize(), written.format, asked)
    elif same:
        # Where nobody asked for other numbers, blocks become floats exactly, or anything stays what it is.
        into = mine.format if asked is not None or mine.format == theirs.format else "F32"
        same = all(
            np.array_equal(_bytes(mine, *rows, into), _bytes(theirs, *rows, into)) for rows in _slices(mine, theirs)
        )
    if not same:
        advice = "" if asked else ": --dtype float32 keeps every number, --dtype bfloat16 rounds them"
        raise GemmaryError(f"the conversion changed the weight {tensor.name}, so it was thrown away{advice}")
    if tensor.is_norm or (mine.format != theirs.format and mine.format in FLOATS):
        return written.leaves[tensor.name]  # the same numbers
    return source.leaves[tensor.name]


def _size(format: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    if format in FLOATS:
        return prod(shape) * FLOATS[format].itemsize
    return shape[0] * row_bytes(format, padded_columns(format, shape[1]))


def _is_stated(mine: Floats, theirs: Floats, format: str, asked: str | None) -> bool:
    """Whether a norm or a bias, which are float32 in memory, is what the format may make of it: the same; in GGUF 1 + w
    less 1; and where a dtype was asked for, that."""
    allowed = [theirs]
    if format == "gguf":
        allowed.append((theirs + np.float32(1.0)) - np.float32(1.0))
    if asked in FLOATS:
        allowed.append(theirs.astype(FLOATS[asked]).astype(np.float32))
    return any(np.array_equal(mine, each, equal_nan=True) for each in allowed)


def _bytes(leaf: Leaf, start: int, stop: int, format: str) -> npt.NDArray[np.uint8]:
    """Rows in a format; in blocks with the zeros that fill up the last one of a row (`leaves.quantized`)."""
    if leaf.format == format or format in FLOATS:
        return piece(leaf, start, stop, format)
    columns = leaf.shape[1]
    filled = np.zeros((stop - start, padded_columns(format, columns)), np.float32)
    filled[:, :columns] = leaf.rows(np.arange(start, stop))
    return quantize(format, filled).reshape(-1)


def _slices(mine: Leaf, theirs: Leaf) -> Iterator[tuple[int, int]]:
    """Consecutive rows, whose memory is let go when they were compared."""
    for start, stop in slices(mine):
        yield start, stop
        mine.release(start, stop)
        theirs.release(start, stop)


def _prompts(source: Checkpoint) -> list[list[int]]:
    """The beginning of a text, where there is a tokenizer, and tokens from all over the vocabulary."""
    count = min(PROMPT_TOKENS, source.config.context_length)
    spread = np.random.default_rng(0).integers(0, source.config.vocab_size, count)
    prompts = [[int(i) for i in spread]]
    try:
        ids = source.tokenizer.encode(builtin_text()[: 16 * count], bos=True)[:count]
    except GemmaryError:
        return prompts
    return [*prompts, ids]


def _answers(checkpoint: Checkpoint, prompts: list[list[int]]) -> list[npt.NDArray[Any]]:
    """Logits [T, V] of each prompt, or the vectors of an embedding model."""
    with load_checkpoint(checkpoint, context=min(2 * PROMPT_TOKENS, checkpoint.config.context_length)) as model:
        return [_answer(model, prompt) for prompt in prompts]


def _answer(model: Model, prompt: list[int]) -> npt.NDArray[Any]:
    if not model.config.bidirectional:
        return model.logits(prompt)
    with model.scheduler.lock:
        return model.engine.embed(Batch.of(model.config, [Chunk(prompt, outputs="none")]))


def _mean_kl(expected: list[npt.NDArray[Any]], found: list[npt.NDArray[Any]]) -> float:
    p, q = (_log_softmax(np.concatenate(rows).astype(np.float64)) for rows in (expected, found))
    return float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1)))


def _log_softmax(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    result: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
