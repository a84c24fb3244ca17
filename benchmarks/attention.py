"""Speed of the native engine's attention alone: decoding in GB/s of keys and values, beside a read of as many bytes,
and prefill in GFLOP/s (a multiply-add is 2, masked keys are not counted).

    python benchmarks/attention.py [--threads 2] [--kv-dtype int8] [--repeat 7] [--most 2048]

As many layers are attended one after another as take their caches beyond the processor's own. Medians; the read (each
thread adds up numbers of its own part of an array) alternates with the decoding, since a machine's memory drifts.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary import _core
from gemmary.engines.trace import TraceOps, compile_trace

KV_DTYPES = ("float32", "bfloat16", "int8")


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads and elements of each."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int


MQA = Heads("4 heads on 1", 4, 1, 256)
GQA = Heads("8 heads on 4", 8, 4, 256)
VISION = Heads("16 heads, bidirectional", 16, 16, 72)


class Attention:
    """A program of attention layers and one sequence's cache with `context` tokens in it."""

    def __init__(self, shape: Heads, context: int, rows: int, layers: int, kv_dtype: str, threads: int) -> None:
        self.shape, self.context, self.rows = shape, context, rows
        rng = np.random.default_rng(0)
        widths = [shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.kv_heads * shape.head_dim]
        ops = TraceOps()
        q, k, v = (ops.value("T", width, width // shape.head_dim) for width in widths)
        out = q
        for layer in range(layers):
            out, _ = ops.attention(q, k, v, None, layer, 0, shape.head_dim**-0.5, None)
        external = [q, k, v, out]
        self.program = compile_trace(_core, _core.Runtime(threads, None), ops, external, 1)
        capacity = context + rows
        self.cache = _core.KvCache([capacity] * layers, shape.kv_heads, shape.head_dim, capacity, kv_dtype, False)
        self.arrays = [
            rng.standard_normal((max(rows, 512), width)).astype(np.float32) for width in [*widths, widths[0]]
        ]
        for start in range(0, context, 512):  # each token sees itself only: quick
            positions = np.arange(start, min(start + 512, context), dtype=np.int32)
            self._step(positions, np.stack([positions, positions], 1))

    def _step(self, positions: npt.NDArray[np.int32], visible: npt.NDArray[np.int32]) -> None:
        n = len(positions)
        sequences = np.array([[0, n]], np.int32)
        tokens, outputs = np.zeros(n, np.int32), np.zeros(0, np.int32)
        arrays = [array[:n] for array in self.arrays]
        self.program.run(tokens, positions, [visible], outputs, sequences, [self.cache], arrays)

    def run(self, bidirectional: bool = False) -> float:
        """Seconds of one step of `rows` tokens that see all before them."""
        positions = np.arange(self.context, self.context + self.rows, dtype=np.int32)
        last = np.full_like(positions, positions[-1]) if bidirectional else positions
        visible = np.stack([np.zeros_like(positions), last], 1)
        begin = time.perf_counter()
        self._step(positions, visible)
        seconds = time.perf_counter() - begin
        self.cache.truncate(self.context)
        return seconds


def reader(total: int, threads: int) -> Callable[[], float]:
    """Seconds of reading `total` bytes on `threads` threads."""
    parts = np.array_split(np.ones(total // 8, np.int64), threads)
    pool = ThreadPoolExecutor(threads)

    def read() -> float:
        begin = time.perf_counter()
        list(pool.map(np.bitwise_or.reduce, parts))
        return time.perf_counter() - begin

    return read


def decode(shape: Heads, context: int, beyond: int, kv_dtype: str, threads: int, repeat: int) -> None:
    one = _core.KvCache([context], shape.kv_heads, shape.head_dim, context, kv_dtype, False).nbytes
    layers = max(1, beyond // one)
    attention = Attention(shape, context - 1, 1, layers, kv_dtype, threads)
    read = reader(one * layers, threads)
    times = [(attention.run(), read()) for _ in range(repeat + 1)][1:]
    mine, plain = (one * layers / statistics.median(column) / 1e9 for column in zip(*times, strict=True))
    micros = statistics.median(t for t, _ in times) / layers * 1e6
    print(
        f"decode   {shape.name:24} {kv_dtype:8} {context:5} keys   {mine:6.1f} GB/s of {plain:5.1f} "
        f"({mine / plain:4.0%})  {micros:8.1f} us a layer",
        flush=True,
    )


def prefill(shape: Heads, rows: int, kv_dtype: str, threads: int, repeat: int) -> None:
    bidirectional = shape is VISION
    attention = Attention(shape, 0, rows, 1, kv_dtype, threads)
    pairs = rows * rows if bidirectional else rows * (rows + 1) // 2
    seconds = statistics.median([attention.run(bidirectional) for _ in range(repeat + 1)][1:])
    gflops = 4 * pairs * shape.heads * shape.head_dim / seconds / 1e9
    print(
        f"prefill  {shape.name:24} {kv_dtype:8} {rows:5} tokens {gflops:6.1f} GFLOP/s  {seconds * 1e3:8.2f} ms",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=_core.available_processors())
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="only this one (default: all)")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--most", type=int, default=8192, metavar="N", help="leave out what has more keys or tokens")
    parser.add_argument("--bytes", type=int, default=192 << 20, help="of keys and values that a decoding step reads")
    arguments = parser.parse_args()
    for kv_dtype in [arguments.kv_dtype] if arguments.kv_dtype else KV_DTYPES:
        settings: tuple[Any, ...] = (kv_dtype, arguments.threads, arguments.repeat)
        for shape in (MQA, GQA):
            for context in (512, 2048, 8192):
                if context <= arguments.most:
                    decode(shape, context, arguments.bytes, *settings)
            for rows in (512, 2048):
                if rows <= arguments.most:
                    prefill(shape, rows, *settings)
        for rows in (256, 1024):
            if rows <= arguments.most:
                prefill(VISION, rows, *settings)


if __name__ == "__main__":
    main()
