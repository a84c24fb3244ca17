"""What each format and method of `gemmary quantize` costs a model, as the table of docs/quantization.md.

    python benchmarks/quantization.py [MODEL] [--only NAME …] [--threads 2] [--json]

Every row is a quantization of MODEL (default: the starter) into a folder that is removed again, measured against MODEL
over the built-in text of `gemmary verify`; calibration reads the built-in calibration text. Bits count the scales. A
table's line is printed as soon as it is known. CPU seconds are of the whole process: quantizing and measuring.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

ROWS: dict[str, dict[str, Any]] = {
    "int8": {"to": "int8"},
    "Q5_0": {"to": "Q5_0"},
    "Q5_0-gptq": {"to": "Q5_0", "method": "gptq"},
    "Q4_1": {"to": "Q4_1"},
    "Q4_1-gptq": {"to": "Q4_1", "method": "gptq"},
    "mix5-gptq": {"bits": 5.0, "method": "gptq"},
    "Q6_K": {"to": "Q6_K"},
    "Q4_K_M": {"to": "Q4_K_M"},
    "Q4_K": {"to": "Q4_K"},
    "int4": {"to": "int4"},
    "int4-gptq": {"to": "int4", "method": "gptq"},
    "int4-gptq-embed8": {"to": "int4", "method": "gptq", "embed": "int8"},
}
"""Name of a row -> the options of `gemmary.calibrate.quantize.quantize`."""

HEADER = (
    "| row | method | bits a weight | of the table | of the others | mean KL (nats) | top-1 | perplexity | CPU s |",
    "|---|---|---:|---:|---:|---:|---:|---:|---:|",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="starter")
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    arguments = parser.parse_args()
    source_shown = arguments.json
    if not arguments.json:
        print(*HEADER, sep="\n", flush=True)
    for name in arguments.only:
        row = measure(arguments.model, ROWS[name], arguments.threads)
        if not source_shown:
            perplexity = (row["measured"] or {}).get("perplexity_source")
            print(f"| (source) | | | | | 0 | 1 | {shown(perplexity, '.2f')} | |", flush=True)
            source_shown = True
        print(json.dumps({"row": name, **row}) if arguments.json else line(name, row), flush=True)


def measure(model: str, options: dict[str, Any], threads: int | None) -> dict[str, Any]:
    """The quality that a quantization states of itself, and the CPU seconds that it took."""
    from gemmary.calibrate.quantize import quantize

    before = cpu_seconds()
    with tempfile.TemporaryDirectory() as folder:
        done = quantize(model, Path(folder) / "made", threads=threads, **options)
    return {**done.quality.to_dict(), "cpu_seconds": cpu_seconds() - before}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def line(name: str, row: dict[str, Any]) -> str:
    bits, measured = row["bits_per_weight"], row["measured"] or {}
    cells = [name, row["method"], *(f"{bits[part]:.2f}" for part in ("all", "embed", "others"))]
    cells += [shown(measured.get("mean_kl"), ".4f"), shown(measured.get("top1_agreement"), ".1%")]
    return "| " + " | ".join([*cells, shown(measured.get("perplexity"), ".2f"), f"{row['cpu_seconds']:.0f}"]) + " |"


def shown(value: float | None, format: str) -> str:
    return "–" if value is None else f"{value:{format}}"


if __name__ == "__main__":
    main()
