"""How the model names its weights: a view that turns `weights.layer(3).gate` into the leaf called `layers.3.gate`.

What a leaf is (a dense array, a quantized block array, a module with an adapter) is the engine's business; the model
only hands it to `ops.linear` and its siblings. The names are those of the tensor table, `checkpoints/tensors.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Leaves:
    """Leaves below one prefix, looked up when asked for."""

    def __init__(self, lookup: Callable[[str], Any], prefix: str = "") -> None:
        self._lookup = lookup
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return self._lookup(self._prefix + name)

    def layer(self, index: int) -> Leaves:
        return Leaves(self._lookup, f"{self._prefix}layers.{index}.")

    def vision(self) -> Leaves:
        return Leaves(self._lookup, "vision.")

    def dense(self, index: int) -> Any:
        return self._lookup(f"dense.{index}")
