"""Numbers out of a file's metadata: of the right type, within a bound, or a GemmaryError that names the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gemmary.config import Config, LayerType
from gemmary.errors import GemmaryError


def show(value: Any) -> str:
    """A value out of a file, made fit for a message: short, printable, on one line."""
    return " ".join(ascii(value).split())[:60]


def periodic(period: int, layers: int) -> tuple[LayerType, ...]:
    """Every `period`-th layer is global, the others are local."""
    kinds: list[LayerType] = ["local" if (i + 1) % period else "global" for i in range(layers)]
    return tuple(kinds)


class Fields:
    """A view of untrusted keys and values. `where` names the file in messages."""

    def __init__(self, where: str, values: Mapping[str, Any], prefix: str = "") -> None:
        self._where = where
        self._values = values
        self._prefix = prefix

    def size(self, key: str, default: int | None = None, *, most: int = 1 << 20) -> int:
        """An integer from 1 to `most`. The bound keeps what is built from it small."""
        value = self._get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise GemmaryError(f"{self._where}: {self._prefix}{key} is {show(value)}, not a size up to {most}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above zero and below 1e12."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e12 or not math.isfinite(value):
            raise GemmaryError(f"{self._where}: {self._prefix}{key} is {show(value)}, not a number above zero")
        return float(value)

    def config(self, **values: Any) -> Config:
        """A Config, whose own complaints become those of the file."""
        try:
            return Config(**values)
        except ValueError as error:
            raise GemmaryError(f"{self._where}: {error}") from None

    def _get(self, key: str, default: Any) -> Any:
        value = self._values.get(self._prefix + key, default)
        if value is None:
            raise GemmaryError(f"{self._where}: {self._prefix}{key} is missing")
        return value
