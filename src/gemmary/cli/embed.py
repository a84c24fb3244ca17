"""`gemmary embed`: texts to vectors with an embedding model."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from gemmary.cli import console, loading, parser
from gemmary.errors import GemmaryError

PROMPTS = ("query", "document", "clustering", "classification", "similarity", "summarization", "code", "none")


def add(commands: Any) -> None:
    details = "One JSON array for each text, a line each, of a unit vector's numbers."
    command = parser.command(commands, "embed", run, "turn texts into vectors", details)
    parser.add_model(command, context=False)
    command.add_argument("texts", metavar="TEXT", nargs="*", help="the texts (default: the lines of stdin)")
    command.add_argument("--prompt", choices=PROMPTS, default="query", help="what the vectors are for (default: query)")
    command.add_argument("--title", metavar="TEXT", help="of the documents, with --prompt document")
    command.add_argument("--dimensions", type=parser.count, metavar="N", help="only the first 512, 256 or 128 numbers")


def run(arguments: argparse.Namespace) -> None:
    texts = arguments.texts
    if not texts:
        if sys.stdin.isatty():
            raise GemmaryError("there is no text: give it after the model's name, or one a line through stdin")
        texts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    model = loading.load_model(arguments)
    console.note(loading.describe(model))
    prompt = None if arguments.prompt == "none" else arguments.prompt
    for vector in model.embed(texts, prompt=prompt, title=arguments.title, dimensions=arguments.dimensions):
        print(json.dumps([round(float(value), 7) for value in vector]))
    loading.keep_packed(model)
