"""Questions and answers about pictures of one shape: PyPI `easy-vqa` (MIT), 38,575 to train on and 9,673 to test with.

    python -m recipes.easy_vqa --out vision

Its own split is kept: rows of `train` and `test` never share a picture.
"""

from __future__ import annotations

import argparse
import json
import zipfile
from pathlib import Path
from typing import Any

from recipes.packages import EASY_VQA, fetch, write_rows


def write(out: Path, split: str) -> list[dict[str, Any]]:
    """The pictures of a split (64 x 64) in out/easy-vqa/SPLIT/, and the rows about them. split: "train" or "test"."""
    folder = out / "easy-vqa" / split
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch(EASY_VQA)) as wheel:
        source = f"easy_vqa/data/{split}"
        questions = json.loads(wheel.read(f"{source}/questions.json"))
        for number in sorted({number for _, _, number in questions}):
            (folder / f"{number:04d}.png").write_bytes(wheel.read(f"{source}/images/{number}.png"))
    return [
        {"image": f"easy-vqa/{split}/{number:04d}.png", "prefix": f"answer en {question}", "suffix": answer}
        for question, answer, number in questions
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("vision"), metavar="FOLDER")
    out = parser.parse_args().out
    for split in ("train", "test"):
        path = out / f"easy-vqa-{split}.jsonl"
        print(f"{path}: {write_rows(path, write(out, split)):,} rows")


if __name__ == "__main__":
    main()
