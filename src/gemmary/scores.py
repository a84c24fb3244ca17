"""What a model makes of given tokens: logits and log-probabilities, in pieces that memory has room for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk, uncut
from gemmary.chat import Prompt
from gemmary.errors import GemmaryError
from gemmary.generate.sampling import log_softmax_at
from gemmary.generate.scheduler import STEP_TOKENS
from gemmary.memory import require

if TYPE_CHECKING:
    from gemmary.loaded import Model

Float32 = npt.NDArray[np.float32]
_LOGIT_BYTES = 64 << 20


def logits(model: Model, ids: Sequence[int], pixels: npt.ArrayLike | None, adapter: int) -> Float32:
    """See `Model.logits`."""
    images = None if pixels is None else _checked_pixels(model, pixels)
    if images is None and not model.config.prefix_lm:
        ids = _checked(model, ids)
    else:
        _check_places(model, ids, images)
    _require(model, ids)
    seen = None
    if images is not None:
        with model.scheduler.lock:
            seen = model.engine.see(images, adapter=adapter)
    if model.config.prefix_lm:
        return _prefix_logits(model, ids, seen, adapter)
    out = np.empty((len(ids), model.config.vocab_size), dtype=np.float32)
    for start, rows in _rows(model, list(ids), adapter, seen):
        out[start : start + len(rows)] = rows
    return out


def score(model: Model, ids: Sequence[int], adapter: int) -> Float32:
    """See `Model.score`."""
    ids = _checked(model, ids)
    out = np.empty(len(ids) - 1, dtype=np.float32)
    if not len(out):
        return out
    for start, rows in _rows(model, ids[:-1], adapter):
        for index, row in enumerate(rows, start):
            out[index] = log_softmax_at(row, np.array([ids[index + 1]]))[0]
    return out


def are_ids(value: object) -> bool:
    """Whether this is a list of token ids, rather than a text or a list of prompts."""
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and np.issubdtype(value.dtype, np.integer)
    if not isinstance(value, Sequence) or isinstance(value, str | bytes | Prompt):
        return False
    return bool(value) and all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in value)


def _rows(model: Model, ids: list[int], adapter: int, seen: Float32 | None = None) -> Iterator[tuple[int, Float32]]:
    """(first row, logits [rows, V]) of consecutive pieces of `ids`. seen: what stands in the places for pictures."""
    cache, place, start = model.engine.new_cache(len(ids)), model.config.image_token_id, 0
    count = min(STEP_TOKENS, max(1, _LOGIT_BYTES // (4 * model.config.vocab_size)))
    while start < len(ids):
        part = ids[start : start + uncut(model.config, ids, start, min(count, len(ids) - start))]
        before = ids[:start].count(place)
        shown = seen[before : before + part.count(place)] if seen is not None else None
        chunk = Chunk(part, start, outputs="all", adapter=adapter, pictures=shown)
        with model.scheduler.lock:
            rows = model.engine.step(Batch.of(model.config, [chunk]), [cache])
        yield start, rows
        start += len(part)


def _prefix_logits(model: Model, ids: Sequence[int], seen: Float32 | None, adapter: int) -> Float32:
    """Of a prompt that sees itself whole: in one step."""
    with model.scheduler.lock:
        chunk = Chunk([int(i) for i in ids], 0, len(ids), "all", adapter, seen)
        return model.engine.step(Batch.of(model.config, [chunk]), [model.engine.new_cache(len(ids))])


def _check_places(model: Model, ids: Sequence[int], images: Float32 | None) -> None:
    place = model.config.image_token_id
    _checked(model, [0 if i == place else i for i in ids] if are_ids(ids) else ids)
    vision, places = model.config.vision, list(ids).count(place)
    needed = len(images) * vision.num_tokens if images is not None and vision is not None else 0
    if places != needed:
        raise GemmaryError(f"the ids have {places:,} places (id {place}) for tokens of pictures, the pixels {needed:,}")


def _checked(model: Model, ids: Any) -> list[int]:
    if model.config.bidirectional:
        raise GemmaryError(f"{model.name} is an encoder: it has no next-token scores; use `embed`")
    if not are_ids(ids) or not len(ids):
        raise GemmaryError("logits and scores are of a non-empty list of token ids: encode the text first")
    if len(ids) > model.context:
        raise GemmaryError(f"{len(ids):,} tokens do not fit the context of {model.context:,}")
    if min(ids) < 0 or max(ids) >= model.config.vocab_size:
        raise GemmaryError(f"a token id is outside the vocabulary (0 to {model.config.vocab_size - 1})")
    return [int(i) for i in ids]


def _checked_pixels(model: Model, given: npt.ArrayLike) -> Float32:
    vision = model.config.vision
    if vision is None:
        raise GemmaryError(f"{model.name} reads text only: it has no use for pixels")
    pixels, side = np.asarray(given), vision.image_size
    if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3) or not np.issubdtype(pixels.dtype, np.floating):
        raise GemmaryError(f"pixels are float32 [images, {side}, {side}, 3], not {pixels.dtype} {pixels.shape}")
    if not (np.abs(pixels) <= 1).all():
        raise GemmaryError("pixels lie between -1 and 1: `gemmary.vision.preprocess.pixels` makes them")
    return pixels.astype(np.float32)


def _require(model: Model, ids: Sequence[int]) -> None:
    shape = len(ids), model.config.vocab_size
    require(4 * shape[0] * shape[1], f"an array of logits [{shape[0]}, {shape[1]}]", "use `score`, or fewer ids")
