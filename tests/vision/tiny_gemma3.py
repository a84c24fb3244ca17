"""A tiny Gemma 3 of random weights that sees, with the markers of its pictures in its vocabulary, in memory."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

from gemmary.api import Model
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import VisionConfig
from gemmary.engines.reference import ReferenceEngine
from gemmary.tokenizer import PieceType, Tokenizer
from tests.tiny import TINY
from tests.tokenizer import small
from tests.vision.tiny_paligemma import leaves

SIZE, TOKENS = 16, 4
"""Of the pictures: 4 x 4 patches of 4 x 4 pixels, four of which become a token."""
MARKERS = ["<start_of_image>", "<end_of_image>", "\n\n\n"]
BEGIN = len(small.PIECES)
END, THREE_LINES = BEGIN + 1, BEGIN + 2
CONFIG = replace(
    TINY["gemma3"],
    vocab_size=len(small.PIECES) + len(MARKERS),
    context_length=256,
    vision=VisionConfig(SIZE, 2, 12, 2, 20, 4, pool=2, soft_norm=True),
)
PLACE = CONFIG.image_token_id
PICTURE = [BEGIN, *[PLACE] * TOKENS, END]


@lru_cache
def tokenizer() -> Tokenizer:
    pieces, types = [*small.PIECES, *MARKERS], [*small.TYPES, *[PieceType.USER_DEFINED] * len(MARKERS)]
    return Tokenizer.from_pieces(pieces, [*small.SCORES, *[0.0] * len(MARKERS)], types)


def model(template: str | None = None) -> Model:
    lookup = leaves(CONFIG)
    found = {tensor.name: partial(lookup, tensor.name) for tensor in tensors(CONFIG)}
    checkpoint = Checkpoint(Path("tiny"), "safetensors", CONFIG, "tiny", found, tokenizer, lambda: template)
    return Model(checkpoint, ReferenceEngine(CONFIG, lookup))
