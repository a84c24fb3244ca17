"""The native engine: the model traced once, then replayed in C++ without Python, with the GIL released.

Activations are float32. Weights stay as stored (or become what `dtype` says), packed for the kernels; quantized ones
meet activations quantized to int8 in groups of 32. Keys and values are bfloat16, or float32 where everything is, or
int8 (a scale for each value and for 32 elements of a key) where that is asked for. A row's result has the same bits in
every batch, every chunking and at every number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gemmary import _core
from gemmary._core import KvCache
from gemmary.batch import Batch, Pixels, patches
from gemmary.config import Config
from gemmary.engines import KV_DTYPES, EngineInfo, Logits
from gemmary.engines.native_memory import MAX_CHUNK, cache_bytes, kept_positions
from gemmary.engines.native_programs import LOGITS, PICTURES, SENTENCES, Compiled, compile_program, run_step, run_tower
from gemmary.engines.native_weights import PackedWeights, core_errors
from gemmary.errors import GemmaryError
from gemmary.memory import available_bytes
from gemmary.quantize.leaves import Leaf

GREEDY_STEPS = 48
"""Lone greedy steps before the head's high halves are copied: about as many as lose the time without them that the
copying takes."""


PATCHES_AT_ONCE = 1024
"""Patches in one run of the tower, unless a picture has more: each takes about 40 KB while it runs."""


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
        max_chunk: int = MAX_CHUNK,
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
        try:
            with core_errors():
                self._runtime = _core.Runtime(threads or 0, isa)
        except RuntimeError as error:  # std::system_error
            many = threads or _core.available_processors()
            raise GemmaryError(f"the system cannot start {many} threads: {error}; ask for fewer") from error
        self._weights = PackedWeights(self._runtime, lookup, dtype)
        self._programs: dict[tuple[str, bool], Compiled] = {}
        self._scratch: list[KvCache] = []
        self._tower_caches: list[KvCache] = []
        self.bound_head_after: int | None = GREEDY_STEPS
        self._compiled(LOGITS, False)
        if config.pooled_dense:
            self._compiled(SENTENCES, False)
        if config.vision:
            self._compiled(PICTURES, False)
        formats = self._weights.formats
        exact = dtype == "float32" or all(format.split()[0] == "F32" for format in formats)
        self._kv_dtype = kv_dtype if kv_dtype != "auto" else "float32" if exact else "bfloat16"
        self.info = EngineInfo(
            "native",
            f"cpu ({self._runtime.isa})",
            dtype or "float32",
            dict(formats),
            self._runtime.threads,
            batch_invariant=True,
            kv_dtype=self._kv_dtype,
        )

    def new_cache(self, capacity: int) -> KvCache:
        """An empty cache for `capacity` tokens. Pages of it are used as they are written."""
        return self._cache(capacity, shared=False)

    def can_truncate(self, cache: KvCache, length: int) -> bool:
        """See `Engine.can_truncate`. Rings hold `max_chunk` keys more than a window, so that much can be cut."""
        window = self.config.sliding_window
        return window is None or cache.oldest <= max(0, length - window + 1)

    def fork(self, cache: KvCache, length: int, capacity: int) -> KvCache:
        """See `Engine.fork`. Copies keys and values, those of windowed layers as far as rings hold them."""
        forked = self.new_cache(capacity)
        forked.copy(cache, length)
        return forked

    def step(self, batch: Batch, caches: Sequence[KvCache], taps: dict[str, Logits] | None = None) -> Logits:
        """See `Engine.step`. Raises GemmaryError, with no cache changed, if the batch does not fit the caches."""
        if batch.candidates and len(batch.tokens) == 1 and self.bound_head_after is not None:
            self.bound_head_after -= 1
            if self.bound_head_after <= 0:
                self.bound_head()
        return self._run(LOGITS, batch, caches, taps)

    def see(self, pixels: Pixels, taps: dict[str, Logits] | None = None, adapter: int = 0) -> Logits:
        """See `Engine.see`. Keys and values of the tower are float32 and kept for no longer than the call."""
        fed, rows = patches(self.config, np.ascontiguousarray(pixels, dtype=np.float32))
        vision = self.config.vision
        assert vision is not None
        at_once = max(1, min(len(rows), PATCHES_AT_ONCE // vision.num_patches))
        while len(self._tower_caches) < at_once:
            sizes = ([vision.num_patches] * vision.num_layers, vision.num_heads, vision.head_dim, vision.num_patches)
            with core_errors("the tower's keys and values"):
                self._tower_caches.append(_core.KvCache(*sizes, "float32", True))
        compiled = self._compiled(PICTURES, taps is not None)
        return _tapped(PICTURES, run_tower(compiled, fed, rows, self._tower_caches[:at_once], adapter), taps)

    def embed(self, batch: Batch, taps: dict[str, Logits] | None = None) -> Logits:
        """See `Engine.embed`."""
        for number, rows in enumerate(batch.sequences):
            count = rows.stop - rows.start
            if number == len(self._scratch):
                self._scratch.append(self._cache(count, shared=True))
            elif self._scratch[number].capacity < count:
                self._scratch[number] = self._cache(count, shared=True)
            self._scratch[number].reset()
        return self._run(SENTENCES, batch, self._scratch[: len(batch.sequences)], taps)

    def bound_head(self) -> int:
        """From now on a lone row of which few candidates are wanted (greedy decoding) reads about 60 % of the output
        head instead of all of it, for the same text (docs/output-head.md). Comes by itself after `bound_head_after`
        such steps; None: never.

        Returns the bytes that this takes: copies of half of every code. 0, and nothing changes, unless the head is
        Q8_0, its logits are not capped, and memory has four times the room."""
        self.bound_head_after = None
        head = self._weights("embed").data
        free = available_bytes()
        if self.config.final_logit_softcap or (free is not None and free < 2 * head.nbytes):
            return 0
        with core_errors("the high halves of the output head"):
            head.add_high_halves(self._runtime)
        added: int = head.high_nbytes
        if added:
            self.info.formats["Q8_0 high halves"] = added
        return added

    def held(self, name: str) -> Leaf:
        """A weight of the tensor table as it lies in memory, without adapters: what a packed folder holds of it."""
        return self._weights.held(name)

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
        return cache_bytes(self.config, capacity, self._kv_dtype, self.max_chunk)

    def _cache(self, capacity: int, *, shared: bool) -> KvCache:
        config = self.config
        positions = kept_positions(config, capacity, self.max_chunk)
        with core_errors(f"a cache for {capacity} tokens"):
            return _core.KvCache(positions, config.num_kv_heads, config.head_dim, capacity, self._kv_dtype, shared)

    def _run(self, result: str, batch: Batch, caches: Sequence[KvCache], taps: dict[str, Logits] | None) -> Logits:
        return _tapped(result, run_step(self._compiled(result, taps is not None), self.config, batch, caches), taps)

    def _compiled(self, result: str, tapped: bool) -> Compiled:
        key = (result, tapped)
        if key not in self._programs:
            self._programs[key] = compile_program(self._runtime, self.config, self._weights, result, tapped)
        return self._programs[key]


def _tapped(result: str, arrays: dict[str, Logits], taps: dict[str, Logits] | None) -> Logits:
    """The result among what a program filled; the rest goes to `taps`, where given."""
    if taps is not None:
        taps.update(arrays)
    return arrays[result]
