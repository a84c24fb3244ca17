"""The objects in what PaliGemma writes: `<loc0051><loc0309><loc0708><loc0646> shoe ; …`, with 16 `<segNNN>` after the
locations where a mask was asked for.

Parsed strictly: what is not four locations (top, left, bottom, right), then none or 16 codes, then a label is reported
with its reason, never dropped in silence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest

LOCATIONS = 1024
"""Location tokens: a coordinate n stands for n/1024 of the side (transformers, the demos). big_vision's evaluation
divides by 1023; the two differ by less than 0.1 %."""
CODES = 16
"""Codes of a mask, 4 x 4, row by row (`masks.py`)."""

_TOKEN = re.compile(r"<(loc|seg)(\d+)>")
_RUN = re.compile(r"(?:<(?:loc|seg)\d+>)+")
_SEPARATOR = re.compile(r"\s*;\s*")


@dataclass(frozen=True)
class Object:
    """One object as it was written."""

    label: str
    locations: tuple[int, int, int, int]
    """Top, left, bottom, right, each from 0 to 1023."""
    codes: tuple[int, ...]
    """16 codes of its mask, or none."""
    span: tuple[int, int] = (0, 0)
    """Where its location and code tokens stand in the text that it was read from."""

    def box(self, width: int, height: int, divisor: int = LOCATIONS) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of a picture of that size. divisor: 1024, or 1023 as big_vision has it."""
        top, left, bottom, right = self.locations
        return left / divisor * width, top / divisor * height, right / divisor * width, bottom / divisor * height


@dataclass(frozen=True)
class Malformed:
    """A run of location and code tokens that is not an object."""

    text: str
    reason: str


def parse(text: str) -> tuple[list[Object], list[Malformed]]:
    """The objects in a text, in its order, and the runs of tokens that are none."""
    objects: list[Object] = []
    malformed: list[Malformed] = []
    runs = list(_RUN.finditer(text))
    for run, following in zip_longest(runs, runs[1:]):
        behind = text[run.end() : following.start() if following else len(text)]
        label = _SEPARATOR.split(behind, maxsplit=1)[0].strip()
        kinds = [kind for kind, _ in _TOKEN.findall(run[0])]
        numbers = [int(number) for _, number in _TOKEN.findall(run[0])]
        if reason := _fault(kinds, numbers):
            malformed.append(Malformed(run[0] + (f" {label}" if label else ""), reason))
            continue
        top, left, bottom, right = numbers[:4]
        objects.append(Object(label, (top, left, bottom, right), tuple(numbers[4:]), run.span()))
    return objects, malformed


def locations(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of a box (left, top, right, bottom in pixels of a picture of that size), each from 0 to
    1023: rounded as big_vision writes them, so that 1023 is the far side."""
    left, top, right, bottom = box
    shares = (top / height, left / width, bottom / height, right / width)
    y0, x0, y1, x1 = (min(LOCATIONS - 1, max(0, round(share * (LOCATIONS - 1)))) for share in shares)
    return y0, x0, y1, x1


def write(objects: Iterable[Object]) -> str:
    """The inverse of `parse`: objects as the model writes them."""
    return " ; ".join(
        "".join(f"<loc{n:04d}>" for n in each.locations)
        + "".join(f"<seg{n:03d}>" for n in each.codes)
        + f" {each.label}".rstrip()
        for each in objects
    )


def _fault(kinds: list[str], numbers: list[int]) -> str | None:
    """Why a run of tokens is not an object."""
    locations = kinds.index("seg") if "seg" in kinds else len(kinds)
    codes = len(kinds) - locations
    if "loc" in kinds[locations:]:
        return "locations after codes"
    if locations != 4:
        return f"{locations} location{'s' if locations != 1 else ''}, not 4"
    if codes not in (0, CODES):
        return f"{codes} code{'s' if codes != 1 else ''}, not {CODES}"
    if max(numbers[:4]) >= LOCATIONS or (codes and max(numbers[4:]) >= 128):
        return "a token that the vocabulary does not have"
    if numbers[2] <= numbers[0] or numbers[3] <= numbers[1]:
        return "an empty box: the bottom is not below the top, or the right not beyond the left"
    return None
