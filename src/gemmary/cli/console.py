"""What a person sees: notes on stderr, progress, tables. Plain text where the stream is not a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_CONTROL = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
_COLOURS = {"green": 32, "red": 31}
"""Of ECMA-48's select graphic rendition."""


def note(text: str) -> None:
    """A line for the person, not for what reads the output."""
    print(_harmless(text, sys.stderr), file=sys.stderr, flush=True)


def write(text: str) -> None:
    """A piece of a model's text, at once."""
    sys.stdout.write(_harmless(text, sys.stdout))
    sys.stdout.flush()


def _harmless(text: str, stream: TextIO) -> str:
    """On a terminal, control characters of a model's text or of a file's names lose their power over it."""
    return text.translate(_CONTROL) if stream.isatty() else text


def write_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def write_coloured(text: str, colour: str | None) -> None:
    """A piece of text, in `green` or `red` on a terminal that shows colours and is not asked for none (NO_COLOR)."""
    shown = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    if colour is None or not shown:
        write(text)
        return
    body = text.rstrip("\n")
    sys.stdout.write(f"\033[{_COLOURS[colour]}m{_harmless(body, sys.stdout)}\033[0m{text[len(body) :]}")


def table(rows: Sequence[Sequence[str]], header: Sequence[str], colours: Sequence[str | None] | None = None) -> None:
    """Columns. Those whose cells all begin with a digit or a dash are set to the right. Nothing is cut. colours: of
    each row."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row, colour in zip((header, *rows), (None, *(colours or [None] * len(rows))), strict=True):
        cells = [
            cell.rjust(width) if _numeric(rows, i) else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        write_coloured("  ".join(cells).rstrip() + "\n", colour)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        write(f"{name:<{width}}  {value}\n")


def _numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    return bool(rows) and all(row[column][:1].isdigit() or row[column][:1] in "-+" for row in rows)


class Bar:
    """Progress of long work, called with what is done, how much, and how much in all. Appears with the first call."""

    def __init__(self, *, is_bytes: bool) -> None:
        self._is_bytes = is_bytes
        self._drawn: RichProgress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._told = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            self._tell(what, done, total)
            return
        if self._drawn is None:
            self._drawn = self._draw()
        if self._task is None or what != self._what:
            self._what, self._task = what, self._drawn.add_task(what, total=total)
        self._drawn.update(self._task, completed=done, total=total)

    def _draw(self) -> RichProgress:
        from rich import progress
        from rich.console import Console

        amount: list[Any] = [progress.TaskProgressColumn()]
        if self._is_bytes:
            amount = [progress.DownloadColumn(), progress.TransferSpeedColumn()]
        columns = [progress.TextColumn("{task.description}"), progress.BarColumn(), *amount]
        drawn = progress.Progress(*columns, progress.TimeRemainingColumn(), console=Console(stderr=True))
        drawn.start()
        return drawn

    def _tell(self, what: str, done: int, total: int) -> None:
        """A line at every fifth of the way."""
        if what != self._what:
            self._what, self._told = what, 0
        step = 5 * done // max(1, total)
        if step > self._told:
            self._told = step
            note(f"{what}: {20 * step} %")

    def close(self) -> None:
        if self._drawn is not None:
            self._drawn.stop()


@contextmanager
def bar(*, is_bytes: bool = False) -> Iterator[Bar]:
    shown = Bar(is_bytes=is_bytes)
    try:
        yield shown
    finally:
        shown.close()
