"""How long a model takes from the process's start to its first token, and what memory each stage of that takes.

    python benchmarks/load.py [MODEL] [--kept] [--against FILE.gguf] [--peers NAME …] [--threads 2] [--repeat 7]
                              [--json]

Every run is a process of its own, so imports count. A first run of each warms the page cache (and compiles Python's
modules) and is not counted; the rest alternate. Medians of each stage: seconds, the memory that the process has after
it, how much of that is its own rather than mapped from files, how much of its own is on 2 MiB pages, and the most that
it had at once. --kept: also from a packed copy, which is kept for that in GEMMARY_HOME (`gemmary rm --packed` deletes
it). Linux only (it reads /proc). Where llama-cpp-python is installed, llama.cpp loads --against (default:
MODEL, where that is GGUF) in the same way.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROMPT = "The capital of France is"


class Stages:
    """Seconds and memory of one stage after another."""

    def __init__(self, started: float) -> None:
        self._last = started
        self.rows: list[dict[str, Any]] = []

    def end(self, name: str) -> None:
        now = time.monotonic()
        status = _kilobytes("/proc/self/status")
        memory = _kilobytes("/proc/self/smaps_rollup")
        self.rows.append({
            "stage": name,
            "seconds": now - self._last,
            "rss": memory["Rss:"],
            "own": memory["Anonymous:"],
            "huge_pages": memory["AnonHugePages:"],
            "peak": status["VmHWM:"],
        })  # fmt: skip
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        self._last = time.monotonic()


def _kilobytes(path: str) -> dict[str, int]:
    """Bytes by name, from the lines of a file of /proc that end in kB."""
    rows = [line.split() for line in Path(path).read_text().splitlines()]
    return {row[0]: int(row[1]) * 1024 for row in rows if row[-1] == "kB"}


def run_gemmary(stages: Stages, model: str, threads: int, is_kept: bool = False) -> None:
    import gemmary.api
    from gemmary.checkpoints import kept, open_checkpoint
    from gemmary.checkpoints.hub import resolve
    from gemmary.engines import native

    stages.end("start and imports")
    checkpoint = open_checkpoint(resolve(model))
    if is_kept:
        checkpoint = kept.copy_of(checkpoint, gemmary.__version__).open(checkpoint, [])
    stages.end("open the checkpoint")
    engine = native.NativeEngine(checkpoint.config, checkpoint.lookup, threads=threads)
    stages.end("weights")
    _ = checkpoint.tokenizer
    stages.end("tokenizer")
    gemmary.api.Model(checkpoint, engine).generate(PROMPT, max_tokens=1, temperature=0.0)
    stages.end("first token")


def run_kept(stages: Stages, model: str, threads: int) -> None:
    run_gemmary(stages, model, threads, is_kept=True)


def keep(stages: Stages, model: str, threads: int) -> None:
    """Makes what `run_kept` maps, unless it is there."""
    import gemmary

    loaded = gemmary.load(model, threads=threads)
    if loaded.packed_bytes:
        loaded.keep_packed()


def run_llama_cpp(stages: Stages, model: str, threads: int) -> None:
    from llama_cpp import Llama

    stages.end("start and imports")
    llama = Llama(model, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    stages.end("weights")
    llama.create_completion(PROMPT, max_tokens=1, temperature=0.0)
    stages.end("first token")


PEERS = ("Gemmary", "llama.cpp")
KEPT = "Gemmary, kept"
RUNNERS = {"Gemmary": run_gemmary, "llama.cpp": run_llama_cpp, KEPT: run_kept, "keep": keep}


def run(name: str, model: str, threads: int) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, model, "--threads", str(threads), "--child", name, str(time.monotonic())]
    # Modules are to be compiled once, in the first run, as they are in an installed package.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    rows: list[dict[str, Any]] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout
    )
    total = {key: max(row[key] for row in rows) for key in ("rss", "own", "huge_pages", "peak")}
    return [*rows, {"stage": "in all", "seconds": sum(row["seconds"] for row in rows), **total}]


def medians(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Stage by stage, the median of each figure."""
    return [
        {key: row[key] if key == "stage" else statistics.median(r[i][key] for r in runs) for key in row}
        for i, row in enumerate(runs[0])
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory from the process's start to the first token.")
    parser.add_argument("model", nargs="?", default="starter")
    parser.add_argument(
        "--against", metavar="FILE.gguf", help="what llama.cpp loads (default: MODEL, where it is GGUF)"
    )
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--kept", action="store_true", help="also from a packed copy, as later starts find one")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        name, started = arguments.child
        stages = Stages(float(started))
        RUNNERS[name](stages, arguments.model, arguments.threads)
        print(json.dumps(stages.rows))
        return

    from gemmary.checkpoints.hub import resolve

    models = {"Gemmary": arguments.model} if "Gemmary" in arguments.peers else {}
    if arguments.kept:
        command = [sys.executable, __file__, arguments.model, "--child", "keep", "0"]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        models[KEPT] = arguments.model
    against = arguments.against or str(resolve(arguments.model))
    if "llama.cpp" in arguments.peers and against.endswith(".gguf") and find_spec("llama_cpp") is not None:
        models["llama.cpp"] = against
    rounds = [{n: run(n, model, arguments.threads) for n, model in models.items()} for _ in range(arguments.repeat + 1)]
    found = {name: medians([each[name] for each in rounds[1:]]) for name in models}
    if arguments.json:
        print(json.dumps(found))
        return
    for name, rows in found.items():
        print(f"{name}: {models[name]}, {arguments.threads} threads, medians of {arguments.repeat}")
        print(f"{'':24}{'seconds':>9}{'MB after':>10}{'own':>7}{'huge':>7}{'MB peak':>9}")
        for row in rows:
            rss, own, huge, peak = (f"{row[key] / 1e6:.0f}" for key in ("rss", "own", "huge_pages", "peak"))
            print(f"{row['stage']:24}{row['seconds']:9.3f}{rss:>10}{own:>7}{huge:>7}{peak:>9}")


if __name__ == "__main__":
    main()
