"""What this machine was measured to do, remembered between runs: plans only read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemmary.checkpoints.starter import cache_folder
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file

if TYPE_CHECKING:
    from gemmary.bench import Ceilings

FILE = "machine.json"
LOOKS = 5
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class MachineSpeed:
    """Ceilings of a processor on so many threads."""

    processor: str
    isa: str
    threads: int
    read: float
    """Bytes of memory a second."""
    int8: float
    """Operations of integer products a second."""
    float32: float
    """Operations of float32 multiply-adds a second."""


def speed_of(ceilings: Ceilings) -> MachineSpeed:
    """The medians of several looks at this machine: what a run among its other work can count on. The shares of
    `speed.py` are of them."""
    from gemmary.bench import processor_name

    medians = ceilings.read.median, ceilings.int8.median, ceilings.float32.median
    return MachineSpeed(processor_name(), ceilings.isa, ceilings.threads, *medians)


def remembered_speed(threads: int) -> MachineSpeed | None:
    """What was measured on so many threads of this processor; None where nothing was."""
    from gemmary.bench import processor_name

    name = processor_name()
    return next((each for each in _remembered() if (each.processor, each.threads) == (name, threads)), None)


def remember(speed: MachineSpeed) -> None:
    """Keeps it in place of what was measured before; where the cache cannot be written, for no longer than now."""
    mine = (speed.processor, speed.threads)
    others = [each for each in _remembered() if (each.processor, each.threads) != mine]
    with suppress(GemmaryError), atomic_file(_path()) as file:
        file.write(json.dumps([asdict(each) for each in (*others, speed)], indent=1).encode())


def measure_speed(threads: int, progress: Callable[[str, int, int], None] | None = None) -> MachineSpeed:
    """A look of about a second at the machine, remembered.

    Raises GemmaryError where memory has no room for it.
    """
    from gemmary.bench.machine import Looks, Machine

    looks = Looks(Machine(threads))
    for number in range(LOOKS):
        looks.at_memory(LOOK_SECONDS)
        looks.at_arithmetic(LOOK_SECONDS)
        if progress:
            progress("measuring the machine", number + 1, LOOKS)
    speed = speed_of(looks.ceilings())
    remember(speed)
    return speed


def _remembered() -> list[MachineSpeed]:
    """Nothing where the file was damaged: it can be measured again."""
    try:
        return [MachineSpeed(**row) for row in json.loads(_path().read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def _path() -> Path:
    return cache_folder() / FILE
