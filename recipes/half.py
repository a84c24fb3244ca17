"""An adapter in half the bytes: its matrices in float16, for shipping. Readers of the PEFT format take it as it is.

python -m recipes.half chat/adapter src/gemmary/data/chat-adapter --base google/gemma-3-270m

Training keeps float32 because its steps are small; what is learnt needs no more than float16's 11 bits, and unlike the
activations of these models it lies well inside float16's range, which is checked.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from gemmary.checkpoints import safetensors
from gemmary.checkpoints.peft import CONFIG, WEIGHTS
from gemmary.checkpoints.safetensors import SafetensorsFile
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file


def halve(source: Path, target: Path, base: str | None = None) -> float:
    """Writes the adapter of `source` into `target`, and returns the largest relative error of a matrix (Euclidean).

    base: the name by which others find the model that it is for; None: as it stands.

    Raises GemmaryError where a number does not fit float16.
    """
    file = SafetensorsFile(source / WEIGHTS)
    halves, worst = {}, 0.0
    for name in file.entries:
        exact = file.array(name).astype(np.float32)
        with np.errstate(over="ignore"):
            halves[name] = exact.astype(np.float16)
        if not np.isfinite(halves[name]).all():
            raise GemmaryError(f"{file.path}: {name} has numbers that float16 cannot hold: ship it in float32")
        error = np.linalg.norm(halves[name].astype(np.float32) - exact) / (np.linalg.norm(exact) or 1.0)
        worst = max(worst, float(error))
    with atomic_file(target / WEIGHTS) as out:
        plan = [(name, "F16", array.shape) for name, array in halves.items()]
        safetensors.write(out, plan, (iter([array]) for array in halves.values()))
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    if base is not None:
        config["base_model_name_or_path"] = base
    with atomic_file(target / CONFIG) as out:
        out.write((json.dumps(config, indent=2) + "\n").encode())
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--base", metavar="NAME", help="the hub's name of the model that it is for")
    arguments = parser.parse_args()
    worst = halve(arguments.source, arguments.target, arguments.base)
    print(f"{(arguments.target / WEIGHTS).stat().st_size:,} bytes, matrices within {worst:.1e} of what they were")


if __name__ == "__main__":
    main()
