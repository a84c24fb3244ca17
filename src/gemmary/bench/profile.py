"""Where the time of a model goes, operation by operation, beside the least that each has to move and to compute.

The bound of an operation is the longer of two times: its bytes over the memory's bandwidth, its operations over the
peak of the multiply-add that it is made of. Bytes count every operand once: weights, keys and values, and activations,
which a cache may hold, so that a small operation can pass its ceiling. Ceilings are measured between the very steps
that are held against them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from gemmary.batch import Batch, Chunk
from gemmary.bench.machine import Ceilings, Looks, Machine
from gemmary.bench.measure import WARM_UP, Spread, check_context, prompt_ids
from gemmary.errors import GemmaryError
from gemmary.generate.scheduler import STEP_TOKENS

if TYPE_CHECKING:
    from gemmary.api import Model
    from gemmary.engines.native import NativeEngine, Timing

STRETCH = 16
"""Tokens decoded between two looks at the memory."""
BETWEEN = "between operations"
"""The rest of a step: planning it, Python around it."""
Stretch = Sequence[Sequence[int]]
"""The tokens of each of some steps."""
_LINEAR = {"embed": "head", "o": "attention out"}
_OTHERS = {"embed": "embedding", "rms_norm": "norms", "rope_angles": "rope"}


@dataclass(frozen=True)
class Operation:
    """All instructions of one kind or, of matrix products, of one role, in one pass of a phase."""

    name: str
    seconds: float = 0.0
    weight_bytes: float = 0.0
    cache_bytes: float = 0.0
    """Keys and values that are seen, and those that are added."""
    activation_bytes: float = 0.0
    int8_operations: float = 0.0
    float_operations: float = 0.0

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.cache_bytes + self.activation_bytes

    @property
    def operations(self) -> float:
        return self.int8_operations + self.float_operations

    def memory_s(self, ceilings: Ceilings) -> float:
        return self.bytes / ceilings.read.median

    def arithmetic_s(self, ceilings: Ceilings) -> float:
        int8_s = self.int8_operations / ceilings.int8.median
        return int8_s + self.float_operations / ceilings.float32.median

    def bound_s(self, ceilings: Ceilings) -> float:
        """The least time that it can take."""
        return max(self.memory_s(ceilings), self.arithmetic_s(ceilings))

    def bound_by(self, ceilings: Ceilings) -> str:
        if self.bound_s(ceilings) == 0:
            return "-"
        if self.memory_s(ceilings) >= self.arithmetic_s(ceilings):
            return "memory"
        float32_s = self.float_operations / ceilings.float32.median
        return "float32" if 2 * float32_s > self.arithmetic_s(ceilings) else "int8"


FIGURES = [field.name for field in fields(Operation) if field.name != "name"]
"""What of an operation adds up."""


@dataclass(frozen=True)
class Phase:
    """One phase, prefill or decode. Operations are those of one pass, in the round whose time is the median."""

    name: str
    tokens: int
    """Of a pass: the whole prompt, or one."""
    passes: int
    """Of a round: one prompt, or so many tokens after it."""
    pass_s: Spread
    """Seconds of a pass, over the rounds."""
    operations: tuple[Operation, ...]
    """Longest first; their seconds add up to the round's."""
    ceilings: Ceilings

    @property
    def total(self) -> Operation:
        """Everything together, under the name `all`."""
        return total("all", self.operations)

    @property
    def bound_s(self) -> float:
        """The sum of the operations' bounds."""
        return sum(operation.bound_s(self.ceilings) for operation in self.operations)

    @property
    def accounted(self) -> float:
        """The share of the time that the bounds explain."""
        return self.bound_s / self.total.seconds

    @property
    def read_share(self) -> float:
        """Weights, keys and values a second, as a share of the memory's bandwidth."""
        whole = self.total
        return (whole.weight_bytes + whole.cache_bytes) / whole.seconds / self.ceilings.read.median

    def as_dict(self) -> dict[str, Any]:
        at = self.ceilings
        times = [
            {
                **asdict(operation),
                "memory_s": operation.memory_s(at),
                "arithmetic_s": operation.arithmetic_s(at),
                "bound_s": operation.bound_s(at),
                "bound_by": operation.bound_by(at),
            }
            for operation in self.operations
        ]
        derived = {"bound_s": self.bound_s, "accounted": self.accounted, "read_share": self.read_share}
        return {**asdict(self), "operations": times, **derived}


@dataclass(frozen=True)
class Profile:
    """Where the time of one model goes on one machine."""

    model: str
    device: str
    formats: dict[str, int]
    """Bytes of weights held, by format."""
    threads: int
    prefill: int
    decode: int
    repeat: int
    warm_up: int
    phases: tuple[Phase, ...]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "phases": [phase.as_dict() for phase in self.phases]}


