"""A model that sees pictures of another size than it was trained on: its table of positions is resampled.

Bilinear, with the corners of the grid kept where they are, as big_vision does (scipy's `zoom` of order 1). Fine-tuning
after it is what makes the new resolution worth its cost.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Dense, Leaf

POSITION = "vision.position"


def with_image_size(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The same weights for pictures of `image_size` x `image_size` pixels.

    Raises GemmaryError for a model that sees no pictures, or a size that does not divide into its patches.
    """
    config = checkpoint.config
    if config.vision is None:
        raise GemmaryError(f"{checkpoint.name} sees no pictures: it has no image size")
    if image_size == config.vision.image_size:
        return checkpoint
    try:
        vision = replace(config.vision, image_size=image_size)
    except ValueError as error:
        raise GemmaryError(f"an image size of {image_size} is not possible: {error}") from None
    if vision.num_tokens >= config.context_length:
        raise GemmaryError(f"{image_size} pixels are {vision.num_tokens:,} tokens: more than the model's context")

    def positions() -> Leaf:
        return Dense(resampled(checkpoint.lookup(POSITION).dequantize(), vision.side))

    notice = (
        f"positions were resampled from {config.vision.image_size} to {image_size} pixels: fine-tune for full quality"
    )
    return replace(
        checkpoint,
        config=replace(config, vision=vision),
        leaves={**checkpoint.leaves, POSITION: positions},
        notices=[*checkpoint.notices, notice],
    )


def resampled(table: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """A table of positions [old², C] -> [side², C]."""
    old = round(len(table) ** 0.5)
    along = _weights(old, side)
    grid = table.reshape(old, old, -1)
    result: npt.NDArray[np.float32] = np.einsum("ai,bj,ijc->abc", along, along, grid, optimize=True)
    return np.ascontiguousarray(result.reshape(side * side, -1), dtype=np.float32)


def _weights(old: int, new: int) -> npt.NDArray[np.float32]:
    """[new, old]: what each new place takes of the old ones."""
    places = np.linspace(0, old - 1, new)
    low = np.minimum(places.astype(np.int64), max(old - 2, 0))
    weights = np.zeros((new, old), dtype=np.float32)
    weights[np.arange(new), low] = 1 - (places - low)
    weights[np.arange(new), np.minimum(low + 1, old - 1)] += places - low
    return weights
