"""Gemmary beside llama.cpp on the same file: prefill and decode, alternating, one process each.

    pip install llama-cpp-python        # builds llama.cpp for this machine, for minutes
    python benchmarks/peers.py [--model starter] [--prefill 512] [--decode 128] [--repeat 7] [--threads 2] [--json]

Every round asks each engine in turn for a prompt and then for single tokens after it; between rounds the others sleep.
Both are timed at the same place: from token ids to the last row of logits in memory, no sampling. A first round warms
up and is not counted. Printed: the median, the least and the largest of each, peak memory, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from gemmary.bench import peak_rss_bytes, prompt_ids


class Runner(Protocol):
    """One engine with one model loaded."""

    name: str

    def reset(self) -> None: ...

    def feed(self, ids: Sequence[int]) -> None:
        """Computes the next tokens of the sequence, up to the logits after the last of them."""
        ...


class Gemmary:
    def __init__(self, path: str, context: int, threads: int) -> None:
        from gemmary import __version__
        from gemmary.checkpoints import open_checkpoint
        from gemmary.engines import open_engine

        checkpoint = open_checkpoint(Path(path))
        self.engine = open_engine("native", checkpoint.config, checkpoint.lookup, threads=threads)
        self.name = f"Gemmary {__version__} ({self.engine.info.device})"
        self.context = context
        self.reset()

    def reset(self) -> None:
        self.cache = self.engine.new_cache(self.context)
        self.length = 0

    def feed(self, ids: Sequence[int]) -> None:
        from gemmary.batch import Batch, Chunk

        for start in range(0, len(ids), 512):
            piece = ids[start : start + 512]
            outputs = "last" if start + 512 >= len(ids) else "none"
            batch = Batch.of(self.engine.config, [Chunk(piece, self.length, outputs=outputs)])
            self.engine.step(batch, [self.cache])
            self.length += len(piece)


class LlamaCpp:
    def __init__(self, path: str, context: int, threads: int) -> None:
        from llama_cpp import Llama

        self.llama = Llama(
            path, n_ctx=context, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.name = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"

    def reset(self) -> None:
        self.llama.reset()

    def feed(self, ids: Sequence[int]) -> None:
        self.llama.eval(ids)


RUNNERS: dict[str, Callable[[str, int, int], Runner]] = {"gemmary": Gemmary, "llama.cpp": LlamaCpp}


def serve(peer: str, path: str, context: int, threads: int) -> None:
    """A child: loads, says so, then answers each request line with seconds."""
    begin = time.perf_counter()
    runner = RUNNERS[peer](path, context, threads)
    answer = sys.stdout
    print(json.dumps({"name": runner.name, "load_s": time.perf_counter() - begin}), file=answer, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompt, text = request["prompt"], request["text"]
        runner.reset()
        begin = time.perf_counter()
        runner.feed(prompt)
        middle = time.perf_counter()
        for token in text:
            runner.feed([token])
        end = time.perf_counter()
        result = {"prefill_s": middle - begin, "decode_s": end - middle, "peak_rss_bytes": peak_rss_bytes()}
        print(json.dumps(result), file=answer, flush=True)


class Child:
    """A peer in a process of its own, asleep unless asked."""

    def __init__(self, peer: str, path: str, context: int, threads: int) -> None:
        self.peer = peer
        command = [sys.executable, __file__, "--serve", peer, "--model", path]
        command += ["--context", str(context), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()
        self.rounds: list[dict[str, float]] = []

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.peer} ended without an answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, prompt: Sequence[int], text: Sequence[int]) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"prompt": list(prompt), "text": list(text)}) + "\n")
        self.process.stdin.flush()
        return self._read()


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a name or a .gguf file")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--peers", nargs="+", default=list(RUNNERS), choices=list(RUNNERS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", choices=list(RUNNERS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.model, args.context, args.threads)

    import gemmary
    from gemmary.checkpoints.hub import resolve

    with gemmary.load(args.model, engine="native", threads=args.threads) as model:
        ids = prompt_ids(model, args.prefill + args.decode)
    path, context = str(resolve(args.model)), args.prefill + args.decode + 16
    children = [Child(peer, path, context, args.threads) for peer in args.peers]
    for number in range(args.repeat + 1):
        for child in children:
            answer = child.ask(ids[: args.prefill], ids[args.prefill :])
            if number:
                child.rounds.append(answer)

    table = [
        {
            **child.about,
            "prefill_tokens_per_s": spread([args.prefill / r["prefill_s"] for r in child.rounds]),
            "decode_tokens_per_s": spread([args.decode / r["decode_s"] for r in child.rounds]),
            "peak_rss_bytes": child.rounds[-1]["peak_rss_bytes"],
        }
        for child in children
    ]
    if args.json:
        print(json.dumps(table, indent=2))
        return
    print(f"{args.model}, {args.threads} threads, {args.repeat} rounds; tokens/s: median (least … largest)")
    for row in table:
        pre, dec = row["prefill_tokens_per_s"], row["decode_tokens_per_s"]
        print(
            f"{row['name']:48} prefill {args.prefill}: {pre['median']:7.1f} ({pre['min']:.1f} … {pre['max']:.1f})   "
            f"decode: {dec['median']:6.1f} ({dec['min']:.1f} … {dec['max']:.1f})   "
            f"load {row['load_s']:.2f} s   peak {row['peak_rss_bytes'] / 1e6:.0f} MB"
        )
    first = table[0]
    for row in table[1:]:
        ratios = [first[key]["median"] / row[key]["median"] for key in ("prefill_tokens_per_s", "decode_tokens_per_s")]
        print(f"{first['name']} / {row['name']}: prefill {ratios[0]:.2f} x, decode {ratios[1]:.2f} x")


if __name__ == "__main__":
    main()
