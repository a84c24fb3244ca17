"""Adapters of a loaded model, and the names by which requests choose among them.

Several are loaded at once and every sequence of a step has one of them or none, so that requests of all share steps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

from gemmary.checkpoints.peft import Adapter, linear_names, read_adapter
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Leaf, with_weight
from gemmary.quantize.lora import LoRA


class Choice(Enum):
    """What stands where no adapter is named."""

    ONLY = "the only one"


ONLY: Final = Choice.ONLY
Asked: TypeAlias = str | Choice | None
"""How a request says which adapter: its name, None for the base model, or `ONLY`."""


def wrapped(lookup: Callable[[str], Leaf], config: Config, adapters: Sequence[Adapter]) -> Callable[[str], Leaf]:
    """A lookup whose linear weights have these adapters."""
    linears = {tensor.name for tensor in linear_names(config).values()}

    def with_adapters(name: str) -> Leaf:
        leaf = lookup(name)
        if name not in linears:
            return leaf
        each = tuple(adapter.weights.get(name) for adapter in adapters)
        return with_weight(leaf, lambda weight: LoRA(weight, each))

    return with_adapters


def open_adapters(asked: str | Path | Mapping[str, str | Path] | None, config: Config) -> dict[str, Adapter]:
    """Those in a folder, called like it, or in folders by name. Raises GemmaryError as `read_adapter` does."""
    if asked is None:
        return {}
    if not isinstance(asked, Mapping):
        asked = {Path(asked).resolve().name: asked}
    for name in asked:
        if not isinstance(name, str) or not name:
            raise GemmaryError(f"an adapter's name is a text, not {name!r}")
    return {name: read_adapter(path, config) for name, path in asked.items()}


def number_of(names: Sequence[str], asked: Asked) -> int:
    """The number of an adapter in a step: 1 and up, 0 for the base model (None). Left out, it is the only one.

    Raises GemmaryError for a name that is not there, and where several are and none is named.
    """
    if asked is None or (asked is ONLY and not names):
        return 0
    if asked is ONLY and len(names) == 1:
        return 1
    if asked is ONLY:
        raise GemmaryError(f"say which adapter: {', '.join(names)}, or None for the base model")
    if asked not in names:
        loaded = f"those loaded are {', '.join(names)}" if names else "none was loaded"
        raise GemmaryError(f"no adapter is called {asked!r}: {loaded}")
    return names.index(asked) + 1