def profile(
    model: Model,
    *,
    prefill: int = 512,
    decode: int = 128,
    repeat: int = 5,
    progress: Callable[[str, int, int], None] | None = None,
) -> Profile:
    """Times the operations of `repeat` rounds of a prompt and single tokens after it, looking at the ceilings between.

    progress: what, rounds done, rounds in all. Raises GemmaryError for another engine than the native one, for an
    encoder, and where prefill and decode do not fit the context.
    """
    if model.info.engine != "native":
        raise GemmaryError(f"the {model.info.engine} engine does not time its operations: use the native one")
    if model.config.bidirectional:
        raise GemmaryError(f"{model.name} is an encoder and has no phases of generation")
    check_context(model, prefill, decode)
    engine: NativeEngine = model.engine  # type: ignore[assignment]
    machine = Machine(engine.info.threads, engine.isa)
    ids = prompt_ids(model, prefill + decode)
    chunks = [ids[start : min(start + STEP_TOKENS, prefill)] for start in range(0, prefill, STEP_TOKENS)]
    singles = [[token] for token in ids[prefill:]]
    stretches = [singles[start : start + STRETCH] for start in range(0, decode, STRETCH)]
    for number in range(WARM_UP + repeat):
        if number in (0, WARM_UP):
            prompts, answers = _Recorder("prefill", prefill, machine), _Recorder("decode", 1, machine)
        cache = engine.new_cache(prefill + decode)
        with model.scheduler.lock:
            prompts.record(engine, cache, [chunks], 0)
            answers.record(engine, cache, stretches, prefill)
        if progress:
            progress("measuring rounds", number + 1, WARM_UP + repeat)
    return Profile(
        model=model.name,
        device=model.info.device,
        formats=dict(model.info.formats),
        threads=model.info.threads,
        prefill=prefill,
        decode=decode,
        repeat=repeat,
        warm_up=WARM_UP,
        phases=(prompts.phase(1), answers.phase(decode)),
    )


class _Recorder:
    """The rounds of one phase: seconds and timings of each."""

    def __init__(self, name: str, tokens: int, machine: Machine) -> None:
        self.name, self.tokens = name, tokens
        self.rounds: list[tuple[float, list[Timing]]] = []
        self._looks = Looks(machine)

    def record(
        self, engine: NativeEngine, cache: Any, stretches: Sequence[Sequence[Sequence[int]]], start: int
    ) -> None:
        """A round: every stretch is some steps of one sequence that stands at `start`."""
        self._looks.at_arithmetic()
        engine.profile(True)
        seconds = 0.0
        for steps in stretches:
            self._looks.at_memory()
            begin = time.perf_counter()
            for tokens in steps:
                engine.step(Batch.of(engine.config, [Chunk(tokens, start)]), [cache])
                start += len(tokens)
            seconds += time.perf_counter() - begin
        self._looks.at_memory()
        self.rounds.append((seconds, engine.timings()))
        engine.profile(False)

    def phase(self, passes: int) -> Phase:
        seconds, timings = sorted(self.rounds, key=lambda each: each[0])[len(self.rounds) // 2]
        return Phase(
            self.name,
            self.tokens,
            passes,
            Spread.of([round_s / passes for round_s, _ in self.rounds]),
            operations(timings, seconds, passes),
            self._looks.ceilings(),
        )


def operations(timings: Sequence[Timing], seconds: float, passes: int) -> tuple[Operation, ...]:
    """The timings of `passes` passes that took `seconds` in all, by role, longest first, for one pass."""
    found: dict[str, list[Operation]] = {}
    for timing in timings:
        figures = {field: getattr(timing, field) / passes for field in FIGURES}
        name = role(timing.label)
        found.setdefault(name, []).append(Operation(name, **figures))
    summed = [total(name, parts) for name, parts in found.items()]
    rest = seconds / passes - sum(operation.seconds for operation in summed)
    return tuple(sorted([*summed, Operation(BETWEEN, rest)], key=lambda operation: -operation.seconds))


def role(label: str) -> str:
    """What an instruction is for, from its label: `linear layers.3.gate+up` is `gate+up`."""
    kind, _, name = label.partition(" ")
    if kind == "linear":
        last = name.rpartition(".")[2]
        return _LINEAR.get(last, last)
    return _OTHERS.get(kind, kind)


def total(name: str, parts: Sequence[Operation]) -> Operation:
    """The sum of operations, under a name of its own."""
    return Operation(name, **{field: sum(getattr(part, field) for part in parts) for field in FIGURES})
