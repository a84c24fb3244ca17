"""One row of logits to one token: repetition penalty, temperature, top-k, top-p, min-p, a draw. numpy, float32.

The order and the meaning are those of transformers' logits processors. Where tokens tie at a filter's edge, all of them
stay (transformers does so for top-k; for top-p its sort picks some). A row costs about 30 microseconds when greedy
and well under a millisecond with top-k at V = 262,144, because nothing sorts the vocabulary; without it about ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.generate.params import SamplingParams

Floats = npt.NDArray[Any]
Ids = npt.NDArray[np.integer[Any]]

_BLOCKS = 512
_NUCLEUS = 1024
_COLDEST, _HOTTEST = 1e-30, 1e30
"""Temperatures beyond them are these: float32 would make them 0 or infinite, and 0 / 0 of the likeliest token."""


def sample(logits: Floats, params: SamplingParams, history: Sequence[int], seed: int, index: int) -> int:
    """The next token. logits: float32 [V], unmodified. history: prompt and text so far, for the penalty.

    seed, index: the draw is a function of these two alone (index: how many tokens were drawn before it). Raises
    GemmaryError when the logits are not numbers, which means that the weights or the engine are broken.
    """
    logits, best = _checked(logits, params, history)
    if params.temperature == 0:
        return best
    ids, probabilities = distribution(logits, params)
    return int(ids[race(probabilities, ids, seed, index).argmin()])


def sample_clearly(
    logits: Floats, params: SamplingParams, history: Sequence[int], seed: int, index: int
) -> tuple[int, float]:
    """As `sample`, and by how much the choice was clear: it is the same for all logits (over the temperature, if any)
    that differ from these by less than half of that."""
    logits, best = _checked(logits, params, history)
    if params.temperature == 0:
        return best, float(logits[best] - kth_largest(logits, 2)) if len(logits) > 1 else np.inf
    ids, probabilities = distribution(logits, params)
    times = race(probabilities, ids, seed, index)
    if len(times) == 1:
        return int(ids[0]), np.inf
    first, second = np.partition(times, 1)[:2]
    return int(ids[times.argmin()]), float(np.log(second / first))


def _checked(logits: Floats, params: SamplingParams, history: Sequence[int]) -> tuple[Floats, int]:
    """Logits with the penalty, and the likeliest token."""
    logits = penalize(logits, params.repetition_penalty, history)
    best = int(np.argmax(logits))  # the place of a NaN, if there is one
    if not np.isfinite(logits[best]):
        raise GemmaryError("the model's logits are not finite numbers: the weights are damaged; run `gemmary verify`")
    return logits, best


def penalize(logits: Floats, penalty: float, history: Sequence[int]) -> Floats:
    """Divides positive logits of the tokens of `history` by `penalty` and multiplies negative ones, once a token.

    Places of pictures in `history`, whose id is no token's, count for nothing.
    """
    if penalty == 1 or not len(history):
        return logits
    logits = logits.copy()
    ids = np.unique(np.asarray(history))
    ids = ids[ids < len(logits)]
    scores = logits[ids]
    logits[ids] = np.where(scores < 0, scores * np.float32(penalty), scores / np.float32(penalty))
    return logits


def distribution(logits: Floats, params: SamplingParams) -> tuple[Ids, Floats]:
    """The tokens that the filters leave, in the order of their ids, and their probabilities up to a common factor."""
    ids: Ids = np.arange(len(logits))
    if 0 < params.top_k < len(logits):
        ids = np.flatnonzero(logits >= kth_largest(logits, params.top_k))
        logits = logits[ids]
    temperature = np.float32(min(max(params.temperature, _COLDEST), _HOTTEST))
    probabilities = np.exp((logits - logits.max()) / temperature)
    keep = np.ones(len(ids), dtype=bool)
    if params.top_p < 1:
        keep &= probabilities >= nucleus_edge(probabilities, params.top_p)
    if params.min_p > 0:
        keep &= probabilities >= np.float32(params.min_p)  # the likeliest has 1
    return ids[keep], probabilities[keep]


def kth_largest(values: Floats, k: int) -> Any:
    """The k-th largest value. A bound from block maxima leaves few candidates to partition."""
    per_block = len(values) // _BLOCKS
    if k <= _BLOCKS and per_block > 1:
        maxima = values[: per_block * _BLOCKS].reshape(_BLOCKS, per_block).max(axis=1)
        values = values[values >= np.partition(maxima, -k)[-k]]  # at least k values are as large as this
    return np.partition(values, -k)[-k]


def nucleus_edge(probabilities: Floats, top_p: float) -> Any:
    """The probability of the token with which the likeliest first add up to top_p of the whole."""
    wanted = top_p * probabilities.sum(dtype=np.float64)
    few = probabilities
    if len(probabilities) > 4 * _NUCLEUS:
        few = probabilities[probabilities >= kth_largest(probabilities, _NUCLEUS)]
    ordered = np.sort(few)[::-1]
    cumulative = np.cumsum(ordered.astype(np.float64))
    if cumulative[-1] < wanted and len(few) < len(probabilities):
        ordered = np.sort(probabilities)[::-1]
        cumulative = np.cumsum(ordered.astype(np.float64))
    return ordered[min(int(np.searchsorted(cumulative, wanted)), len(ordered) - 1)]


def race(probabilities: Floats, ids: Ids, seed: int, index: int) -> Floats:
    """When each token arrives if all set out with rates in proportion to their probabilities: the first to arrive is a
    draw from them (an exponential race, which is the Gumbel-max trick without its logarithms). float64 [len(ids)].

    Every token has noise of its own, so two distributions that are nearly the same nearly always draw the same token,
    whatever else they allow: what a draft model needs.
    """
    with np.errstate(divide="ignore"):  # a rate that is too small for a float32 never arrives
        times: Floats = -np.log(uniform(seed, index, ids)) / probabilities
    return times


def uniform(seed: int, index: int, ids: Ids) -> Floats:
    """For each of the ids a number in (0, 1): the id-th of a stream (SplitMix64) that begins at the `index`-th block of
    a counter-based generator keyed by `seed`. float64 [len(ids)]."""
    start = np.random.Philox(key=seed, counter=[0, index, 0, 0]).random_raw()
    bits = (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def log_softmax_at(logits: Floats, ids: Ids) -> Floats:
    """Log-probabilities of some tokens under the unmodified distribution. logits float32 [V] -> float64 [len(ids)]."""
    top = logits.max()
    normalizer = float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    return logits[ids].astype(np.float64) - normalizer


def likeliest(logits: Floats, count: int) -> Ids:
    """The `count` likeliest tokens, the likeliest first; ties in the order of their ids."""
    if count == 0:
        return np.zeros(0, dtype=np.int64)
    ids = np.flatnonzero(logits >= kth_largest(logits, min(count, len(logits))))
    return ids[np.argsort(-logits[ids], kind="stable")][:count]
