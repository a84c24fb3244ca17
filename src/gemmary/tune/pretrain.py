"""`pretrain`: a new small Gemma out of text, its tokenizer included, and how well it predicts text that it never saw.

OUT/start/            what it starts from (`tune/start.py`)
OUT/model/            a run of `tune` over that: checkpoints, metrics, and at the end the model
OUT/held-out.json     what the model is worth (from text; of image rows, the loss on those held out is the run's)
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints import open_checkpoint
from gemmary.files import atomic_file
from gemmary.tune.heldout import HeldOut, measure
from gemmary.tune.pretrain_settings import PretrainSettings
from gemmary.tune.start import DATA, HELD_OUT, UNTRAINED, prepare, read_rows, shares

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer
    from gemmary.tune.progress import Progress, Result


@dataclass(frozen=True)
class Pretrained:
    """How a run ended."""

    folder: Path
    """OUT/model: what `gemmary run`, `gemmary.load` and transformers take."""
    training: Result
    held_out: HeldOut | None
    """None of a run from image rows (`training.test_loss` is measured on those held out), and in processes that do not
    lead."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        held_out = {} if self.held_out is None else {"held_out": self.held_out.as_dict()}
        return {**self.training.as_dict(), **held_out}


def pretrain(settings: PretrainSettings, progress: Progress | None = None) -> Pretrained:
    """Makes tokenizer and weights, trains them, and measures the model that it wrote on the documents held out.

    The same text and settings give the same bytes, however often the run was killed and resumed. Raises what
    `gemmary.tune.loop.tune` raises, and GemmaryError for text that is not there or too little.
    """
    from gemmary.tune.loop import tune

    start, notices = prepare(settings)
    for notice in notices:
        if progress is not None:
            progress.note(notice)
    if settings.data is not None:
        result = tune(settings.tuning(start / UNTRAINED, Path(settings.data), *shares(settings)), progress)
        return Pretrained(result.folder, result, None)
    result = tune(settings.tuning(start / UNTRAINED, start / DATA), progress)
    from gemmary.tune.parallel import leads  # PyTorch, which reading rows and settings does without

    if not leads():
        return Pretrained(result.folder, result, None)
    held_out = measure_folder(result.folder, start / HELD_OUT)
    with atomic_file(start.parent / "held-out.json") as file:
        file.write((json.dumps(held_out.as_dict(), indent=2) + "\n").encode())
    return Pretrained(result.folder, result, held_out)


def measure_folder(model: Path, rows: Path) -> HeldOut:
    """A model from its folder, in float32, on the documents of a .jsonl file."""
    from gemmary.engines.torch import TorchEngine

    checkpoint = open_checkpoint(model)
    engine = TorchEngine(checkpoint.config, checkpoint.lookup, dtype="float32")
    documents = [(text, document_ids(checkpoint.tokenizer, text)) for text in read_rows(rows)]
    return measure(engine, checkpoint.config, documents)


def document_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A document as it is trained on: markers in it are text."""
    return tokenizer.encode(text, bos=True, eos=True, escape_markers=True)
