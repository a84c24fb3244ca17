"""Every size of the series at its real shape, with random weights: memory and speed beside what the planner foretells.

    python benchmarks/every_size.py --out sizes.jsonl                    every size in 4 bits
    python benchmarks/every_size.py --only gemma-2-2b --quant int8
    python benchmarks/every_size.py --out sizes.jsonl --quant int4 int8 bfloat16
    python benchmarks/every_size.py --out sizes.jsonl --table            what was measured, beside today's planner

Each row has a process of its own: it loads `random:NAME`, sees a picture where the model sees, reads a prompt of 128
tokens and decodes 32, twice. The first round warms up, and the peak of memory is that of the process after it; the
second is timed, between looks at the machine's ceilings, from whose medians the plan's speeds for just that prompt and
those tokens are. A row that does not fit into
memory is left out and said so. `--out` keeps the rows as lines of JSON, and what stands there is not measured again.
`--table` prints docs/sizes.md's table of them, and the shares of `gemmary.plan.speed` that each row would have exact.

Bytes on disk are those of a folder packed for the native engine (`gemmary convert --format packed`). The share of the
bandwidth bound is what a token reads (weights without the tower, and keys) over the read bandwidth, by the time that it
took. The copies of half an int8 head that long greedy texts bring are left out: they come where memory has room only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gemmary import zoo
from gemmary.errors import GemmaryError

SIZES = (
    "gemma-2b",
    "gemma-7b",
    "gemma-2-2b",
    "gemma-2-9b",
    "gemma-2-27b",
    "paligemma-3b-pt-224",
    "paligemma-3b-pt-448",
    "paligemma2-3b-pt-224",
    "paligemma2-3b-pt-448",
    "paligemma2-10b-pt-224",
    "paligemma2-10b-pt-448",
    "paligemma2-28b-pt-224",
    "paligemma2-28b-pt-448",
    "gemma-3-270m",
    "gemma-3-1b-pt",
    "gemma-3-4b-pt",
    "gemma-3-12b-pt",
    "gemma-3-27b-pt",
)
QUANTS = ("int4", "int8", "bfloat16")
PREFILL, DECODE = 128, 32
LOOKS = 3


def measure(name: str, quant: str, prefill: int, decode: int, threads: int | None) -> dict[str, Any]:
    """One row: the plan, and what a model of this process takes and does."""
    import gemmary
    from gemmary.bench import peak_rss_bytes
    from gemmary.bench.machine import Looks, Machine
    from gemmary.checkpoints.hub import RANDOM
    from gemmary.plan import make_plan, subject, this_cpu
    from gemmary.plan.ceilings import speed_of

    held = None if quant == "bfloat16" else quant
    planned, device = subject(RANDOM + name + (f":{held}" if held else "")), this_cpu(threads)
    config = planned.config
    context = (config.vision.num_tokens if config.vision else 0) + prefill + decode + 1
    needs = make_plan(planned, context=context, device=device)
    if not needs.fits:
        return {"left_out": f"{needs.line}, and {(needs.available_bytes or 0) / 1e9:.1f} GB can be had"}
    model = gemmary.random_model(name, held, context=context, threads=threads)
    model.engine.bound_head_after = None
    _round(model, prefill, decode, 0)
    peak = peak_rss_bytes()
    looks = Looks(Machine(threads))
    _look(looks)
    stats = _round(model, prefill, decode, 1)
    _look(looks)
    speed = speed_of(looks.ceilings())
    plan = make_plan(planned, context=context, device=device)
    tower = sum(_bytes_of(planned, tensor) for tensor in _tower(config))
    read = plan.weights_bytes - tower + model.engine.cache_bytes(context - decode // 2)
    return {
        "disk_bytes": sum(model.info.formats.values()),
        "peak_bytes": peak,
        "prefill_tokens_per_s": stats.prefill_tokens_per_s,
        "decode_tokens_per_s": stats.decode_tokens_per_s,
        "bandwidth_share": read * stats.decode_tokens_per_s / speed.read,
        "read_bytes_per_s": speed.read,
        "int8_operations_per_s": speed.int8,
        "float32_operations_per_s": speed.float32,
        "prefill": prefill,
        "decode": decode,
        "context": context,
        "threads": model.info.threads,
        "plan": plan.as_dict(),
    }


def _look(looks: Any) -> None:
    for _ in range(LOOKS):
        looks.at_memory()
        looks.at_arithmetic()


def _round(model: Any, prefill: int, decode: int, seed: int) -> Any:
    """What a prompt, after a picture where the model sees, and its answer took. Another seed is another prompt: one
    that was read before would not be read again."""
    import numpy as np

    config, random = model.config, np.random.default_rng(seed)
    options: dict[str, Any] = {"max_tokens": decode + 1, "temperature": 0.0, "ignore_eos": True, "speculate": False}
    if config.vision is not None:
        side = config.vision.image_size
        picture = random.integers(0, 256, (side, side, 3), dtype=np.uint8)
        model.generate("", image=picture, **{**options, "max_tokens": 1})
    body = random.integers(1000, 200_000, prefill - 1).tolist()
    return model.generate([2, *body], **options).stats


def _tower(config: Any) -> list[Any]:
    from gemmary.checkpoints.tensors import tensors

    return [tensor for tensor in tensors(config) if tensor.name.startswith("vision.")]


def _bytes_of(planned: Any, tensor: Any) -> int:
    from gemmary.engines.native_memory import packed_bytes

    return packed_bytes(tensor, planned.formats[tensor.name])


@dataclass(frozen=True)
class Foretold:
    """What today's planner says of a row, under the ceilings that were measured beside it."""

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    kind: str
    """Of the products of most layers, as in `PRODUCT_SHARES`."""
    product_share: float
    """That of `PRODUCT_SHARES` that would have made it right of the prompt."""
    read_share: float
    """The `READ_SHARE` that would have made it right of decoding."""


