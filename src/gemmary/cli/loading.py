"""Loading a model for a command, and saying what was loaded."""

from __future__ import annotations

import argparse
import sys
import warnings
from typing import TYPE_CHECKING, Any

import gemmary
from gemmary.checkpoints import kept, starter
from gemmary.cli import console
from gemmary.errors import GemmaryError
from gemmary.memory import size

if TYPE_CHECKING:
    from gemmary.api import Model
    from gemmary.generate import Stats


def load_model(arguments: argparse.Namespace, name: str | None = None, **options: Any) -> Model:
    """The model that the arguments name; `options` come before the arguments."""
    name = name or arguments.model
    if starter.NAME in (name, getattr(arguments, "draft", None)):
        with console.bar(is_bytes=True) as progress:
            starter.starter_path(progress)
    options_given = ("engine", "threads", "dtype", "quant", "kv_dtype", "context", "draft", "adapter", "isa")
    given = {key: getattr(arguments, key, None) for key in options_given}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gemmary.GemmaryWarning)  # its lines are the model's notices, which are printed
        return gemmary.load(name, **{key: value for key, value in {**given, **options}.items() if value is not None})


def keep_packed(model: Model) -> None:
    """Keeps a packed copy of what a command had to pack, after its work is done, where that is worthwhile: the next
    start maps it. A failure is a line and costs nothing else."""
    sys.stdout.flush()  # whoever reads the answer has it before
    for each in (model, model.draft):
        if each is None or not (nbytes := each.packed_bytes) or not kept.is_worthwhile(nbytes):
            continue
        try:
            with console.bar(is_bytes=True) as progress:
                each.keep_packed(progress)
        except GemmaryError as error:
            console.note(f"note: no packed copy of {each.name} was kept: {error}")
            continue
        console.note(
            f"note: a packed copy of {each.name} ({size(nbytes)}) is kept in {kept.home()}, so that it loads sooner "
            f"from now on; {kept.VARIABLE}=0 turns this off, `gemmary rm --packed` deletes it"
        )


def describe(model: Model) -> str:
    """Model, engine, device, dtype, weights, context, threads and adapter, on one line."""
    info = model.info
    total = sum(info.formats.values())
    shares = sorted(info.formats.items(), key=lambda item: -item[1])
    weights = ", ".join(name for name, held in shares if held * 100 >= total) or model.weight_format
    threads = f"{info.threads} thread{'s' if info.threads > 1 else ''}"
    if info.kv_dtype == "int8":
        weights += ", keys and values int8"
    draft = f" · draft {model.draft.name}" if model.draft else ""
    adapter = "".join(
        f" · adapter {name} ({'DoRA' if config.dora else 'LoRA'}, rank {config.rank})"
        for name, config in model.adapters.items()
    )
    return (
        f"{model.name} · {info.engine} engine on {info.device} · {info.dtype}, weights {weights} · "
        f"context {model.context:,} · {threads}{draft}{adapter}"
    )


def speed(stats: Stats) -> str:
    """What a generation took, on one line."""
    decode = f" at {stats.decode_tokens_per_s:.1f} tokens/s" if stats.completion_tokens > 1 else ""
    guessed = {"from the text": stats.guessed_right - stats.drafted_right, "by the draft model": stats.drafted_right}
    if ways := [f"{count} {by}" for by, count in guessed.items() if count]:
        decode += f", guessed {' and '.join(ways)}"
    cached = f" ({stats.cached_tokens} of them cached)" if stats.cached_tokens else ""
    return (
        f"{stats.completion_tokens} token{'s' if stats.completion_tokens != 1 else ''}{decode} · "
        f"prompt {stats.prompt_tokens} tokens{cached} at {stats.prefill_tokens_per_s:.1f} tokens/s · "
        f"first token after {stats.first_token_s:.2f} s"
    )
