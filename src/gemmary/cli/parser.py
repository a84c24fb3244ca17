"""The parser of all commands, and the groups of flags that several of them take."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

import gemmary
from gemmary.engines import ENGINES, KV_DTYPES

Command = Callable[[argparse.Namespace], "int | None"]

MODEL_HELP = "`starter`, a short name (gemma-2-2b-it), a hub id (org/name), a folder, a .gguf file or random:NAME"
QUANTS = ("int8", "int4")
DTYPES = ("float32", "bfloat16")
EPILOG = "`gemmary COMMAND --help` explains a command. Models: `gemmary list --all`."
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens", "logprobs")


class Parser(argparse.ArgumentParser):
    """One line for a mistake, without the whole usage."""

    _is_inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, and flags may stand between what is not a flag: `run MODEL --max-tokens 9 PROMPT`."""
        if self._is_inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._is_inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_inside = False

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (`{self.prog} --help` explains)\n")


def build_parser() -> argparse.ArgumentParser:
    """Every command with its flags. A test freezes them, and docs/cli.md is made from them."""
    from gemmary.cli import bench, chat, convert, embed, merge, plan, pretrain, quantize, run, show, store, tune, verify

    parser = Parser(prog="gemmary", description="Run, look at, verify and measure the Gemma models.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"gemmary {gemmary.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    rows = (run, chat, store, show, plan, verify, bench, embed, convert, quantize, tune, merge, pretrain)
    for module in rows:
        module.add(commands)
    return parser


def command(commands: Any, name: str, run: Command, summary: str, details: str = "") -> argparse.ArgumentParser:
    """Adds a command whose `run` the parsed arguments carry."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}. {details}".strip(), allow_abbrev=False
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser, *, context: bool = True, optional: bool = False) -> Any:
    """The model and how it is loaded. Returns the group of the latter."""
    parser.add_argument("model", metavar="MODEL", nargs="?" if optional else None, help=MODEL_HELP)
    group = parser.add_argument_group("loading")
    group.add_argument("--engine", choices=ENGINES, default="native", help="what computes (default: native)")
    add_weights(group)
    if context:
        group.add_argument("--context", type=count, metavar="N", help="tokens that prompt and answer may have together")
    return group


def add_isa(group: Any) -> None:
    """Another instruction set than the best one."""
    group.add_argument(
        "--isa", metavar="NAME", help="scalar, avx2, avx512 or neon (default: the best that this machine has)"
    )


def add_draft(parser: argparse.ArgumentParser) -> None:
    """The small model that guesses."""
    parser.add_argument(
        "--draft",
        metavar="MODEL",
        help="a smaller model with the same tokenizer whose guesses are checked: the same text, sooner where they fit",
    )


def add_adapter(parser: argparse.ArgumentParser) -> None:
    """What was tuned."""
    parser.add_argument("--adapter", metavar="FOLDER", help="a LoRA adapter of the model, in PEFT's format")


def add_weights(group: Any) -> None:
    """Threads, and how numbers are held."""
    group.add_argument("--threads", type=count, metavar="N", help="threads (default: one for each core)")
    group.add_argument("--dtype", choices=DTYPES, help="numbers of weights that are not quantized (default: as stored)")
    group.add_argument("--quant", choices=QUANTS, help="quantize the weights while loading (default: as stored)")
    group.add_argument(
        "--kv-dtype",
        choices=KV_DTYPES,
        default="auto",
        help="keys and values (default: bfloat16, or as all weights are)",
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How tokens are chosen. A flag that is not given is absent, so that the defaults stand in one place."""
    group = parser.add_argument_group("sampling")

    def flag(name: str, kind: Callable[[str], Any], metavar: str, text: str) -> None:
        group.add_argument(name, type=kind, metavar=metavar, default=argparse.SUPPRESS, help=text)

    flag("--temperature", float, "T", "0: always the likeliest token, as about a picture (default: 1.0)")
    flag("--top-k", int, "K", "only the K likeliest tokens; 0: all (default: 64)")
    flag("--top-p", float, "P", "only the likeliest tokens that add up to P (default: 0.95)")
    flag("--min-p", float, "P", "only tokens at least P times as likely as the likeliest (default: 0)")
    flag("--repetition-penalty", float, "R", "above 1: less of what was said (default: 1.0)")
    flag("--seed", int, "S", "the same seed gives the same text (default: a fresh one)")
    flag(
        "--max-tokens",
        count,
        "N",
        "length of the answer at most (default: 128 after a raw prompt, 2048 in a chat, 512 about a picture)",
    )
    group.add_argument("--stop", action="append", metavar="TEXT", default=[], help="end before this text (repeatable)")
    group.add_argument(
        "--stop-id", action="append", type=int, metavar="ID", default=[], help="end at this token (repeatable)"
    )


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """What a prompt is about, and what becomes of the objects in it."""
    group = parser.add_argument_group("pictures")
    group.add_argument(
        "--image", action="append", metavar="FILE", help="what the prompt is about (repeatable): JPEG, PNG or WebP"
    )
    group.add_argument(
        "--images",
        metavar="FOLDER",
        help="ask about every picture of a folder, or frame of a video: a line of JSON each",
    )
    group.add_argument("--out", metavar="FILE", help="where those lines go; what it holds already is not asked again")
    group.add_argument("--every", type=count, metavar="N", help="every Nth frame of a video (default: all)")
    group.add_argument("--save", metavar="FILE", help="the picture with boxes and masks drawn over it")
    group.add_argument(
        "--merge-iou", type=float, metavar="R", help="leave out boxes that overlap a better one by R (0-1)"
    )
    group.add_argument("--resize", choices=("big_vision", "transformers"), help="whose way to the model's square")


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments of `Model.generate` that were given. Raises GemmaryError for a bad one."""
    from gemmary.generate import SamplingParams

    options = {name: getattr(arguments, name) for name in SAMPLING if hasattr(arguments, name)}
    if stops := [*arguments.stop, *arguments.stop_id]:
        options["stop"] = stops
    SamplingParams.of(options)  # type: ignore[arg-type]  # a mistake is told before a large model is loaded
    return options


def count(text: str) -> int:
    """A whole number of at least 1, as a type of argparse."""
    try:
        value = int(text.replace(",", "").replace("_", ""))
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value
