"""The machine's ceilings, measured: how fast memory is read, and how fast the kernels' multiply-adds go at most.

Where processors and memory are shared, both drift within seconds. A figure means something beside a run only if it was
taken in the midst of it, which is why a `Machine` is asked again and again for short looks.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.bench.measure import Spread
from gemmary.errors import GemmaryError
from gemmary.memory import require

READ_BYTES = 256 << 20
"""Read in turn by all threads: several times what the caches of a processor hold."""
LOOK_SECONDS = 0.03
"""How long a look takes at least."""
_ROUNDS = 1 << 13


class Machine:
    """Probes on `threads` threads (None: all processors) of instruction set `isa` (None: the best one).

    Raises GemmaryError for an instruction set or a number of threads that this machine does not have.
    """

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        from gemmary import _core

        self._core: Any = _core
        try:
            self._runtime = _core.Runtime(threads or 0, isa)
        except (ValueError, RuntimeError) as error:
            raise GemmaryError(str(error)) from error
        self.threads = self._runtime.threads
        self.isa = self._runtime.isa

    def read(self, seconds: float = LOOK_SECONDS) -> float:
        """Bytes of memory a second, read in order by all threads."""
        passes: list[float] = []
        while not passes or sum(passes) < seconds:
            passes.append(self._core.probe_read(self._runtime, self._memory)[1])
        return READ_BYTES * len(passes) / sum(passes)

    def int8(self, seconds: float = LOOK_SECONDS) -> float:
        """Operations a second of the integer products (two for each multiply-add), operands in the nearest cache."""
        return self._peak(self._core.probe_dot, seconds)

    def float32(self, seconds: float = LOOK_SECONDS) -> float:
        """Operations a second of fused multiply-adds of float32 (two for each), operands in the nearest cache."""
        return self._peak(self._core.probe_fma, seconds)

    def _peak(self, probe: Callable[[Any, int], tuple[float, int, float]], seconds: float) -> float:
        operations, spent = 0, 0.0
        while spent < seconds:
            _, multiply_adds, taken = probe(self._runtime, _ROUNDS)
            operations += 2 * multiply_adds
            spent += taken
        return operations / spent

    @cached_property
    def _memory(self) -> npt.NDArray[np.int32]:
        require(READ_BYTES, "the probe of memory", "close something first")
        return np.ones(READ_BYTES // 4, dtype=np.int32)  # written, so that every page is one of its own


def read_bandwidth(threads: int | None = None, seconds: float = 1.0) -> float:
    """Bytes of memory a second that `threads` threads (None: all processors) read together, over about `seconds`."""
    return Machine(threads).read(seconds)


@dataclass(frozen=True)
class Ceilings:
    """What the machine allows at most, over several looks."""

    isa: str
    threads: int
    read: Spread
    """Bytes of memory a second."""
    int8: Spread
    """Operations of integer products a second."""
    float32: Spread
    """Operations of float32 multiply-adds a second."""


class Looks:
    """Looks at a machine's ceilings, gathered."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._read: list[float] = []
        self._int8: list[float] = []
        self._float32: list[float] = []

    def at_memory(self, seconds: float = LOOK_SECONDS) -> None:
        self._read.append(self._machine.read(seconds))

    def at_arithmetic(self, seconds: float = LOOK_SECONDS) -> None:
        self._int8.append(self._machine.int8(seconds))
        self._float32.append(self._machine.float32(seconds))

    def ceilings(self) -> Ceilings:
        spreads = [Spread.of(looks) for looks in (self._read, self._int8, self._float32)]
        return Ceilings(self._machine.isa, self._machine.threads, *spreads)


def ceilings(
    threads: int | None = None,
    isas: Sequence[str] | None = None,
    *,
    repeat: int = 5,
    progress: Callable[[str, int, int], None] | None = None,
) -> list[Ceilings]:
    """Those of each instruction set (None: all that this machine has, the best one first), looked at in turn."""
    from gemmary import _core

    machines = [Machine(threads, isa) for isa in isas or _core.available_isas()[::-1]]
    for machine in machines[1:]:
        machine._memory = machines[0]._memory
    gathered = [Looks(machine) for machine in machines]
    for number in range(repeat):
        for looks in gathered:
            looks.at_memory(0.2)
            looks.at_arithmetic(0.1)
        if progress:
            progress("measuring the machine", number + 1, repeat)
    return [looks.ceilings() for looks in gathered]


def processor_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the system calls its processor, with its family and model where it tells them."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in reversed(lines)}
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    family = [f"{name} {fields[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in fields]
    return f"{fields['model name']} ({', '.join(family)})" if family else fields["model name"]
