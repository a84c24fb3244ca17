"""A training step of Gemmary beside one of transformers with peft on this machine: the same shape, batch and adapter.

    python benchmarks/tuning.py --batch-size 4 --sequence-length 512                            # the starter's shape
    python benchmarks/tuning.py --model random:gemma-2-2b --restart --peer-checkpointing
    python benchmarks/tuning.py --model random:gemma-2-2b --restart --peer-checkpointing --method qlora
    python benchmarks/tuning.py --model random:gemma-2-9b --method qlora --sides gemmary --gradient-checkpointing

A step is forward, backward and AdamW on adapters of rank 16 on every linear layer; every token is scored. Sides are
`gemmary`, and `transformers` computing in float32 or bfloat16: a processor without bfloat16 instructions multiplies
several times as fast in float32. For qlora the base is int4 here and bitsandbytes' NF4 there (an interpreter that has
it: --python transformers=...). Weights are random; transformers reads them from a folder in --cache.

Each side has a process of its own and the same number of threads, and they take turns, a step each, on other tokens
every round; the first step of a process, on one short document, is not counted. With --restart a process lasts for one
round, for models that do not fit into memory side by side. Right before each step the process times PyTorch's product
of large matrices, which is the ceiling; the operations that the step cannot do without (forward, and the gradients of
activations) are given as a share of it, in float32 or, where that is faster, in bfloat16. Memory is the largest
resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asked import Asked
from peers_files import prepare
from peers_report import spread

from gemmary.checkpoints import open_checkpoint
from gemmary.checkpoints.hub import is_random, resolve
from gemmary.checkpoints.starter import cache_folder
from gemmary.errors import GemmaryError

CHILD = Path(__file__).with_name("tuning_child.py")
SHORT = 32
"""Tokens of the step that only warms up."""
SIDES = ("gemmary", "transformers:float32", "transformers:bfloat16")


@dataclass
class Side:
    """One side; its process while it has one; and what it answered."""

    name: str
    command: list[str]
    about: dict[str, Any] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    process: Asked | None = None

    def begin(self) -> None:
        self.process = Asked(self.name, self.command)
        self.about = self.process.ready

    def ask(self, **request: int) -> dict[str, Any]:
        assert self.process is not None
        return self.process.ask(**request)

    def end(self) -> None:
        if self.process is not None:
            self.process.end()
            self.process = None


def sides_of(options: argparse.Namespace) -> list[Side]:
    pythons = dict(pair.split("=", 1) for pair in options.python)
    sides = []
    for name in options.sides:
        kind, _, dtype = name.partition(":")
        if kind not in ("gemmary", "transformers") or dtype not in ("", "float32", "bfloat16"):
            raise GemmaryError(f"no side is called {name!r}: choose {', '.join(SIDES)}")
        checkpointing = options.gradient_checkpointing if kind == "gemmary" else options.peer_checkpointing
        if kind == "transformers":
            stored = "bfloat16" if is_random(options.model) else "float32"
            print(f"preparing the weights of {name}", file=sys.stderr)
            path = prepare(kind, stored, options.model, options.cache, sys.executable).path
        elif is_random(options.model):
            path = Path(options.model + (":int4" if options.method == "qlora" else ""))
        else:
            path = resolve(options.model)
        child = [pythons.get(kind, sys.executable), str(CHILD), kind, str(path)]
        child += [dtype or ("auto" if kind == "gemmary" else "float32"), options.method]
        sides.append(Side(name, [*child, "on" if checkpointing else "off", str(options.threads)]))
    return sides


def measure(sides: list[Side], options: argparse.Namespace) -> None:
    """Fills the sides' `answers`: steps of one round after those of the one before."""
    shape = {"batch_size": options.batch_size, "sequence_length": options.sequence_length}
    for number in range(options.repeat):
        for side in sides:
            if side.process is None:
                side.begin()
                side.ask(seed=1000 + number, batch_size=1, sequence_length=min(SHORT, options.sequence_length))
            side.answers.append(side.ask(seed=number, **shape))
            if options.restart:
                side.end()


def row_of(side: Side, options: argparse.Namespace) -> dict[str, Any]:
    from gemmary.tune.device import training_flops

    config = open_checkpoint(resolve(options.model)).config
    tokens = options.batch_size * options.sequence_length
    flops = training_flops(config, tokens, tokens - options.batch_size, full=False)
    fastest = [max(answer["float32"], answer["bfloat16"]) for answer in side.answers]
    return {
        "side": side.name,
        **side.about,
        "tokens_per_s": spread(tokens / answer["step_s"] for answer in side.answers),
        "step_s": spread(answer["step_s"] for answer in side.answers),
        "peak_bytes": max(answer["peak_bytes"] for answer in side.answers),
        "gflops_needed": flops / 1e9,
        "ceiling_float32": spread(answer["float32"] / 1e9 for answer in side.answers),
        "ceiling_bfloat16": spread(answer["bfloat16"] / 1e9 for answer in side.answers),
        "share": spread(flops / a["step_s"] / top for a, top in zip(side.answers, fastest, strict=True)),
        "loss": statistics.fmean(answer["loss"] for answer in side.answers),
    }


def print_rows(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(
        f"{options.model}, {options.method}, {options.batch_size} x {options.sequence_length} tokens, "
        f"{options.threads} threads, {options.repeat} rounds, {platform.processor() or platform.machine()}"
    )
    for row in rows:
        speed, share, step = row["tokens_per_s"], row["share"], row["step_s"]["median"]
        tops = [row[f"ceiling_{dtype}"]["median"] for dtype in ("float32", "bfloat16")]
        print(f"{row['name']}, torch {row['torch']}: peak {row['peak_bytes'] / 1e9:.2f} GB, loss {row['loss']:.3f}")
        print(f"    {speed['median']:.1f} tokens/s ({speed['min']:.1f} to {speed['max']:.1f}), {step:.2f} s a step")
        print(
            f"    {share['median']:.0%} of the ceiling ({share['min']:.0%} to {share['max']:.0%}), which was "
            f"{tops[0]:.0f} GFLOP/s in float32 and {tops[1]:.0f} in bfloat16"
        )
    first = rows[0]
    for row in rows[1:]:
        times = first["tokens_per_s"]["median"] / row["tokens_per_s"]["median"]
        memory = first["peak_bytes"] / row["peak_bytes"]
        print(f"{first['side']} / {row['side']}: {times:.2f} x the tokens/s, {memory:.2f} x the memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="random:gemma-3-270m", help="random:NAME of the zoo, or a path")
    parser.add_argument("--method", choices=("lora", "qlora"), default="lora")
    parser.add_argument("--sides", nargs="+", default=SIDES, metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--python", nargs="+", default=[], metavar="KIND=PATH", help="interpreters of sides")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="Gemmary's")
    parser.add_argument("--peer-checkpointing", action="store_true", help="that of transformers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--restart", action="store_true", help="a new process for each round")
    parser.add_argument("--cache", type=Path, default=cache_folder() / "benchmarks")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sides: list[Side] = []
    try:
        sides = sides_of(options)
        measure(sides, options)
        rows = [row_of(side, options) for side in sides]
    except GemmaryError as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        for side in sides:
            side.end()
    if options.json:
        print(json.dumps({"options": vars(options), "rows": rows}, default=str))
    else:
        print_rows(rows, options)


if __name__ == "__main__":
    main()
