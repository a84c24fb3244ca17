"""A whole decode far into a context: tokens a second, and the share of the bound that memory sets.

    python benchmarks/long_context.py [--model random:gemma-2-2b:int4] [--context 8192] [--kv-dtype int8]

Each layer's cache is filled with random keys and values instead of a prompt that would take minutes to read; what a
token costs does not depend on what they hold. The bound is a plain read of every weight, and of every key and value
that the token sees, once; that read is timed before and after each few tokens, since a machine's memory drifts.
Medians with the least and the largest.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import numpy as np
from peers_probe import REST_S, ReadProbe

from gemmary import _core
from gemmary.batch import Batch, Chunk
from gemmary.bench.measure import Spread
from gemmary.checkpoints import Checkpoint, open_checkpoint
from gemmary.checkpoints.hub import resolve
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.engines.native import NativeEngine
from gemmary.engines.trace import TraceOps, compile_trace
from gemmary.errors import GemmaryError

KV_DTYPES = ("bfloat16", "int8")
CHUNK = 512


def fill(engine: NativeEngine, cache: Any, length: int) -> None:
    """Random keys and values in every layer for `length` tokens, each of which sees itself alone: quick."""
    config = engine.config
    rng = np.random.default_rng(0)
    ops = TraceOps()
    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    q, k, v = (ops.value("T", count * config.head_dim, count) for count in heads)
    out = q
    for layer in range(config.num_layers):
        out, _ = ops.attention(q, k, v, None, layer, 0, config.head_dim**-0.5, None)
    program = compile_trace(_core, _core.Runtime(engine.info.threads, None), ops, [q, k, v, out], 1)
    values = [rng.standard_normal((CHUNK, count * config.head_dim)).astype(np.float32) for count in (*heads, heads[0])]
    for start in range(0, length, CHUNK):
        positions = np.arange(start, min(start + CHUNK, length), dtype=np.int32)
        count = len(positions)
        visible = [np.stack([positions, positions], 1)]
        sequences, outputs = np.array([[0, count]], np.int32), np.zeros(0, np.int32)
        arrays = [array[:count] for array in values]
        program.run(np.zeros(count, np.int32), positions, visible, outputs, sequences, [cache], arrays)


def kv_bytes(config: Config, tokens: int, kv_dtype: str) -> float:
    """Of the keys and values that the last of `tokens` sees, an int8's scales among them."""
    seen = [min(tokens, config.window(kind) or tokens) for kind in config.layer_types]
    return float(_core.KvCache.bytes_of(seen, config.num_kv_heads, config.head_dim, tokens, kv_dtype))


def measure(checkpoint: Checkpoint, kv_dtype: str, options: argparse.Namespace, probe: ReadProbe) -> None:
    engine: Any = open_engine(
        "native", checkpoint.config, checkpoint.lookup, threads=options.threads, kv_dtype=kv_dtype
    )
    cache = engine.new_cache(options.context + CHUNK)
    fill(engine, cache, options.context - options.tokens)
    weights = sum(checkpoint.lookup(name).nbytes for name in checkpoint.names())
    keys = kv_bytes(checkpoint.config, options.context, kv_dtype)
    speeds, shares = [], []
    for _ in range(options.repeat + 1):
        before = probe()
        time.sleep(REST_S)
        begin = time.perf_counter()
        for position in range(options.context - options.tokens, options.context):
            engine.step(Batch.of(engine.config, [Chunk([position], position)]), [cache])
        seconds = (time.perf_counter() - begin) / options.tokens
        cache.truncate(options.context - options.tokens)
        speeds.append(1 / seconds)
        shares.append((weights + keys) / seconds / 1e9 / ((before + probe()) / 2))
    speed, share = Spread.of(speeds[1:]), Spread.of(shares[1:])  # the first warms up
    print(
        f"{kv_dtype:8} {options.context:,} tokens of context: {speed.median:.1f} ({speed.min:.1f} … {speed.max:.1f}) "
        f"tokens/s, {share.median:.0%} ({share.min:.0%} … {share.max:.0%}) of the bound; "
        f"weights {weights / 1e9:.3f} GB, keys and values {keys / 1e9:.3f} GB",
        flush=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:gemma-2-2b:int4", help="a name, random:NAME, a folder or a file")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="only this one (default: both)")
    parser.add_argument("--tokens", type=int, default=8, help="decoded in one round")
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=_core.available_processors())
    return parser.parse_args()


def main() -> int:
    options = parse()
    try:
        checkpoint = open_checkpoint(resolve(options.model))
        probe = ReadProbe(options.threads)
        for kv_dtype in [options.kv_dtype] if options.kv_dtype else KV_DTYPES:
            measure(checkpoint, kv_dtype, options, probe)
    except GemmaryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
