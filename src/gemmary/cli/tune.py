"""`gemmary tune`: a model learns from rows of data."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints import open_named, starter
from gemmary.cli import console, parser
from gemmary.cli.options import add_options, read_options
from gemmary.cli.training import Watcher, clock
from gemmary.errors import GemmaryError
from gemmary.tune.settings import Settings

if TYPE_CHECKING:
    from gemmary.tune.progress import Result


def add(commands: Any) -> None:
    details = (
        "Rows have `messages`, `prompt` and `completion`, or `text`. Ctrl-C writes a checkpoint, and --resume goes on "
        "from it as if nothing had been; docs/tuning.md tells all."
    )
    command = parser.command(commands, "tune", run, "tune a model on rows of data (LoRA, QLoRA, full)", details)
    add_options(command, Settings)
    command.add_argument(
        "--preview", type=parser.count, metavar="N", help="show N rows as the model sees them, and end"
    )


def run(arguments: argparse.Namespace) -> None:
    settings = read_options(Settings, arguments)
    if settings.model == starter.NAME:
        with console.bar(is_bytes=True) as bar:
            starter.starter_path(bar)
    if arguments.preview is not None:
        show(settings, arguments.preview)
        return
    require_torch()
    from gemmary.tune.loop import tune
    from gemmary.tune.metrics import draw
    from gemmary.tune.parallel import leads

    if not leads():  # one of several that `torchrun` started: the first one tells
        tune(settings)
        return
    watcher = Watcher(json=settings.json)
    try:
        result = tune(settings, watcher)
    except KeyboardInterrupt:
        watcher.close()
        console.note(f"ended early: `gemmary tune -c {settings.out}/config.yaml --resume` goes on")
        raise
    finally:
        watcher.close()
    if draw(result.folder) is None:
        console.note("note: no picture of the loss without matplotlib: pip install matplotlib")
    watcher.result(result.as_dict())
    if not settings.json:
        print(describe(result, settings))


def show(settings: Settings, count: int) -> None:
    """Rows as the model sees them."""
    from gemmary.tune.preview import preview

    found = preview(settings, open_named(settings.model), count)
    if settings.json:
        console.write_json(found.as_json())
        return
    for notice in found.notices:
        console.note(f"note: {notice}")
    found.write(sys.stdout)


def require_torch() -> None:
    """Raises GemmaryError where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise GemmaryError('training needs PyTorch: pip install "gemmary[tune]"')


def describe(result: Result, settings: Settings) -> str:
    """How it ended and what to do with it."""
    lines = [f"{result.steps:,} steps in {clock(result.seconds)}, {result.tokens:,} tokens"]
    if result.tokens_per_s is not None:
        lines[0] += f" at {result.tokens_per_s:,.0f} tokens/s ({result.flops_share:.0%} of PyTorch's matmul peak)"
    if result.stopped_early:
        lines[0] += f"; ended early after {settings.patience} measurements without a better one"
    if result.best_val_loss is not None:
        lines.append(
            f"validation loss {result.first_val_loss:.4f} before, {result.best_val_loss:.4f} at its best, "
            f"after step {result.best_step:,}"
        )
    if result.test_loss is not None:
        lines.append(f"test loss {result.test_loss:.4f}")
    way = f"gemmary run {settings.model} --adapter {result.folder}"
    lines.append(f'try it: {way if settings.method != "full" else f"gemmary run {result.folder}"} "..."')
    return "\n".join(lines)
