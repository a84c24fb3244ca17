"""Engines: each runs the one definition of the model on its own arrays. `open_engine` picks one by its name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Pixels
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Leaf

EngineName = Literal["native", "torch", "reference"]
ENGINES: tuple[EngineName, ...] = ("native", "torch", "reference")
KV_DTYPES = ("auto", "bfloat16", "float32", "int8")
"""How keys and values can be kept; "auto": as the engine finds right for its weights."""
Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine says of itself at the start of a run."""

    engine: str
    device: str
    """Such as `cpu (avx2)` or `cuda:0`."""
    dtype: str
    """Activations and, where not quantized, weights."""
    formats: dict[str, int]
    """Bytes of weights held, by format."""
    threads: int
    batch_invariant: bool = False
    """A row's logits have the same bits whatever else is in the step."""
    kv_dtype: str | None = None
    """Keys and values; None: as `dtype`."""


class Cache(Protocol):
    """Keys and values of one sequence."""

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on; `length` is at most what is held."""
        ...


class Engine(Protocol):
    """One loaded model. Not safe for concurrent `step` calls; a scheduler owns it."""

    config: Config
    info: EngineInfo

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for one sequence of at most `capacity` tokens. Memory goes when the last reference does."""
        ...

    def cache_bytes(self, capacity: int) -> int:
        """The most memory that `new_cache(capacity)` comes to hold."""
        ...

    def can_truncate(self, cache: Any, length: int) -> bool:
        """Whether a cache that is cut to its first `length` tokens has every key that what comes next sees: windowed
        layers may have let go of some."""
        ...

    def fork(self, cache: Any, length: int, capacity: int) -> Cache:
        """A cache for `capacity` tokens that begins with the first `length` of another, which stays as it is and is one
        that `can_truncate` to them."""
        ...

    def step(self, batch: Batch, caches: Sequence[Any], taps: dict[str, Logits] | None = None) -> Logits:
        """Runs the batch; caches[s] belongs to batch.sequences[s] and takes its keys. Logits [R, V], float32.

        `taps`, where given, receives every named intermediate as float32 [T or R, width].
        """
        ...

    def see(self, pixels: Pixels, taps: dict[str, Logits] | None = None, adapter: int = 0) -> Logits:
        """Pictures as tokens [pictures * num_tokens, D], float32: what a batch puts in their places. adapter: of the
        tower, numbered as in a `Chunk`."""
        ...

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        """One unit vector for each sequence [S, width] (embedding models)."""
        ...


def open_engine(
    name: str,
    config: Config,
    lookup: Callable[[str], Leaf],
    *,
    dtype: str | None = None,
    kv_dtype: str = "auto",
    threads: int | None = None,
    isa: str | None = None,
) -> Engine:
    """Builds engine `name` from typed leaves. `lookup` maps a name of the tensor table to its leaf.

    dtype: None = as stored (quantized weights stay quantized), "float32" or "bfloat16". kv_dtype: one of
    `KV_DTYPES`; other than "auto" on the native engine only. threads: None = all cores. isa: the native engine's
    instruction set; None = the best that this machine has.
    """
    if kv_dtype != "auto" and name in ENGINES and name != "native":
        raise GemmaryError(f"the {name} engine keeps keys and values as it computes: kv_dtype is the native engine's")
    if isa is not None and name != "native":
        raise GemmaryError(f"only the native engine takes an instruction set, not {name}: leave {isa} out")
    if name == "native":
        from gemmary.engines.native import NativeEngine

        return NativeEngine(config, lookup, dtype=dtype, kv_dtype=kv_dtype, threads=threads, isa=isa)
    if name == "torch":
        if importlib.util.find_spec("torch") is None:
            raise GemmaryError("the torch engine needs PyTorch: pip install 'gemmary[torch]'")
        from gemmary.engines.torch import TorchEngine

        return TorchEngine(config, lookup, dtype=dtype, threads=threads)
    if name == "reference":
        from gemmary.engines.reference import ReferenceEngine

        return ReferenceEngine(config, lookup, dtype=dtype)
    raise GemmaryError(f"no engine is called {name!r}: choose {', '.join(ENGINES)}")
