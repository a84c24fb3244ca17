"""Each size of the series once: variants that differ in their weights only need the same."""

from __future__ import annotations

from gemmary import zoo
from gemmary.config import Config
from gemmary.plan.subject import Subject, released


def sizes() -> list[Subject]:
    """The first row of the zoo of each shape, as it lies on the hub, in the zoo's order."""
    first: dict[Config, zoo.Variant] = {}
    for row in zoo.ZOO:
        first.setdefault(row.config, row)
    return [released(row) for row in first.values()]
