"""How a model replies in chat: whether it stops by itself, and whether it is right.

python -m recipes.replies starter chat/questions.jsonl --json base.json
python -m recipes.replies starter chat/questions.jsonl --adapter chat/adapter

Greedy replies of at most 48 tokens to conversations in Gemma's chat format. Of each kind of question: the share that
ended with the turn marker, that was word for word the reply expected (or nothing but the answer), and that holds the
answer somewhere, which is fair to a model that words it in another way. Letters and digits count, in either case.
"""

from __future__ import annotations

import argparse
import json
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gemmary
from recipes.evaluate import resampled
from recipes.question_answering import normalised

MAX_TOKENS = 48
MEASURES = ("ended", "exact", "holds")


def plain(text: str) -> str:
    """Normalised, without accents (the Factbook has none)."""
    return normalised("".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)))


def judged(row: Mapping[str, Any], text: str, ended: bool) -> dict[str, bool]:
    """One reply by each measure."""
    reply, answers = plain(text), [plain(answer) for answer in row["answers"]]
    return {
        "ended": ended,
        "exact": reply in (plain(row["reply"]), *answers),
        "holds": any(f" {answer} " in f" {reply} " for answer in answers),
    }


def ask(model: gemmary.Model, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each row's reply, in shared steps, with how it is judged."""
    prompts = [model.chat_prompt(row["messages"]) for row in rows]
    marker = (model.tokenizer.turn_ids or (None, None))[1]
    completions = model.generate(prompts, temperature=0.0, max_tokens=MAX_TOKENS)
    return [
        {"kind": row["kind"], "text": done.text} | judged(row, done.text, done.tokens[-1:] == (marker,))
        for row, done in zip(rows, completions, strict=True)
    ]


def summary(replies: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each kind and for all: how many, and the share by each measure; of all with its 95 % interval."""
    kinds = defaultdict(list)
    for reply in replies:
        kinds[reply["kind"]].append(reply)
    table: dict[str, dict[str, Any]] = {}
    for kind, some in [*kinds.items(), ("all", list(replies))]:
        table[kind] = {"count": len(some)} | {m: float(np.mean([reply[m] for reply in some])) for m in MEASURES}
    for measure in MEASURES:
        samples = resampled(np.array([reply[measure] for reply in replies], dtype=np.float64))
        table["all"][f"{measure}_interval"] = [float(edge) for edge in np.percentile(samples, (2.5, 97.5))]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--adapter", metavar="FOLDER")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every reply, and the table")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.questions.read_text(encoding="utf-8").splitlines()]
    options = {"adapter": arguments.adapter} if arguments.adapter else {}
    with warnings.catch_warnings(), gemmary.load(arguments.model, threads=arguments.threads, **options) as model:
        warnings.simplefilter("ignore", gemmary.GemmaryWarning)
        replies = ask(model, rows)
    table = summary(replies)
    print("| kind | questions | ended | exact | holds the answer |\n|---|---|---|---|---|")
    for kind, row in table.items():
        print(
            f"| {kind} | {row['count']} | " + " | ".join(f"{100 * row[measure]:.0f} %" for measure in MEASURES) + " |"
        )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"table": table, "replies": replies}, ensure_ascii=False), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
