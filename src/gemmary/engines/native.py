"""The native engine: the model traced once, then replayed in C++ without Python, with the GIL released.

Activations are float32. Weights stay as stored (or become what `dtype` says), packed for the kernels; quantized ones
meet activations quantized to int8 in groups of 32. Keys and values are bfloat16, or float32 where everything is, or
int8 (a scale for each value and for 32 elements of a key) where that is asked for. A row's result has the same bits in
every batch, every chunking and at every number of threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary import _core
from gemmary._core import KvCache
from gemmary.batch import Batch
from gemmary.config import Config, LayerType
from gemmary.engines import KV_DTYPES, EngineInfo, Logits
from gemmary.engines.trace import TraceOps, Value, Weight, compile_trace
from gemmary.errors import GemmaryError
from gemmary.memory import available_bytes
from gemmary.model import decoder
from gemmary.model.leaves import Leaves
from gemmary.quantize.leaves import FLOATS, Dense, Leaf, Packed, slices
from gemmary.quantize.lora import LoRA

GREEDY_STEPS = 48
"""Lone greedy steps before the head's high halves are copied: about as many as lose the time without them that the
copying takes."""


ADAPTERS = "F32 adapters"
"""What their bytes are counted as."""


@dataclass(frozen=True)
class _Compiled:
    """A program, and the names of the arrays that it fills: the result first, then the taps."""

    program: Any
    outputs: dict[str, Value]


@dataclass(frozen=True)
class Timing:
    """What the profile says of one instruction, over all steps since `profile(True)`.

    Every operand counts once, however often a kernel comes back to it; a multiply-add is two operations.
    """

    label: str
    seconds: float
    weight_bytes: int
    """As packed."""
    cache_bytes: int
    """Keys and values that any row sees, and those that the steps added."""
    activation_bytes: int
    int8_operations: int
    """Of products of quantized weights and activations."""
    float_operations: int


class NativeEngine:
    """`gemmary.engines.Engine` in C++ on the CPU.

    dtype: None = as stored, "float32" or "bfloat16" (the sums are float32 always). kv_dtype: of keys and values, a name
    of `gemmary.engines.KV_DTYPES`. threads: None = the processors that this process may use. isa: None = the best that
    this machine has, or a name of `gemmary._core.available_isas()`. max_chunk: the most tokens of one sequence in one
    step once its windowed layers' caches are rings, which they are when the capacity exceeds window + max_chunk.
    """

    def __init__(
        self,
        config: Config,
        lookup: Callable[[str], Leaf],
        *,
        dtype: str | None = None,
        kv_dtype: str = "auto",
        threads: int | None = None,
        isa: str | None = None,
        max_chunk: int = 512,
    ) -> None:
        if dtype == "float16":
            raise GemmaryError("float16 overflows on Gemma's activations: choose bfloat16 or float32")
        if dtype not in (None, "float32", "bfloat16"):
            raise GemmaryError(f"the native engine computes in float32 or bfloat16, not {dtype}")
        if kv_dtype not in KV_DTYPES:
            raise GemmaryError(f"keys and values are kept as {', '.join(KV_DTYPES)}, not {kv_dtype}")
        if threads is not None and threads < 1:
            raise GemmaryError(f"threads must be at least 1, not {threads}")
        self.config = config
        self.max_chunk = max_chunk
        self._dtype = dtype
        self._lookup = lookup
        try:
            with _errors():
                self._runtime = _core.Runtime(threads or 0, isa)
        except RuntimeError as error:  # std::system_error
            many = threads or _core.available_processors()
            raise GemmaryError(f"the system cannot start {many} threads: {error}; ask for fewer") from error
        self._packed: dict[str, Weight] = {}
        self._formats: dict[str, int] = {}
        self._programs: dict[tuple[str, bool], _Compiled] = {}
        self._scratch: list[KvCache] = []
        self.bound_head_after: int | None = GREEDY_STEPS
        self._compiled("logits", False)
        if config.pooled_dense:
            self._compiled("sentence_embedding", False)
        exact = dtype == "float32" or all(format.split()[0] == "F32" for format in self._formats)
        self._kv_dtype = kv_dtype if kv_dtype != "auto" else "float32" if exact else "bfloat16"
        self.info = EngineInfo(
            "native",
            f"cpu ({self._runtime.isa})",
            dtype or "float32",
            dict(self._formats),
            self._runtime.threads,
            batch_invariant=True,
            kv_dtype=self._kv_dtype,
        )

    def new_cache(self, capacity: int) -> KvCache:
        """An empty cache for `capacity` tokens. Pages of it are used as they are written."""
        return self._cache(capacity, shared=False)

    def step(self, batch: Batch, caches: Sequence[KvCache], taps: dict[str, Logits] | None = None) -> Logits:
        """See `Engine.step`. Raises GemmaryError, with no cache changed, if the batch does not fit the caches."""
        if batch.candidates and len(batch.tokens) == 1 and self.bound_head_after is not None:
            self.bound_head_after -= 1
            if self.bound_head_after <= 0:
                self.bound_head()
        return self._run("logits", batch, caches, taps)

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        """See `Engine.embed`."""
        for number, rows in enumerate(batch.sequences):
            count = rows.stop - rows.start
            if number == len(self._scratch):
                self._scratch.append(self._cache(count, shared=True))
            elif self._scratch[number].capacity < count:
                self._scratch[number] = self._cache(count, shared=True)
            self._scratch[number].reset()
        return self._run("sentence_embedding", batch, self._scratch[: len(batch.sequences)], taps)

    def bound_head(self) -> int:
        """From now on a lone row of which few candidates are wanted (greedy decoding) reads about 60 % of the output
        head instead of all of it, for the same text (docs/output-head.md). Comes by itself after `bound_head_after`
        such steps; None: never.

        Returns the bytes that this takes: copies of half of every code. 0, and nothing changes, unless the head is
        Q8_0, its logits are not capped, and memory has four times the room."""
        self.bound_head_after = None
        head = self._packed["embed"].data
        free = available_bytes()
        if self.config.final_logit_softcap or (free is not None and free < 2 * head.nbytes):
            return 0
        with _errors("the high halves of the output head"):
            head.add_high_halves(self._runtime)
        added: int = head.high_nbytes
        if added:
            self.info.formats["Q8_0 high halves"] = added
        return added

    def profile(self, enabled: bool) -> None:
        """Starts (from zero) or stops timing the instructions of the programs without taps."""
        for (_, tapped), compiled in self._programs.items():
            if not tapped:
                compiled.program.set_profiling(enabled)

    def timings(self) -> list[Timing]:
        """Time and cost of each instruction since `profile(True)`, in the order of execution."""
        programs = [compiled.program for (_, tapped), compiled in self._programs.items() if not tapped]
        return [Timing(*row) for program in programs for row in program.profile()]

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        name: str = self._runtime.isa
        return name

    def cache_bytes(self, capacity: int) -> int:
        """See `Engine.cache_bytes`. Windowed layers keep little more than their window."""
        config = self.config
        heads = (config.num_kv_heads, config.head_dim)
        return KvCache.bytes_of(self._positions(capacity), *heads, capacity, self._kv_dtype)

    def _positions(self, capacity: int) -> list[int]:
        """How many of the latest positions each layer keeps."""
        config = self.config
        positions = []
        for kind in config.layer_types:
            window = config.window(kind)
            ring = window is not None and not config.bidirectional and capacity > window + self.max_chunk
            # 16 more: the oldest block of a ring is partly overwritten.
            positions.append(window + self.max_chunk + 16 if ring and window is not None else capacity)
        return positions

    def _cache(self, capacity: int, *, shared: bool) -> KvCache:
        config = self.config
        positions = self._positions(capacity)
        with _errors(f"a cache for {capacity} tokens"):
            return _core.KvCache(positions, config.num_kv_heads, config.head_dim, capacity, self._kv_dtype, shared)

    def _run(self, result: str, batch: Batch, caches: Sequence[KvCache], taps: dict[str, Logits] | None) -> Logits:
        compiled = self._compiled(result, taps is not None)
        counts = {"T": len(batch.tokens), "R": len(batch.outputs), "S": len(batch.sequences)}
        arrays = {
            name: np.empty((counts[value.rows], value.width), dtype=np.float32)
            for name, value in compiled.outputs.items()
        }
        with _errors(f"a step of {counts['T']} tokens"):
            run_program(compiled.program, batch, list(self.config.kinds), list(caches), list(arrays.values()))
        if taps is not None:
            taps.update(arrays)
        return arrays[result]

    def _compiled(self, result: str, tapped: bool) -> _Compiled:
        """The program that ends in the tap called `result`; with all taps, or with that one."""
        key = (result, tapped)
        if key not in self._programs:
            ops = TraceOps()
            weights = Leaves(self._weight)
            kinds = self.config.kinds
            step = decoder.Step(None, None, {kind: n for n, kind in enumerate(kinds)}, None)
            hidden, _ = decoder.hidden_states(ops, self.config, weights, step, None)
            if result == "logits":
                out = decoder.logits(ops, self.config, weights, step, hidden)
            else:
                out = decoder.sentence_embedding(ops, self.config, weights, None, hidden)
            outputs = {result: out} | (ops.taps if tapped else {})
            with _errors():
                program = compile_trace(_core, self._runtime, ops, list(outputs.values()), len(kinds))
            self._programs[key] = _Compiled(program, outputs)
        return self._programs[key]

    def _weight(self, name: str) -> Weight:
        if name not in self._packed:
            leaf = self._lookup(name)
            adapters = self._adapters(name, leaf) if isinstance(leaf, LoRA) else []
            self._packed[name] = Weight(name, self._pack(name, leaf), adapters)
        return self._packed[name]

    def _adapters(self, name: str, leaf: LoRA) -> list[Any]:
        """What the model's adapters add to a weight, as the kernels read it."""
        found: list[Any] = []
        for weights, gain in zip(leaf.adapters, leaf.gains, strict=True):
            if weights is None:
                found.append(None)
                continue
            with _errors(f"the adapter of {name}"):
                a, b = (pack(self._runtime, Dense(matrix), "F32") for matrix in (weights.a, weights.b))
                found.append(_core.Lora(a, b, weights.scale, gain))
            self._count(ADAPTERS, found[-1].nbytes)
        return found

    def _pack(self, name: str, leaf: Leaf) -> Any:
        if len(leaf.shape) == 1:
            vector = np.ascontiguousarray(leaf.dequantize())
            self._count("F32", vector.nbytes)
            return vector
        leaf = leaf.base if isinstance(leaf, LoRA) else leaf
        format = {"float32": "F32", "bfloat16": "BF16"}[self._dtype] if self._dtype else leaf.format
        with _errors(f"the weight {name}"):
            packed = pack(self._runtime, leaf, format)
        self._count(format, packed.nbytes)
        return packed

    def _count(self, format: str, nbytes: int) -> None:
        self._formats[format] = self._formats.get(format, 0) + nbytes


