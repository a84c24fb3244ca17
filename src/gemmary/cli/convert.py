"""`gemmary convert`: the same weights in another file format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gemmary.checkpoints import hub
from gemmary.cli import console, parser
from gemmary.memory import size

DTYPES = ("float32", "bfloat16", "float16", "int8", "int4", "Q4_K", "Q6_K", "Q4_K_M")
CHOICES = ("safetensors", "compressed-tensors", "gguf", "packed", "big_vision", "orbax")
FORMATS = (
    "safetensors: a Hugging Face folder (default); compressed-tensors: one with its layers in int8 or int4, which "
    "transformers loads; gguf: for llama.cpp and its kin (default for a .gguf file); packed: "
    "a folder for the native engine, which maps it into memory as it is, with nothing to read or copy at loading; "
    "big_vision: PaliGemma's original layout (default for a .npz file); orbax: DeepMind's layout of Gemma 1, 2 and 3"
)


def add(commands: Any) -> None:
    details = (
        "The result is checked before it gets its name: every weight against the source's, and the logits of two "
        "prompts. One that says something else is thrown away."
    )
    command = parser.command(commands, "convert", run, "write a model in another format", details)
    command.add_argument("source", metavar="SRC", help=parser.MODEL_HELP)
    command.add_argument("target", metavar="DST", help="a new folder, or a .gguf or .npz file (which is replaced)")
    command.add_argument("--format", choices=CHOICES, help=FORMATS)
    command.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the weights (default: as stored); int8 and int4: gguf, packed, compressed-tensors; Q4_K, Q6_K and the "
        "mix of both, Q4_K_M: gguf, packed",
    )
    command.add_argument(
        "--allow-pickle",
        action="store_true",
        help="read a .ckpt of gemma_pytorch: a pickle, which runs in a process of its own that only loads weights",
    )
    command.add_argument(
        "--image-size", type=int, metavar="PIXELS", help="of a model that sees pictures: positions are resampled"
    )


def run(arguments: argparse.Namespace) -> None:
    from gemmary.checkpoints import open_checkpoint
    from gemmary.conversion import convert

    target = Path(arguments.target).expanduser()
    chosen = arguments.format or {".gguf": "gguf", ".npz": "big_vision"}.get(target.suffix, "safetensors")
    checkpoint = open_checkpoint(hub.resolve(arguments.source), pickles=arguments.allow_pickle)
    if arguments.image_size is not None:
        from gemmary.checkpoints.image_size import with_image_size

        checkpoint = with_image_size(checkpoint, arguments.image_size)
    with console.bar(is_bytes=True) as progress:
        notices, checked = convert(checkpoint, target, format=chosen, dtype=arguments.dtype, progress=progress)
    for notice in [*checkpoint.notices, *notices]:
        console.note(f"note: {notice}")
    console.note(str(checked))
    written = [target] if target.is_file() else [file for file in target.rglob("*") if file.is_file()]
    print(f"{target}: {size(sum(file.stat().st_size for file in written))} of {chosen}")
