"""Text to train on: documents out of files, in an order and a split that the texts alone fix."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemmary.errors import GemmaryError

_SUFFIXES = (".txt", ".jsonl")


@dataclass(frozen=True)
class Document:
    """One text, as it is but for its line ends (\\r\\n becomes \\n)."""

    text: str
    source: str
    """"speeches/1790.txt" or "rows.jsonl:17", for messages."""


@dataclass(frozen=True)
class Corpus:
    """Documents that are trained on, that choose between models, and that nothing is made or chosen from."""

    train: list[Document]
    validation: list[Document]
    held_out: list[Document]


def read_documents(places: Sequence[str]) -> tuple[list[Document], list[str]]:
    """The documents of files, folders (all below them) and globs, sorted by path, and what a user should be told.

    A `.txt` file is one document, a line of a `.jsonl` file with a `text` is one. Blank ones and repetitions of another
    are left out (a text on both sides of a split would make every figure a lie). Raises GemmaryError for a place with
    nothing in it, a file that is not UTF-8, or a row without text.
    """
    found = [document for path in _files(places) for document in _read(path)]
    kept: dict[str, Document] = {}
    for document in found:
        if text := document.text.strip():
            kept.setdefault(text, document)
    if not kept:
        raise GemmaryError(f"there is no text in {', '.join(places)}")
    dropped = len(found) - len(kept)
    return list(kept.values()), [f"{dropped} blank or repeated documents are left out"] if dropped else []


def split(documents: Sequence[Document], validation: float, held_out: float, seed: int) -> Corpus:
    """Whole documents to each part, by a hash of the seed and the text, so that no order of files matters.

    validation, held_out: shares of the number of documents; at least one of each where the share is not 0. Raises
    GemmaryError where nothing is left to train on.
    """
    order = sorted(documents, key=lambda d: hashlib.sha256(f"{seed}\n{d.text}".encode()).digest())
    tested, chosen = (max(1, round(share * len(order))) if share else 0 for share in (held_out, validation))
    if tested + chosen >= len(order):
        raise GemmaryError(
            f"{len(order)} documents are too few to hold {tested + chosen} back: give more text, or smaller shares"
        )
    return Corpus(order[tested + chosen :], order[tested : tested + chosen], order[:tested])


def _files(places: Sequence[str]) -> list[Path]:
    files: set[Path] = set()
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            below = {file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file()}
        elif path.is_file():
            below = {path}
        else:
            below = {Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()}
        if not below:
            raise GemmaryError(f"there is no text at {place}: give .txt or .jsonl files, a folder of them, or a glob")
        files |= below
    if wrong := sorted(file for file in files if file.suffix not in _SUFFIXES):
        raise GemmaryError(f"{wrong[0]} is neither a .txt nor a .jsonl file")
    return sorted(files)


def _read(path: Path) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise GemmaryError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise GemmaryError(f"{path} is not UTF-8 text: byte {error.start} begins no character") from None
    if path.suffix == ".txt":
        yield Document(text, str(path))
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield Document(_text_of(line, f"{path}:{number}"), f"{path}:{number}")


def _text_of(line: str, source: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise GemmaryError(f"{source} is not valid JSON") from None
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise GemmaryError(f'{source} has no text: a row is an object with a string called "text"')
    text: str = row["text"]
    try:
        text.encode()
    except UnicodeEncodeError:
        raise GemmaryError(f"{source} is not valid Unicode: it holds half of a surrogate pair") from None
    return text.replace("\r\n", "\n")