def pack(runtime: Any, leaf: Leaf, format: str) -> Any:
    """A matrix as the kernels read it, in its own format or as F32 or BF16. Panels are used where they lie; the rest is
    packed a slice at a time, and what a mapped file took of memory for a slice is let go after it.

    Raises ValueError for a format that the kernels do not have.
    """
    rows, columns = leaf.shape
    if isinstance(leaf, Packed) and leaf.format == format:
        return _core.PackedWeight.borrow(format, rows, columns, leaf.panels)
    packed = _core.PackedWeight(runtime, format, rows, columns)
    for start, stop in slices(leaf):
        if leaf.format == format:
            data = leaf.stored(start, stop)
        else:
            data = leaf.rows(np.arange(start, stop)).astype(FLOATS[format]).reshape(-1).view(np.uint8)
        packed.pack(runtime, start, data)
        leaf.release(start, stop)
    return packed


def run_program(
    program: Any, batch: Batch, kinds: Sequence[LayerType], caches: list[KvCache], arrays: list[npt.NDArray[np.float32]]
) -> None:
    """One step of a C++ program: `arrays` are its external buffers."""
    visible = [batch.visible[kind] for kind in kinds]
    sequences = np.array([(rows.start, rows.stop) for rows in batch.sequences], dtype=np.int32).reshape(-1, 2)
    adapters = np.array(batch.adapters, dtype=np.int32) if any(batch.adapters) else None
    inputs = (batch.tokens, batch.positions, visible, batch.outputs, sequences, caches, arrays)
    program.run(*inputs, candidates=batch.candidates, adapters=adapters)


@contextlib.contextmanager
def _errors(what: str = "") -> Iterator[None]:
    """C++'s refusals as the project's exception."""
    try:
        yield
    except ValueError as error:
        raise GemmaryError(str(error)) from error
    except MemoryError as error:
        raise GemmaryError(f"there is not enough memory for {what or 'the native engine'}") from error
