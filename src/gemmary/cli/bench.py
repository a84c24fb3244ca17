"""`gemmary bench`: how fast a model is on this machine."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import gemmary
from gemmary.cli import console, loading, parser
from gemmary.memory import size

if TYPE_CHECKING:
    from gemmary.bench import Spread


def add(commands: Any) -> None:
    details = "Medians, with the least and the largest of all rounds. One round before them warms up."
    command = parser.command(commands, "bench", run, "measure a model's speed", details)
    parser.add_model(command)
    parser.add_draft(command)
    command.add_argument(
        "--prefill", type=parser.count, default=512, metavar="N", help="tokens of prompt (default: 512)"
    )
    command.add_argument("--decode", type=parser.count, default=128, metavar="N", help="tokens to write (default: 128)")
    command.add_argument("--repeat", type=parser.count, default=5, metavar="N", help="rounds (default: 5)")
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    from gemmary.bench import bench

    def load() -> Any:
        model = loading.load_model(arguments)
        console.note(loading.describe(model))
        for notice in model.notices:
            console.note(f"note: {notice}")
        return model

    with console.bar() as progress:
        found = bench(
            load,
            prefill=arguments.prefill,
            decode=arguments.decode,
            repeat=arguments.repeat,
            progress=progress,
        )
    if arguments.json:
        console.write_json({"gemmary": gemmary.__version__, **found.as_dict()})
        return
    rows = [
        _row(f"prefill of {found.prefill} tokens", found.prefill_tokens_per_s, "tokens/s", 1),
        _row(f"decode of {found.decode} tokens", found.decode_tokens_per_s, "tokens/s", 1),
        _row("first token", found.first_token_s, "s", 3),
        _row("load", found.load_s, "s", 3),
    ]
    console.table(rows, ("measure", "median", "min", "max", "unit"))
    print(f"peak memory {size(found.peak_rss_bytes)}")


def _row(name: str, spread: Spread, unit: str, digits: int) -> tuple[str, ...]:
    return (name, *(f"{value:,.{digits}f}" for value in (spread.median, spread.min, spread.max)), unit)
