"""All rows of a run as documents, read and checked before training starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gemmary.chat.messages import FOLDED
from gemmary.checkpoints import Checkpoint
from gemmary.errors import GemmaryError
from gemmary.tokenizer.pieces import STRUCTURE
from gemmary.tune.image_rows import Codec
from gemmary.tune.rows import Example, Form, Row, example_of, form_of
from gemmary.tune.settings import Settings
from gemmary.tune.sources import find_sources
from gemmary.vision.codec import open_codec

SPELLED = "a text spells a marker of Gemma's prompts, which is read as plain text: conversations are `messages` rows"


_MARKERS = re.compile(f"{STRUCTURE.pattern}|<bos>|<eos>")


@dataclass(frozen=True)
class Data:
    """The documents of each split, in the order of the rows."""

    train: list[Example]
    valid: list[Example]
    """Empty where there is none."""
    test: list[Example]
    notices: tuple[str, ...]
    """What a user should be told of the rows."""


def load_data(settings: Settings, checkpoint: Checkpoint) -> Data:
    """Every row that the settings name, encoded. Raises GemmaryError with file, line and reason for a bad one."""
    form = form_of(checkpoint, settings.chat_style, _codec(settings, checkpoint), settings.augment)
    sources = find_sources(settings.data, validation=settings.validation, test=settings.test, seed=settings.seed)
    told: Counter[str] = Counter()
    splits: dict[str, list[Example]] = {"valid": [], "test": []}
    for name, source in sources.items():
        splits[name] = []
        for row, place in source:
            folder = Path(place.rpartition(":")[0]).parent
            splits[name].append(example_of(row, checkpoint.tokenizer, form, source=place, folder=folder))
            told.update(_told_of(row, form))
        if not splits[name]:
            apart = " once the others are set apart" if source.share != (0.0, 1.0) else ""
            raise GemmaryError(f"{source.paths[0]} has no rows to {_PURPOSE[name]}{apart}")
    notices = [f"{count:,} row{'s' * (count > 1)}: {text}" for text, count in told.items()]
    return Data(splits["train"], splits["valid"], splits["test"], tuple(notices))


_PURPOSE = {"train": "train on", "valid": "validate on", "test": "test on"}


def codec_file(settings: Settings, checkpoint: Checkpoint) -> Path | None:
    """The codec of the settings, or the one that came with the model; None: PaliGemma's."""
    if settings.mask_codec is not None:
        return Path(settings.mask_codec).expanduser()
    return checkpoint.mask_codec_file


def _codec(settings: Settings, checkpoint: Checkpoint) -> Codec:
    """Opened, or fetched, when a mask first needs it."""
    file = codec_file(settings, checkpoint)
    return cache(lambda: open_codec(file))


def _told_of(row: Row, form: Form) -> Iterator[str]:
    keys = ("text", "prompt", "completion", "prefix", "suffix")
    texts = [text for key in keys if isinstance(text := row.get(key), str)]
    if any(_MARKERS.search(text) for text in texts):
        yield SPELLED
    messages = row.get("messages")
    if messages and messages[0]["role"] == "system" and form.style == "gemma1":
        yield FOLDED
