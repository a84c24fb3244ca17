"""`gemmary run`: one prompt, one answer."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gemmary.cli import console, loading, parser
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.api import Model
    from gemmary.generate import Completion

RAW_TOKENS = 128
"""A pretrained model seldom ends by itself."""
CHAT_TOKENS = 2048


def add(commands: Any) -> None:
    details = (
        "An instruction-tuned model gets the prompt in its chat template, any other as it is. Text goes to stdout, "
        "all else to stderr. About a picture, `detect cat ; dog` and `segment cat` find objects: as a table, or with "
        "--json as COCO has them."
    )
    command = parser.command(commands, "run", run, "write what follows a prompt", details)
    parser.add_model(command)
    parser.add_draft(command)
    parser.add_adapter(command)
    command.add_argument("prompt", metavar="PROMPT", nargs="?", help="the text; without it, or with `-`, stdin")
    command.add_argument("--raw", action="store_true", help="no chat template and no grammar of objects")
    command.add_argument("--system", metavar="TEXT", help="a system message before the prompt")
    command.add_argument("--json", action="store_true", help="one JSON object at the end instead of text as it comes")
    parser.add_pictures(command)
    parser.add_sampling(command)
    command.add_argument(
        "--logprobs",
        type=int,
        metavar="N",
        default=argparse.SUPPRESS,
        help="after the text (or in the JSON), each token's log-probability and the N likeliest tokens",
    )


def run(arguments: argparse.Namespace) -> None:
    from gemmary.cli import batch, pictures

    if arguments.images is not None:
        return batch.ask(arguments)
    if arguments.image:
        return pictures.ask(arguments)
    for flag in ("out", "every", "save", "merge_iou", "resize"):
        if getattr(arguments, flag) is not None:
            raise GemmaryError(f"--{flag.replace('_', '-')} is about pictures: give one with --image")
    prompt = read_prompt(arguments.prompt)
    options = parser.sampling_options(arguments)
    model = loading.load_model(arguments)
    console.note(loading.describe(model))
    for notice in model.notices:
        console.note(f"note: {notice}")
    templated = model.instruction_tuned and not arguments.raw
    if arguments.system is not None and not templated:
        raise GemmaryError("--system needs an instruction-tuned model, without --raw")
    asked: Any = prompt
    if templated:
        system = [{"role": "system", "content": arguments.system}] if arguments.system is not None else []
        asked = model.chat_prompt([*system, {"role": "user", "content": prompt}])
    options.setdefault("max_tokens", room(model, asked, CHAT_TOKENS if templated else RAW_TOKENS))
    with model.stream(asked, **options) as stream:
        for notice in stream.notices:
            console.note(f"note: {notice}")
        for piece in stream:
            if not arguments.json:
                console.write(piece.text)
    completion = stream.completion
    if arguments.json:
        console.write_json(as_json(model, completion))
    else:
        console.write("\n")
        if completion.logprobs is not None:
            write_logprobs(model, completion)
    seed = f" · seed {completion.stats.seed}" if options.get("temperature") != 0 else ""
    console.note(f"{loading.speed(completion.stats)}{seed}{ending(completion)}")
    loading.keep_packed(model)


def read_prompt(argument: str | None) -> str:
    """The prompt of the command line or of stdin; one newline at stdin's end is the shell's, not the text's."""
    if argument is not None and argument != "-":
        return argument
    text = "" if argument is None and sys.stdin.isatty() else sys.stdin.read().removesuffix("\n")
    if argument is None and not text:
        raise GemmaryError("there is no prompt: give it after the model's name, or through stdin")
    return text


def room(model: Model, prompt: Any, most: int) -> int:
    """`most`, or what the context leaves; at least 1, so that a prompt that does not fit is told by the model."""
    ids = model.tokenizer.encode(prompt, bos=True) if isinstance(prompt, str) else prompt.ids
    newline = 1 if model.config.prefix_lm else 0  # that its prompts end in
    return max(1, min(most, model.context - len(ids) - newline))


def ending(completion: Completion) -> str:
    return " · stopped at --max-tokens" if completion.finish_reason == "length" else ""


def as_json(model: Model, completion: Completion) -> dict[str, Any]:
    """All of a completion, for programs."""
    stats = completion.stats
    speeds = {"prefill_tokens_per_s": stats.prefill_tokens_per_s, "decode_tokens_per_s": stats.decode_tokens_per_s}
    return {
        "model": model.name,
        "engine": model.info.engine,
        "text": completion.text,
        "tokens": list(completion.tokens),
        "logprobs": [asdict(each) for each in completion.logprobs] if completion.logprobs is not None else None,
        "finish_reason": completion.finish_reason,
        "notices": [*model.notices, *completion.notices],
        "stats": {**asdict(stats), **speeds},
    }


def write_logprobs(model: Model, completion: Completion) -> None:
    spell = model.tokenizer.piece
    rows = []
    for each in completion.logprobs or ():
        top = "  ".join(f"{spell(token)!r} {logprob:.3f}" for token, logprob in each.top)
        rows.append((f"{each.logprob:.4f}", repr(spell(each.token)), top))
    console.table(rows, ("logprob", "token", "likeliest"))