def foretold(row: dict[str, Any]) -> Foretold:
    from gemmary.checkpoints.hub import RANDOM
    from gemmary.plan import MachineSpeed, speed, subject
    from gemmary.plan.make import kv_type

    model = subject(RANDOM + row["model"] + ("" if row["quant"] == "bfloat16" else f":{row['quant']}"))
    config, formats = model.config, model.formats
    ceilings = (row[f"{name}_per_s"] for name in ("read_bytes", "int8_operations", "float32_operations"))
    machine = MachineSpeed("", "", row["threads"], *ceilings)
    before, keys = row["prefill"] + row["decode"] // 2, kv_type("auto", formats)
    prompt = speed.prefill_seconds(config, formats, row["prefill"], machine)
    token = speed.decode_seconds(config, formats, before, keys, machine)
    kind = speed.kind_of(formats["layers.0.gate"])
    return Foretold(
        speed.prefill_speed(config, formats, row["prefill"], machine),
        speed.decode_speed(config, formats, 2 * before, keys, machine),
        kind,
        speed.PRODUCT_SHARES[kind] * prompt.bound / (row["prefill"] / row["prefill_tokens_per_s"] - prompt.rest),
        token.bound / (1 / row["decode_tokens_per_s"] - token.rest),
    )


def apart(measured: float, foretold: float) -> str:
    """How far what was measured is from the plan."""
    return f"{100 * (measured / foretold - 1):+.0f} %"


