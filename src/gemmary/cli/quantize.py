"""`gemmary quantize`: a model's weights in fewer bits, and what that cost."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemmary.cli import console, parser, verify
from gemmary.errors import GemmaryError
from gemmary.memory import size

FORMATS = ("int8", "int4", "Q8_0", "Q6_K", "Q5_1", "Q5_0", "Q4_1", "Q4_K_M", "Q4_K", "Q4_0")
METHOD_HELP = (
    "rtn: each weight to the nearest (default); gptq: calibrated, nearer to the original at the same size: a text runs "
    "through the model and each matrix's errors are made up for by its other weights"
)
TO_HELP = (
    "of every matrix (default: int4, which is Q4_0); Q4_K_M is llama.cpp's mix of Q4_K and Q6_K; where rows do not "
    "divide into a K type's blocks of 256, Q5_0 stands for Q4_K and Q8_0 for Q6_K, which is said"
)
TEXT_HELP = "calibrate on this text (default: a built-in one)"


def add(commands: Any) -> None:
    details = (
        "OUT is a packed folder, which the native engine maps as it is and `gemmary convert` makes GGUF of; where its "
        "name ends in .gguf, a GGUF file for llama.cpp and its kin; or, with --format compressed-tensors, a folder "
        "that transformers loads, of layers in int8 or int4 and all else as it was. It has its own quality.json (a "
        "file has it beside it), measured against MODEL, which `gemmary show` prints. A killed run goes on."
    )
    command = parser.command(commands, "quantize", run, "write a model in fewer bits, and measure it", details)
    command.add_argument("model", metavar="MODEL", help=parser.MODEL_HELP)
    command.add_argument("--out", metavar="OUT", required=True, help="a new folder, or a new .gguf file")
    command.add_argument(
        "--format",
        choices=("packed", "gguf", "compressed-tensors"),
        help="of OUT (default: gguf for a .gguf file, else packed)",
    )
    command.add_argument("--to", choices=FORMATS, default="int4", help=TO_HELP)
    command.add_argument(
        "--embed",
        choices=[name for name in FORMATS if name != "Q4_K_M"],
        help="of the embedding table, the head too (default: as --to)",
    )
    command.add_argument(
        "--bits",
        type=_bits,
        metavar="X",
        help="instead of --to: a mix of at most X bits a weight, finest where rounding was measured to cost most "
        "(with compressed-tensors: of int4 and int8, in the layers)",
    )
    command.add_argument("--method", choices=("rtn", "gptq"), default="rtn", help=METHOD_HELP)
    command.add_argument("--text", metavar="FILE", help=TEXT_HELP)
    command.add_argument("--threads", type=parser.count, metavar="N", help="threads (default: one for each core)")


def run(arguments: argparse.Namespace) -> None:
    from gemmary.calibrate.quality import lines
    from gemmary.calibrate.quantize import quantize

    if arguments.text and arguments.method == "rtn" and arguments.bits is None:
        raise GemmaryError("rtn reads no text: --text goes with --method gptq, or with --bits")
    with console.bar() as progress:
        done = quantize(
            arguments.model,
            arguments.out,
            format=arguments.format,
            to=arguments.to,
            method=arguments.method,
            embed=arguments.embed,
            bits=arguments.bits,
            text=verify.read_text(arguments.text) if arguments.text else None,
            text_name=Path(arguments.text).name if arguments.text else "",
            threads=arguments.threads,
            progress=progress,
        )
    for notice in done.notices:
        console.note(f"note: {notice}")
    console.facts(lines(done.quality.to_dict()))
    written = sum(file.stat().st_size for file in [done.path, *done.path.rglob("*")] if file.is_file())
    print(f"{done.path}: {size(written)} of {done.format}")


def _bits(text: str) -> float:
    """Bits a weight, as a type of argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bits from 0 to 32")
    return value
