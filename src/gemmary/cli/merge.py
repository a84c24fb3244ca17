"""`gemmary merge`: an adapter into the weights of its model."""

from __future__ import annotations

import argparse
from typing import Any

from gemmary.cli import console, parser, verify
from gemmary.cli.quantize import METHOD_HELP, TEXT_HELP
from gemmary.memory import size

FORMATS = (
    "safetensors: a Hugging Face folder (default); packed: a folder for the native engine (default with --quant); "
    "gguf: for llama.cpp and its kin (default for a .gguf file)"
)


def add(commands: Any) -> None:
    details = (
        "The sum is formed in float32 from unquantized weights, then stored or quantized once, then compared with base "
        "and adapter: one that changed the answers beyond the limits of `verify` is not kept."
    )
    command = parser.command(commands, "merge", run, "put an adapter into the weights of its model", details)
    command.add_argument("model", metavar="MODEL", help=parser.MODEL_HELP)
    command.add_argument("adapter", metavar="ADAPTER", help="the folder of a LoRA adapter of MODEL, in PEFT's format")
    command.add_argument(
        "--out", metavar="PATH", required=True, help="a new folder, or a .gguf file (which is replaced)"
    )
    command.add_argument("--format", choices=("safetensors", "packed", "gguf"), help=FORMATS)
    command.add_argument("--quant", choices=parser.QUANTS, help="quantize the merged weights (packed and gguf)")
    command.add_argument("--method", choices=("rtn", "gptq"), default="rtn", help=METHOD_HELP)
    command.add_argument("--text", metavar="FILE", help=TEXT_HELP)
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of weights that are not quantized (default: as stored, bfloat16 where MODEL is quantized)",
    )
    command.add_argument("--threads", type=parser.count, metavar="N", help="threads (default: one for each core)")


def run(arguments: argparse.Namespace) -> None:
    from gemmary.tune.merge import merge

    with console.bar() as progress:
        merged = merge(
            arguments.model,
            arguments.adapter,
            arguments.out,
            format=arguments.format,
            dtype=arguments.dtype,
            quant=arguments.quant,
            method=arguments.method,
            text=verify.read_text(arguments.text) if arguments.text else None,
            threads=arguments.threads,
            progress=progress,
        )
    for notice in merged.notices:
        console.note(f"note: {notice}")
    verify.write(merged.report, taps=False)
    path = merged.path
    written = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    print(f"{path}: {size(sum(file.stat().st_size for file in written))} of {merged.format}, {merged.dtype}")
