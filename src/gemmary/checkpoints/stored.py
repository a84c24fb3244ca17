"""Arrays of a checkpoint that were found and not yet read, and the leaves that are made of them.

Orbax, KerasHub and gemma_pytorch lay a model out otherwise than the tensor table. Each of their readers says which
stored arrays a tensor is made of; what they have in common stands here: every array is expected, has the shape that the
model needs, and is read when its leaf is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.fields import show
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf

Array = npt.NDArray[Any]
Index = tuple[int | slice, ...]
NAMES: dict[str, str] = {dtype.name: name for name, dtype in FLOATS.items()}
"""How numpy calls a dtype that a weight may have -> its format."""


@dataclass(frozen=True)
class Stored:
    """One array: its shape, numpy's name of its dtype, and how a part of it is read."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[Index], Array]
    """The elements at an index of the leading axes."""
    index: tuple[int, ...] = ()
    """Where it is only a part of `read`'s array: the part's index."""

    def part(self, *index: int) -> Stored:
        """Such as one layer of a stack."""
        return Stored(self.shape[len(index) :], self.dtype, self.read, (*self.index, *index))

    def array(self, rows: int | None = None) -> Array:
        """All of it, or only its first rows."""
        return self.read(self.index if rows is None else (*self.index, slice(0, rows)))


@dataclass(frozen=True)
class Made:
    """One of our weights or biases: what it is read from, and what becomes of that."""

    name: str
    """What the array is called, for messages."""
    stored: Stored
    ours: Callable[[Array], Array]
    rows: int | None = None
    """The first rows alone are tokens."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that it will have, learnt without reading it; of an array of no fitting shape ()."""
        shape = self.stored.shape
        if self.rows is not None:
            shape = (*(min(self.rows, rows) for rows in shape[:1]), *shape[1:])
        try:
            return self.ours(np.broadcast_to(np.zeros((), np.uint8), shape)).shape
        except (ValueError, IndexError):
            return ()

    def array(self) -> Array:
        return self.ours(self.stored.array(self.rows))


def leaves_of(path: Path, config: Config, made: Mapping[str, Made]) -> dict[str, Callable[[], Leaf]]:
    """The leaves of every tensor of a model, from what each (and each bias, `.bias` after its name) is made of.

    Raises GemmaryError where one has another shape than the model needs, or a dtype that weights are not read as.
    """
    leaves: dict[str, Callable[[], Leaf]] = {}
    known: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = {}
    for tensor in tensors(config):
        for name, shape in ((tensor.name, tensor.shape), (tensor.name + ".bias", tensor.shape[:1])):
            if name == tensor.name or tensor.bias:
                one = made[name]
                kind = (re.sub(r"\d+", "", name), one.stored.shape)  # the layers are alike
                if known.setdefault(kind, one.shape) != shape:
                    raise GemmaryError(
                        f"{path}: {show(one.name)} has shape {one.stored.shape}, which does not become the {shape} of "
                        f"{name}"
                    )
                if one.stored.dtype not in NAMES:
                    raise GemmaryError(
                        f"{path}: {show(one.name)} is {show(one.stored.dtype)}; weights are read as "
                        f"{', '.join(NAMES)} only"
                    )
        bias = made[tensor.name + ".bias"] if tensor.bias else None
        leaves[tensor.name] = partial(_leaf, made[tensor.name], bias, tensor.is_norm)
    return leaves


def formats_of(config: Config, made: Mapping[str, Made]) -> dict[str, str]:
    """Name of each tensor -> the format of its leaf, without reading any."""
    return {t.name: "F32" if t.is_norm else NAMES[made[t.name].stored.dtype] for t in tensors(config)}


def check_names(path: Path, found: Iterable[str], expected: Iterable[str]) -> None:
    """Raises GemmaryError where an array is missing or left over."""
    found, expected = set(found), set(expected)
    for names, what in ((expected - found, "lacks {}"), (found - expected, "holds {}, which this model does not have")):
        if names:
            first = min(names)
            more = f" and {len(names) - 1} more arrays" if len(names) > 1 else ""
            raise GemmaryError(f"{path} " + what.format(show(first) + more))


def _leaf(made: Made, bias: Made | None, is_norm: bool) -> Leaf:
    array = made.array()
    leaf = Dense(array.astype(np.float32) if is_norm else np.ascontiguousarray(array))
    return leaf if bias is None else Affine(leaf, bias.array().astype(np.float32))
