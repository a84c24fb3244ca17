"""How fast memory is read right now: what a decode of the same moment is held against."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

REST_S = 0.3
"""Between two turns: the threads of the last one, which spin for work, fall asleep."""


class ReadProbe:
    """A plain read of a buffer far larger than the caches, by as many threads as the peers have."""

    def __init__(self, threads: int, size: int = 256 << 20) -> None:
        self.parts = np.array_split(np.ones(size // 4, dtype=np.float32), threads)
        self.pool = ThreadPoolExecutor(threads)
        self.gigabytes = sum(part.nbytes for part in self.parts) / 1e9
        self()

    def __call__(self) -> float:
        """GB/s (powers of ten) of one pass, after a rest."""
        time.sleep(REST_S)
        begin = time.perf_counter()
        list(self.pool.map(np.max, self.parts))
        return self.gigabytes / (time.perf_counter() - begin)
