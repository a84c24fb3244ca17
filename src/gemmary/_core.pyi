"""What the compiled module offers (csrc/module.cc). Wrong shapes, dtypes and values raise ValueError or TypeError."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Int32 = npt.NDArray[np.int32]
_Float32 = npt.NDArray[np.float32]

def read_gguf_header(file: npt.NDArray[np.uint8]) -> tuple[dict[str, Any], list[tuple[Any, ...]]]: ...
def write_sentencepiece_pieces(
    blob: bytes, offsets: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], types: npt.NDArray[np.int32]
) -> bytes:
    """The pieces of a ModelProto; piece i is blob[offsets[i] : offsets[i + 1]]."""

def skip_sentencepiece_pieces(model: bytes) -> tuple[int, int]:
    """How many pieces under 128 bytes a ModelProto begins with, and the first byte after them: past the end if the last
    is cut off."""

PACKED_VERSION: int
"""Of the layout of panels (csrc/packed.h)."""

def packed_bytes(format: str, rows: int, cols: int) -> int: ...
def unpack(
    format: str, rows: int, cols: int, panels: npt.NDArray[np.uint8], index: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint8]:
    """The rows `index` of a weight given as panels, as they were before packing: uint8 [len(index), bytes a row]."""

def available_processors() -> int: ...
def available_isas() -> list[str]: ...
def probe_read(runtime: Runtime, data: _Int32) -> tuple[int, float]:
    """All threads read whole MiB once: the numbers' sum mod 2^32, and seconds. Releases the GIL, as all probes."""

def probe_dot(runtime: Runtime, rounds: int) -> tuple[int, int, float]:
    """Integer products of ones on all threads: their sum mod 2^32, multiply-adds, seconds."""

def probe_fma(runtime: Runtime, rounds: int) -> tuple[float, int, float]:
    """Fused multiply-adds of ones on all threads: their sum (exact for few rounds), multiply-adds, seconds."""

class Runtime:
    """Threads (0: all processors), kernels (None: the best) and working memory of one engine."""

    def __init__(self, threads: int, isa: str | None) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def isa(self) -> str: ...
    @property
    def working_bytes(self) -> int:
        """Memory that the steps so far have taken for buffers and scratch. It stays."""

class PackedWeight:
    """A matrix as the kernels read it: in memory of its own, to be packed before it is used, or in panels elsewhere."""

    def __init__(self, runtime: Runtime, format: str, rows: int, cols: int) -> None: ...
    @staticmethod
    def borrow(format: str, rows: int, cols: int, panels: npt.NDArray[np.uint8]) -> PackedWeight:
        """A weight whose panels stay where they are, 64-byte aligned. Keeps the array alive."""

    def pack(self, runtime: Runtime, row: int, data: npt.NDArray[np.uint8]) -> None:
        """Packs whole panels (of 16 rows) from `data`, GGUF blocks or floats as bytes, whose first row is `row`."""

    def dequantize(self, runtime: Runtime, row: int, out: npt.NDArray[np.float32] | npt.NDArray[np.uint16]) -> None:
        """Fills `out` [rows, cols] with the rows from `row` on: exactly as float32, or rounded to bfloat16, whose bits
        stand in a uint16. Releases the GIL."""

    @property
    def panels(self) -> npt.NDArray[np.uint8]:
        """What `borrow` takes, read-only."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def add_high_halves(self, runtime: Runtime) -> bool:
        """Lets a step compute an output head's largest rows only; False where the weight does not allow it."""

    @property
    def high_nbytes(self) -> int: ...

class KvCache:
    """Keys and values of one sequence; layer l keeps the latest positions[l], all layers share memory if `shared`."""

    def __init__(
        self, positions: Sequence[int], kv_heads: int, head_dim: int, capacity: int, dtype: str, shared: bool
    ) -> None: ...
    @staticmethod
    def bytes_of(positions: Sequence[int], kv_heads: int, head_dim: int, capacity: int, dtype: str) -> int:
        """What such a cache holds when it is full, where layers share nothing. dtype: float32, bfloat16 or int8."""
    @property
    def length(self) -> int: ...
    @property
    def capacity(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def reset(self) -> None: ...
    def truncate(self, length: int) -> None: ...
    @property
    def oldest(self) -> int:
        """The first position that every layer still holds."""
    def copy(self, other: KvCache, length: int) -> None:
        """Takes over the first `length` tokens of another cache, as far as its layers hold them."""

class Lora:
    """A low-rank adapter of one matrix [O, I]: F32 a [rank, I] and b [O, rank], DoRA's gain [O]."""

    def __init__(self, a: PackedWeight, b: PackedWeight, scale: float, gain: _Float32 | None) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Program:
    """A recorded model. slots: (rows, width); buffers: (rows, width, slot or number of the caller's array, external).

    Rows are "T", "R", "S" or "P". An instruction is `name(label, result, *operands, *settings)` on numbers of buffers.
    """

    def __init__(
        self,
        runtime: Runtime,
        slots: Sequence[tuple[str, int]],
        buffers: Sequence[tuple[str, int, int, bool]],
        kinds: int,
        externals: int,
    ) -> None: ...
    def embed(self, label: str, out: int, table: PackedWeight, scale: float) -> None: ...
    def linear(
        self,
        label: str,
        out: Sequence[int],
        x: int,
        weights: Sequence[PackedWeight],
        adapters: Sequence[Sequence[Lora | None]],
        biases: Sequence[_Float32 | None],
    ) -> None:
        """adapters: for each weight what each adapter of the model adds to it; empty where the model has none. biases:
        of each weight [O]. A quantized weight has as many columns as make its groups of 32 whole."""
    def rms_norm(self, label: str, out: int, x: int, weight: _Float32, eps: float) -> None: ...
    def layer_norm(self, label: str, out: int, x: int, gain: _Float32, shift: _Float32, eps: float) -> None: ...
    def rope_angles(self, label: str, out: int, frequencies: Sequence[float]) -> None: ...
    def rope(self, label: str, out: int, x: int, angles: int) -> None: ...
    def attention(
        self,
        label: str,
        out: int,
        q: int,
        k: int,
        v: int,
        layer: int,
        kind: int,
        heads: int,
        kv_heads: int,
        scale: float,
        softcap: float,
    ) -> None: ...
    def gelu(self, label: str, out: int, x: int) -> None: ...
    def geglu(self, label: str, out: int, gate: int, up: int) -> None: ...
    def add(self, label: str, out: int, a: int, b: int) -> None: ...
    def place(self, label: str, out: int, x: int, values: int) -> None: ...
    def take(self, label: str, out: int, x: int) -> None: ...
    def softcap(self, label: str, out: int, x: int, cap: float) -> None: ...
    def mean_pool(self, label: str, out: int, x: int) -> None: ...
    def l2_normalize(self, label: str, out: int, x: int) -> None: ...
    def run(
        self,
        tokens: _Int32,
        positions: _Int32,
        visible: Sequence[_Int32],
        outputs: _Int32,
        sequences: _Int32,
        caches: Sequence[KvCache],
        externals: Sequence[_Float32],
        candidates: int = 0,
        adapters: _Int32 | None = None,
        places: _Int32 | None = None,
    ) -> None:
        """One step: reads and writes the external arrays, takes the keys into the caches. Releases the GIL."""

    def set_profiling(self, on: bool) -> None: ...
    def profile(self) -> list[tuple[str, float, int, int, int, int, int]]:
        """For each instruction: label, seconds, and csrc/program.h's Cost: bytes of weights, of the caches and of
        activations, int8 and float operations."""
