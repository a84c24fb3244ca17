"""`gemmary run --images`: one prompt about many pictures, a line of JSON for each. A run that was broken off goes on:
what has a line is not asked again."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from gemmary.cli import console, loading
from gemmary.cli.pictures import Task
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.api import Model
    from gemmary.generate import Stream

AT_ONCE = 4
"""Pictures that share steps."""


def ask(arguments: argparse.Namespace) -> None:
    """Raises GemmaryError for what concerns all pictures; a broken one is a line like the others."""
    from gemmary.seeing import text_only
    from gemmary.vision.frames import pictures

    task = Task.of(arguments)
    if arguments.image or arguments.save or arguments.json:
        raise GemmaryError("--images writes lines of JSON: leave out --image, --save and --json")
    names, images = pictures(Path(arguments.images), arguments.every or 1)
    out = Path(arguments.out) if arguments.out is not None else None
    finished = read_finished(out, task.prompt) if out is not None and out.exists() else {}
    model = loading.load_model(arguments)
    if others := sorted(set(finished.values()) - {model.name}):
        raise GemmaryError(f"{out} holds what {others[0]} wrote: give --out another name")
    if model.config.vision is None:
        raise text_only(model)
    console.note(loading.describe(model))
    for notice in model.notices:
        console.note(f"note: {notice}")
    counts: Counter[str] = Counter()
    with open_lines(out) as lines, console.bar() as bar:
        for row, kind in answers(model, task, images, set(finished)):
            counts[kind] += 1
            if row is not None:
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                lines.flush()
            if names is not None:
                bar(arguments.images, counts.total(), len(names))
    console.note(f"pictures: {', '.join(f'{number:,} {kind}' for kind, number in counts.items())}")
    loading.keep_packed(model)


def answers(
    model: Model, task: Task, images: Iterator[tuple[str, Any]], finished: set[str]
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """A line for each picture, in their order, and what became of it; no line for one that has one."""
    from gemmary.seeing import open_picture

    waiting: deque[tuple[dict[str, Any], Stream | None]] = deque()
    try:
        for name, image in images:
            if name in finished:
                yield None, "there already"
                continue
            row: dict[str, Any] = {"image": name, "model": model.name, "prompt": task.prompt}
            try:
                picture = open_picture(model, image, task.options.get("resize", "big_vision"))
            except GemmaryError as error:
                waiting.append(({**row, "error": str(error)}, None))
            else:
                waiting.append((row, task.ask(model, picture)))
            if len(waiting) == AT_ONCE:
                yield _answer(task, *waiting.popleft())
        while waiting:
            yield _answer(task, *waiting.popleft())
    finally:
        for _, stream in waiting:
            if stream is not None:
                stream.close()


def _answer(task: Task, row: dict[str, Any], stream: Stream | None) -> tuple[dict[str, Any], str]:
    if stream is None:
        return row, "broken"
    completion: Any = stream.read()
    row |= {"width": completion.width, "height": completion.height, "text": completion.text}
    row |= {"finish_reason": completion.finish_reason, "annotations": task.found(completion).entries()}
    row["malformed"] = [{"text": each.text, "reason": each.reason} for each in completion.malformed]
    return row, "answered"


def read_finished(path: Path, prompt: str) -> dict[str, str]:
    """The pictures that have a line, and the model that wrote it. A last line that was broken off does not count.

    Raises GemmaryError for a file of something else, or of another prompt.
    """
    finished = {}
    *lines, _ = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            finished[row["image"]] = row["model"]
            asked = row["prompt"]
        except (ValueError, KeyError, TypeError):
            raise GemmaryError(f"line {number} of {path} is no result: give --out another name") from None
        if asked != prompt:
            raise GemmaryError(f"{path} holds answers to {asked!r}: give --out another name")
    return finished


@contextmanager
def open_lines(path: Path | None) -> Iterator[TextIO]:
    """Where lines are added: behind the last whole line of a file, or stdout."""
    if path is None:
        yield sys.stdout
        return
    with open(path, "a+b") as file:
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    with open(path, "a", encoding="utf-8") as lines:
        yield lines
