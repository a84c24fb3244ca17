"""Which format each matrix of a model gets: one for all, another for the embedding table, or a mix that fits a number
of bits per weight and is finest where roughness was measured to cost most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from math import prod

import numpy as np
import numpy.typing as npt

from gemmary.calibrate.forward import run
from gemmary.checkpoints import Checkpoint, compressed
from gemmary.checkpoints.convert import NAMES
from gemmary.checkpoints.mixes import ASKED, block_types, kind_of
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import FLOATS, Leaf, padded_columns, quantized, slices

FORMATS: dict[str, str] = {name: NAMES[name] for name in ("int8", "int4", *ASKED)}
"""What a user may ask for -> the block type, or the mix of them."""

Ladder = tuple[tuple[str, float], ...]
LADDER: Ladder = (("Q4_0", 1.0), ("Q5_0", 1 / 4), ("Q8_0", 1 / 256))
"""The formats of a mix, and the squared error of each over that of the first: a bit more halves the step."""
PAIR = tuple(step for step in LADDER if step[0] in compressed.BITS)
"""Those of them that a compressed-tensors folder holds."""
TOKENS = 256
"""Of the calibration text, that the costs are measured on."""
STRETCH = 64
"""Tokens of it that follow each other."""

Floats = npt.NDArray[np.float32]


def bits(format: str) -> float:
    """Bits of a weight, its share of the scales included."""
    if format in FLOATS:
        return 8 * FLOATS[format].itemsize
    size, nbytes = BLOCK_SIZES[format]
    return 8 * nbytes / size


def uniform(checkpoint: Checkpoint, format: str, embed: str | None = None) -> dict[str, str]:
    """The block type of every matrix that gets one (mixes.py): `format`, for the embedding table `embed`, and for the
    tower what it has beside such a decoder. Raises GemmaryError where rows do not divide into blocks."""
    found = block_types(checkpoint.config, format, embed)
    for tensor in tensors(checkpoint.config):
        if tensor.name not in found:
            continue
        block_type, columns = found[tensor.name], tensor.shape[1]
        try:
            row_bytes(block_type, padded_columns(block_type, columns) if tensor.bias else columns)
        except GemmaryError as error:
            raise GemmaryError(f"{checkpoint.name} cannot be quantized: in {tensor.name} {error}") from None
    return found


def bits_per_weight(checkpoint: Checkpoint, formats: dict[str, str]) -> dict[str, float]:
    """Mean bits of the matrices in `formats`: `all`, the embedding table `embed`, the `others`."""
    table = [t for t in tensors(checkpoint.config) if t.name in formats]

    def mean(chosen: Iterable[Tensor]) -> float:
        counts = {t.name: prod(t.shape) for t in chosen}
        return sum(bits(formats[name]) * count for name, count in counts.items()) / sum(counts.values())

    embed = [t for t in table if t.name == "embed"]
    return {"all": mean(table), "embed": mean(embed), "others": mean(t for t in table if t.name != "embed")}


def mixed(
    checkpoint: Checkpoint,
    target: float,
    ids: Sequence[int],
    progress: Callable[[int, int], None],
    *,
    layers_only: bool = False,
) -> dict[str, str]:
    """The block type of every matrix, so that all together have at most `target` bits a weight. layers_only: of the
    matrices of the decoder's layers alone, and of those types that a compressed-tensors folder holds.

    Matrices of one kind (all `gate`s) have one format. The choice is that of the least cost, as measured
    for each kind by itself.

    Raises GemmaryError for a target below the coarsest, and for rows that do not divide into blocks.
    """
    ladder = PAIR if layers_only else LADDER
    coarsest = ladder[0][0]
    found = uniform(checkpoint, coarsest)
    if layers_only:
        found = {t.name: found[t.name] for t in tensors(checkpoint.config) if compressed.is_packed(t)}
    weights: dict[str, int] = {}
    for tensor in tensors(checkpoint.config):
        if tensor.name in found and found[tensor.name] == coarsest:
            weights[kind_of(tensor.name)] = weights.get(kind_of(tensor.name), 0) + prod(tensor.shape)
    if target < bits(coarsest):
        raise GemmaryError(f"a mix has at least {bits(coarsest)} bits a weight ({coarsest}), not {target}")
    costs = sensitivity(checkpoint, coarsest, sorted(weights), stretches(ids), progress)
    steps = cheapest(weights, costs, target, ladder)
    return {name: ladder[steps[kind_of(name)]][0] if kind_of(name) in steps else f for name, f in found.items()}


def cheapest(
    weights: dict[str, int], costs: dict[str, float], target: float, ladder: Ladder = LADDER
) -> dict[str, int]:
    """The step of a ladder for each kind, with the least cost of all whose bits fit the target: every choice is tried.

    weights: how many weights a kind has. costs: what the coarsest format of a kind costs.
    """
    room = target * sum(weights.values())

    def cost(steps: Iterable[int]) -> float:
        return sum(costs[kind] * ladder[step][1] for kind, step in zip(weights, steps, strict=True))

    def size(steps: Iterable[int]) -> float:
        return sum(count * bits(ladder[step][0]) for count, step in zip(weights.values(), steps, strict=True))

    choices = product(range(len(ladder)), repeat=len(weights))
    return dict(zip(weights, min((steps for steps in choices if size(steps) <= room), key=cost), strict=True))


def sensitivity(
    checkpoint: Checkpoint, format: str, kinds: Sequence[str], ids: Sequence[int], progress: Callable[[int, int], None]
) -> dict[str, float]:
    """What it costs to round one kind of matrix alone: the mean KL of the predictions on a text, in nats."""
    config = checkpoint.config
    if config.bidirectional:
        raise GemmaryError(f"{checkpoint.name} predicts no tokens that a mix could be chosen by: give it one format")

    def log_probabilities(changed: str | None) -> Floats:
        def lookup(name: str) -> Leaf:
            leaf = checkpoint.lookup(name)
            return quantized(leaf, format) if changed is not None and kind_of(name) == changed else leaf

        hidden = run(config, lookup, ids, set(), _never, STRETCH)
        return _log_softmax(hidden, lookup("embed"), config.final_logit_softcap)

    expected, found = log_probabilities(None), {}
    for done, kind in enumerate(kinds, 1):
        difference = log_probabilities(kind)
        total = 0.0
        for row, other in zip(difference, expected, strict=True):
            total += float(np.dot(np.exp(other), other - row))
        found[kind] = total / len(expected)
        progress(done, len(kinds))
    return found


def stretches(ids: Sequence[int]) -> list[int]:
    """`TOKENS` of a text in stretches of `STRETCH`, evenly from all of it; all of a text that is not longer."""
    if len(ids) <= TOKENS:
        return list(ids)
    count = TOKENS // STRETCH
    starts = [i * (len(ids) - STRETCH) // (count - 1) for i in range(count)]
    return [token for start in starts for token in ids[start : start + STRETCH]]


def _never(name: str, leaf: Leaf, hessian: npt.NDArray[np.float64]) -> Leaf:
    raise AssertionError(f"nothing waits for {name}")


def _log_softmax(hidden: Floats, head: Leaf, cap: float | None) -> Floats:
    """[T, V], in place after the product, of which a bounded number of the head's rows is formed at a time."""
    scores = np.empty((len(hidden), head.shape[0]), dtype=np.float32)
    for start, stop in slices(head):
        scores[:, start:stop] = hidden @ head.rows(np.arange(start, stop)).T
    for row in scores:
        if cap:
            row[:] = np.float32(cap) * np.tanh(row / np.float32(cap))
        row -= row.max()
        row -= np.log(np.exp(row).sum())
    return scores
