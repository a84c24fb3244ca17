"""A small model of the family that guesses tokens for a large one to check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gemmary.checkpoints import Checkpoint
from gemmary.engines import Engine
from gemmary.errors import GemmaryError
from gemmary.generate.draft import Draft

if TYPE_CHECKING:
    from gemmary.loaded import Model


def draft_guesser(draft: Model, checkpoint: Checkpoint, engine: Engine) -> Draft:
    """`draft` as what guesses for an engine of `checkpoint`.

    Raises GemmaryError where their tokenizers differ, or the engine could not check a guess without changing the text.
    """
    if not engine.info.batch_invariant:
        raise GemmaryError(
            f"the {engine.info.engine} engine cannot check guesses without changing the text: use the native engine, "
            "or no draft model"
        )
    if draft.config.bidirectional:
        raise GemmaryError(f"{draft.name} is an encoder and writes no text: it cannot be the draft model")
    ours, theirs = checkpoint.tokenizer.to_arrays(), draft.tokenizer.to_arrays()
    count, other = engine.config.vocab_size, draft.config.vocab_size
    if count != other or not ours.same_tokens(theirs, count):
        sizes = f"{other:,} tokens, not {count:,}" if count != other else "other tokens at the same ids"
        raise GemmaryError(
            f"{draft.name} cannot be the draft model of {checkpoint.name}: its vocabulary has {sizes}; "
            "choose a smaller model of the same generation"
        )
    share = sum(draft.info.formats.values()) / max(1, sum(engine.info.formats.values()))
    return Draft(draft.engine, share, called=f"the draft model {draft.name}", lock=draft.scheduler.lock)
