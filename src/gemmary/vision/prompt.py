"""The prompt of PaliGemma: places for its pictures, then the text; all of it sees itself whole (spec 3.4, 3.5)."""

from __future__ import annotations

from gemmary.config import Config
from gemmary.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, config: Config, text: str, pictures: int = 1) -> list[int]:
    """`[places of the pictures] [BOS] text "\\n"`: the prefix of a sequence, whose answer comes behind it.

    The newline is encoded on its own, as the model was trained: at the end of a text that ends in one it would merge
    with it. Markers of structure in the text (`<image>`) are spelled with ordinary pieces and take no picture's place;
    `<loc0000>` and `<seg000>` are the tokens that they name.

    Raises GemmaryError for a text that is not Unicode. ValueError for pictures where the model has no tower.
    """
    if pictures and config.vision is None:
        raise ValueError("a model without a vision tower has no places for pictures")
    places = config.vision.num_patches * pictures if config.vision else 0
    words = tokenizer.encode(text, bos=True, escape_markers=True)
    return [config.image_token_id] * places + words + tokenizer.encode("\n")
