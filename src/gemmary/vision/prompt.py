"""The prompt of a model that sees: places for its pictures, and the text (spec 1.7, 3.4, 3.5)."""

from __future__ import annotations

from gemmary.chat.pictures import BEGIN, between, picture_ids
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer


def prompt_ids(tokenizer: Tokenizer, config: Config, text: str, pictures: int = 1) -> list[int]:
    """The ids that a model reads before its answer.

    PaliGemma: `[places of the pictures] [BOS] text "\\n"`, all of which sees itself. The newline is encoded on its own,
    as the model was trained: at the end of a text that ends in one it would merge with it. Markers of structure in the
    text (`<image>`) are spelled with ordinary pieces and take no picture's place; `<loc0000>` and `<seg000>` are the
    tokens that they name.

    Gemma 3: `[BOS] text`, with a picture where the text says `<start_of_image>`; one that says it nowhere has the
    pictures before it. Other markers are the tokens that they name, as in any raw prompt.

    Raises GemmaryError for a text that is not Unicode or has another number of places than there are pictures.
    ValueError for pictures where the model has no tower.
    """
    vision = config.vision
    if vision is None:
        if pictures:
            raise ValueError("a model without a vision tower has no places for pictures")
    elif config.picture_blocks:
        return [tokenizer.bos_id, *_among_text(tokenizer, config.image_token_id, vision.num_tokens, text, pictures)]
    places = vision.num_tokens * pictures if vision else 0
    words = tokenizer.encode(text, bos=True, escape_markers=True)
    return [config.image_token_id] * places + words + tokenizer.encode("\n")


def _among_text(tokenizer: Tokenizer, place: int, count: int, text: str, pictures: int) -> list[int]:
    if not pictures:
        return tokenizer.encode(text)
    texts = text.split(BEGIN)
    if len(texts) == 1:
        texts = [*[""] * pictures, text]
    if len(texts) != pictures + 1:
        raise GemmaryError(f"the text says {BEGIN} {len(texts) - 1} times and there are {pictures} pictures")
    return between(tokenizer, texts, picture_ids(tokenizer, place, count))
