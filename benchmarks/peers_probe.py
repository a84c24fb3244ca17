"""How fast memory is read right now: what a decode of the same moment is held against."""

from __future__ import annotations

import time

from gemmary.bench import Machine

REST_S = 0.3
"""Between two turns: the threads of the last one, which spin for work, fall asleep."""


class ReadProbe:
    """The read of `gemmary bench --roofline`, of far more than the caches, on the threads of the peers."""

    def __init__(self, threads: int) -> None:
        self.machine = Machine(threads)
        self.machine.read()

    def __call__(self) -> float:
        """GB/s (powers of ten), after a rest."""
        time.sleep(REST_S)
        return self.machine.read() / 1e9
