"""A model of Hugging Face's format as OpenVINO reads it, its weights compressed with optimum-intel's usual settings.

    python -m venv ov && ov/bin/pip install openvino optimum-intel nncf "transformers<5" torch
    python benchmarks/openvino_export.py FOLDER TARGET --weights int4 --python ov/bin/python

int4: asymmetric, a scale and a zero point for each group of 128 weights (ours have 32), the embedding table and the
head in int8. int8: one scale and zero point a row. FOLDER: what `gemmary convert NAME FOLDER` writes. The exporter
holds the whole model in memory twice.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

COMMAND = "from optimum.commands.optimum_cli import main; main()"


def export(python: str, folder: Path, target: Path, weights: str) -> None:
    """Writes `target`, which appears when it is complete. Exits with the exporter's last lines where it fails."""
    partial = target.with_name(target.name + ".partial")
    command = [python, "-c", COMMAND, "export", "openvino", "--model", str(folder), "--weight-format", weights]
    command += ["--task", "text-generation-with-past", "--disable-convert-tokenizer", str(partial)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode or not (partial / "openvino_model.xml").is_file():
        raise SystemExit(f"OpenVINO's exporter failed:\n{done.stdout[-2000:]}")
    partial.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--weights", choices=["int4", "int8", "fp16", "fp32"], default="int4")
    parser.add_argument("--python", default=sys.executable, help="an interpreter that has optimum-intel")
    options = parser.parse_args()
    export(options.python, options.folder, options.target, options.weights)


if __name__ == "__main__":
    main()