def line(row: dict[str, Any]) -> str:
    name = f"{row['model']} {row['quant']}"
    if "left_out" in row:
        return f"{name}: left out: {row['left_out']}"
    plan, peak, told = row["plan"], row["peak_bytes"], foretold(row)
    difference = (peak - plan["total_bytes"]) / 1e6
    return (
        f"{name}: {row['disk_bytes'] / 1e9:.2f} GB on disk · peak {peak / 1e9:.2f} GB, planned "
        f"{plan['total_bytes'] / 1e9:.2f} ({apart(peak, plan['total_bytes'])}, {difference:+.0f} MB) · prefill "
        f"{row['prefill_tokens_per_s']:.1f} tokens/s, planned {told.prefill_tokens_per_s:.1f} "
        f"({apart(row['prefill_tokens_per_s'], told.prefill_tokens_per_s)}) · decode "
        f"{row['decode_tokens_per_s']:.2f} tokens/s, planned {told.decode_tokens_per_s:.2f} "
        f"({apart(row['decode_tokens_per_s'], told.decode_tokens_per_s)}) · "
        f"{100 * row['bandwidth_share']:.0f} % of the bandwidth bound"
    )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown, and the shares that they would have exact."""
    lines = [
        "| model | on disk | peak memory | against the plan | prefill, tokens/s | | decode, tokens/s | | share of the "
        "bandwidth bound |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    told = [foretold(row) for row in rows]
    for row, said in zip(rows, told, strict=True):
        planned, peak, name = row["plan"]["total_bytes"], row["peak_bytes"], row["model"]
        cells = [name if row["quant"] == "int4" else f"{name} {row['quant']}", f"{row['disk_bytes'] / 1e9:.2f} GB"]
        cells += [f"{peak / 1e9:.2f} GB", f"{(peak - planned) / 1e6:+.0f} MB ({apart(peak, planned)})"]
        for what, digits in (("prefill_tokens_per_s", 1), ("decode_tokens_per_s", 2)):
            cells += [f"{row[what]:.{digits}f}", apart(row[what], getattr(said, what))]
        lines.append(f"| {' | '.join(cells)} | {100 * row['bandwidth_share']:.0f} % |")
    shares = {kind: [each.product_share for each in told if each.kind == kind] for kind in {each.kind for each in told}}
    for name, found in (*sorted(shares.items()), ("read_share", [said.read_share for said in told])):
        lines.append(f"{name}: median {median(found):.2f} ({min(found):.2f} … {max(found):.2f})")
    return "\n".join(lines)


def run(name: str, quant: str, options: argparse.Namespace) -> dict[str, Any]:
    """A row, measured in a process of its own; what ended it where it failed."""
    command = [sys.executable, __file__, "--child", name, quant]
    command += ["--prefill", str(options.prefill), "--decode", str(options.decode)]
    command += ["--threads", str(options.threads)] if options.threads else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"model": name, "quant": quant, "left_out": f"the process ended with {done.returncode}"}
    return {"model": name, "quant": quant, **json.loads(done.stdout.splitlines()[-1])}


def kept(path: Path | None) -> list[dict[str, Any]]:
    """The rows that were measured before; a last line that was cut off is none."""
    rows = []
    for text in path.read_text(encoding="utf-8").splitlines() if path is not None and path.is_file() else []:
        try:
            rows.append(json.loads(text))
        except ValueError:
            continue
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=list(SIZES), help="some rows of the zoo")
    parser.add_argument("--quant", nargs="+", choices=QUANTS, default=["int4"])
    parser.add_argument("--prefill", type=int, default=PREFILL)
    parser.add_argument("--decode", type=int, default=DECODE)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="lines of JSON, gone on with where they end")
    parser.add_argument("--table", action="store_true", help="measure nothing, show what --out holds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "QUANT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options.prefill, options.decode, options.threads)))
        return
    try:
        for name in options.only:
            zoo.get(name)
    except GemmaryError as error:
        parser.error(str(error))
    if options.table:
        measured = [row for row in kept(options.out) if "left_out" not in row]
        print(
            table(sorted(measured, key=lambda row: (QUANTS.index(row["quant"]), SIZES.index(row["model"]))))
            if measured
            else "no row was measured yet"
        )
        return
    known = {(row["model"], row["quant"]): row for row in kept(options.out) if "left_out" not in row}
    for name in options.only:
        for quant in options.quant:
            row = known.get((name, quant))
            if row is None:
                row = run(name, quant, options)
                if options.out is not None:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
            print(json.dumps(row) if options.json else line(row), flush=True)


if __name__ == "__main__":
    main()
