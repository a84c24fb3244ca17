"""`gemmary pretrain`: a new small model out of text or image rows, its tokenizer included."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.cli import console, parser
from gemmary.cli.options import add_options, read_options
from gemmary.cli.training import Watcher
from gemmary.cli.tune import describe, require_torch
from gemmary.tune.pretrain_settings import PretrainSettings

if TYPE_CHECKING:
    from gemmary.tune.heldout import HeldOut


def add(commands: Any) -> None:
    details = (
        "Trains a SentencePiece tokenizer and a model of any size in Gemma 2's shape, measured on held-out text; or, "
        "from image rows, in PaliGemma 2's. "
        "Ctrl-C writes a checkpoint, and --resume goes on from it as if nothing had been; docs/tuning.md tells all."
    )
    command = parser.command(commands, "pretrain", run, "make a new small model from text or image rows", details)
    add_options(command, PretrainSettings)


def run(arguments: argparse.Namespace) -> None:
    settings = read_options(PretrainSettings, arguments)
    require_torch()
    from gemmary.tune.metrics import draw
    from gemmary.tune.pretrain import pretrain

    watcher = Watcher(json=settings.json)
    try:
        found = pretrain(settings, watcher)
    except KeyboardInterrupt:
        watcher.close()
        console.note("ended early: the same command with --resume goes on")
        raise
    finally:
        watcher.close()
    draw(found.folder)
    watcher.result(found.as_dict())
    if not settings.json:
        print(describe(found.training, settings.tuning(Path(), Path())))
        if found.held_out is not None:
            print(describe_held_out(found.held_out))


def describe_held_out(found: HeldOut) -> str:
    """What the model is worth, on one line."""
    return (
        f"held-out text: perplexity {found.perplexity:.2f} per token, {found.bits_per_byte:.4f} bits per byte "
        f"({found.tokens:,} tokens, {found.bytes:,} bytes)"
    )
