"""JSON out of untrusted files: bounded, no key twice, and one exception for whatever is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gemmary.errors import GemmaryError

MAX_JSON_BYTES = 1 << 18
"""As much as Python parses, at its worst, well within 100 ms. The largest Gemma's index needs 140 kB."""


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """An object in JSON (UTF-8). Raises GemmaryError beginning with `what`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except GemmaryError as error:
        raise GemmaryError(f"{what} {error}") from None
    except (ValueError, RecursionError):  # no UTF-8, no JSON, an absurd number, absurd nesting
        raise GemmaryError(f"{what} is not valid JSON") from None
    if not isinstance(value, dict):
        raise GemmaryError(f"{what} is not a JSON object")
    return value


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A file that holds a JSON object. Raises GemmaryError where it does not, or is longer than `limit` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise GemmaryError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > limit:
        raise GemmaryError(f"{path} is longer than the {limit} bytes that are read of it")
    return parse_json(data, str(path))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a new file, as people and git like it. (Whoever calls makes the folder atomic.)"""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise GemmaryError("has a key that stands twice")
    return value
