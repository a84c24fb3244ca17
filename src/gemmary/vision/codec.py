"""Where a model's mask codec comes from: the file beside its weights, or else the one of PaliGemma."""

from __future__ import annotations

from pathlib import Path

from gemmary.checkpoints.download import fetch_file
from gemmary.checkpoints.starter import cache_folder
from gemmary.errors import GemmaryError
from gemmary.vision.masks import MaskCodec

FILE = "vae-oid.npz"
URL = f"https://storage.googleapis.com/big_vision/paligemma/{FILE}"
"""Where big_vision publishes it (its `evaluators/proj/paligemma/transfers/segmentation.py`)."""
SHA256 = "5586010257b8536dddefab65e7755077f21d5672d5674dacf911f73ae95a4447"
"""As the pointer of a published Git LFS copy of it states it, with its size."""
SIZE = 8_479_556


def open_codec(own: Path | None) -> MaskCodec:
    """own: the model's; None: PaliGemma's, fetched on first use into Gemmary's cache.

    Raises GemmaryError where the file is neither here nor to be had, or is no codec.
    """
    if own is not None:
        return MaskCodec.open(own)
    path = cache_folder() / FILE
    if not path.is_file():
        try:
            fetch_file(URL, path, SHA256, SIZE)
        except GemmaryError as error:
            raise GemmaryError(f"masks need {FILE}, which decodes them: {error}") from None
    return MaskCodec.open(path)
