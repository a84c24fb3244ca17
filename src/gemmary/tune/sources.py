"""Where rows come from, one at a time, each with its place; and which of them train, validate and test.

A source is a `.jsonl` file (also gzipped), a `.parquet` file, or a folder that the `datasets` library saved with
`save_to_disk`. Data is one of these, or a folder of them named after their splits: `train.jsonl`, `validation.parquet`,
`test-00000-of-00002.parquet`, a saved folder `train`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from gemmary.checkpoints.json_files import read_json
from gemmary.errors import GemmaryError

Row = dict[str, Any]

_SPLIT = re.compile(r"(train|valid|validation|test)(?:-\d+-of-\d+)?(\.jsonl|\.jsonl\.gz|\.parquet|)")
_STATE = "state.json"
_KINDS = "a .jsonl or .parquet file, or a folder saved by the datasets library"
_BATCH = 1024
"""Rows of a table that are Python objects at once."""


@dataclass(frozen=True)
class Source:
    """The rows of a split: all of its files, in order, or a share of them."""

    paths: tuple[Path, ...]
    share: tuple[float, float] = (0.0, 1.0)
    """Rows whose draw, in [0, 1), lies in this interval. A draw is a hash of the seed and the row's index, so a row
    stays in its split when others are added behind it; or of the seed and the row's picture, which lies in one split
    with all of its rows."""
    seed: int = 0

    def __iter__(self) -> Iterator[tuple[Row, str]]:
        """Each row and where it stands ("train.jsonl:17"; counted from 1 in tables, too).

        Raises GemmaryError, with the place, for what cannot be read.
        """
        index = 0
        for path in self.paths:
            for number, row in enumerate(read_rows(path), 1):
                if self.share == (0.0, 1.0) or self.share[0] <= _draw(self.seed, _drawn_by(row, index)) < self.share[1]:
                    yield row, f"{path}:{number}"
                index += 1


def find_sources(
    data: str, *, validation: str | float | None = None, test: str | float | None = None, seed: int = 0
) -> dict[str, Source]:
    """The sources of "train" and, where there are any, "valid" and "test".

    validation, test: a path, or the fraction of the training rows to set apart; None: what lies beside them in a folder
    of splits. Raises GemmaryError where a path is not data.
    """
    splits = _splits(Path(data))
    train = splits["train"]
    taken = 0.0
    for name, wanted in (("valid", validation), ("test", test)):
        if isinstance(wanted, float):
            splits[name] = replace(train, share=(taken, taken + wanted), seed=seed)
            taken += wanted
        elif wanted is not None:
            splits[name] = Source((_checked(Path(wanted)),))
    return {**splits, "train": replace(train, share=(taken, 1.0), seed=seed)}


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of one source. Raises GemmaryError with the place of what is wrong."""
    if path.is_dir():
        return _saved_rows(path)
    if path.name.endswith(".parquet"):
        return _parquet_rows(path)
    return _json_rows(path)


def _drawn_by(row: Row, index: int) -> int | str:
    image = row.get("image")
    return index if image is None else json.dumps(image)


def _draw(seed: int, key: int | str) -> float:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


# Finding --------------------------------------------------------------------------------------------------------------


def _splits(path: Path) -> dict[str, Source]:
    if not path.is_dir() or (path / _STATE).is_file():
        return {"train": Source((_checked(path),))}
    found: dict[str, dict[str, list[Path]]] = {}
    for entry in sorted(path.iterdir()):
        match = _SPLIT.fullmatch(entry.name)
        if match and entry.is_dir() == (not match[2]):
            name = "valid" if match[1] == "validation" else match[1]
            found.setdefault(name, {}).setdefault(match[1] + match[2], []).append(_checked(entry))
    if "train" not in found:
        raise GemmaryError(f"{path} has no train.jsonl, train.parquet or saved folder train: name one, or {_KINDS}")
    for kinds in found.values():
        if len(kinds) > 1:
            raise GemmaryError(f"{path} has {' and '.join(kinds)}: keep one of them")
    return {name: Source(tuple(next(iter(kinds.values())))) for name, kinds in found.items()}


def _checked(path: Path) -> Path:
    if not path.exists():
        raise GemmaryError(f"there is no file or folder {path}")
    is_data = (path / _STATE).is_file() if path.is_dir() else path.name.endswith((".jsonl", ".jsonl.gz", ".parquet"))
    if not is_data:
        raise GemmaryError(f"{path} is not {_KINDS}")
    return path


# Reading --------------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        with cast(BinaryIO, gzip.open(path) if path.name.endswith(".gz") else open(path, "rb")) as file:
            for number, line in enumerate(file, 1):
                yield _json_row(line, f"{path}:{number}")
    except (OSError, EOFError, zlib.error) as error:
        raise GemmaryError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _json_row(line: bytes, place: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at column {error.colno}" if line.strip() else "the line is empty"
        raise GemmaryError(f"{place}: not valid JSON: {reason}") from None
    except (ValueError, RecursionError) as error:
        reason = (
            "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "not valid JSON: absurd numbers or nesting"
        )
        raise GemmaryError(f"{place}: {reason}") from None
    if not isinstance(row, dict):
        raise GemmaryError(f'{place}: a row is a JSON object such as {{"text": "…"}}, not {type(row).__name__}')
    return row


def _parquet_rows(path: Path) -> Iterator[Row]:
    pyarrow = _pyarrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from _table_rows(file.iter_batches(_BATCH))
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _saved_rows(folder: Path) -> Iterator[Row]:
    """The files that a saved folder's state.json lists, which are Arrow streams."""
    pyarrow = _pyarrow(folder)
    try:
        names = [str(each["filename"]) for each in read_json(folder / _STATE)["_data_files"]]
    except (KeyError, TypeError):
        raise GemmaryError(f"{folder / _STATE} lists no data files: save the folder with save_to_disk again") from None
    for path in [folder / Path(name).name for name in names]:
        try:
            with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
                for batch in stream:
                    yield from _table_rows(batch.slice(start, _BATCH) for start in range(0, batch.num_rows, _BATCH))
        except (OSError, pyarrow.ArrowException) as error:
            raise _unreadable(path, error) from error


def _table_rows(batches: Iterable[Any]) -> Iterator[Row]:
    for batch in batches:
        yield from batch.to_pylist()


def _unreadable(path: Path, error: Exception) -> GemmaryError:
    return GemmaryError(f"cannot read {path}: {str(error).partition(chr(10))[0]}")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError:
        raise GemmaryError(f'{path} needs PyArrow: pip install "gemmary[tune]"') from None
    return pyarrow
