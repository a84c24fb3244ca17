"""`gemmary pull`, `list` and `rm`: the models of this machine."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gemmary import zoo
from gemmary.checkpoints import hub, kept, starter
from gemmary.cli import console, parser
from gemmary.errors import GemmaryError
from gemmary.memory import size


def add(commands: Any) -> None:
    details = "Broken off at any point, the next call goes on where it was."
    pull = parser.command(commands, "pull", run_pull, "fetch a model from the hub", details)
    pull.add_argument("model", metavar="MODEL", help="a short name, or a hub id: org/name[@revision][:file.gguf]")
    listed = parser.command(commands, "list", run_list, "list the models of this machine")
    listed.add_argument("--all", action="store_true", help="every model of the series that Gemmary runs")
    listed.add_argument("--json", action="store_true", help="for programs")
    remove = parser.command(commands, "rm", run_remove, "delete a model that was fetched")
    remove.add_argument("model", metavar="MODEL", nargs="?", help="its name, as `gemmary list` shows it")
    remove.add_argument(
        "--packed", action="store_true", help="only the packed copies that were kept of it; without MODEL, all of them"
    )
    remove.add_argument("--yes", action="store_true", help="do not ask")


def run_pull(arguments: argparse.Namespace) -> None:
    from gemmary.checkpoints.download import pull

    with console.bar(is_bytes=True) as progress:
        path = pull(arguments.model, progress)
    print(path)


def run_list(arguments: argparse.Namespace) -> None:
    if arguments.all:
        list_zoo(arguments.json)
        return
    models = hub.list_local()
    if arguments.json:
        rows = [
            {"name": m.name, "path": str(m.path), "bytes": m.size, "complete": m.complete, "packed_bytes": m.packed}
            for m in models
        ]
        console.write_json(rows)
    elif models:
        cells = [(m.name, size(m.size), size(m.packed) if m.packed else "-", where(m)) for m in models]
        console.table(cells, ("name", "size", "packed copies", "where"))
    if not models:
        console.note("no models yet: `gemmary run starter` or `gemmary pull NAME` (`gemmary list --all` shows names)")


def where(model: hub.LocalModel) -> str:
    if model.complete:
        return str(model.path)
    return "incomplete: pull it again" if model.path.exists() else f"gone: gemmary rm --packed {model.name}"


def list_zoo(as_json: bool) -> None:
    here = {model.name for model in hub.list_local()}
    rows = [
        {
            "name": row.name,
            "hub_id": row.hub_id,
            "tuning": row.tuning,
            "parameters": row.config.total_parameters,
            "bytes": row.config.weight_bytes(),
            "context": row.config.context_length,
            "local": row.name in here,
        }
        for row in zoo.ZOO
    ]
    if as_json:
        console.write_json(rows)
        return
    cells = [
        (
            str(row["name"]),
            f"{row['parameters']:,}",
            size(int(str(row["bytes"]))),
            f"{row['context']:,}",
            str(row["tuning"]),
            "here" if row["local"] else "",
        )
        for row in rows
    ]
    console.table(cells, ("name", "parameters", "bfloat16", "context", "tuning", ""))


def run_remove(arguments: argparse.Namespace) -> None:
    name = arguments.model
    if arguments.packed:  # which the next start makes again: nobody is asked
        place = None if name is None else Path(name) if kept.bytes_of(Path(name)) else hub.place_of(name)
        freed = kept.remove(place)
        print(f"deleted packed copies: {size(freed)} are free again")
        return
    if name is None:
        raise GemmaryError("say which model to delete, or --packed for the packed copies of all")
    if not arguments.yes:
        if not sys.stdin.isatty():
            raise GemmaryError(f"to delete {name} without being asked, say --yes")
        if not _agreed(f"delete {name} and every revision of it? [y/N] "):
            raise GemmaryError("nothing was deleted")
    freed = hub.remove(name)
    more = " (its package stays: pip uninstall removes it)" if name == starter.NAME else ""
    print(f"deleted {name}: {size(freed)} are free again{more}")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        console.note("")
        return False
