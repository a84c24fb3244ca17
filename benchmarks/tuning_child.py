"""One side of tuning.py in a process of its own: loads, says so, then answers each line of stdin with a training step.

python tuning_child.py KIND PATH DTYPE METHOD CHECKPOINTING THREADS
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time

import numpy as np
from peers_child import peak_bytes
from tuning_runners import LIBRARIES, RUNNERS

SIDE = 1024
"""Of the square matrices whose product is the ceiling."""
LOOK_SECONDS = 0.1


def ceiling(dtype: str) -> float:
    """Operations a second of PyTorch's own product of matrices, the best of those that a tenth of a second has."""
    import torch

    a = torch.ones(SIDE, SIDE, dtype=getattr(torch, dtype))
    times: list[float] = []
    while sum(times) < LOOK_SECONDS:
        begin = time.perf_counter()
        torch.mm(a, a)
        times.append(time.perf_counter() - begin)
    return 2 * SIDE**3 / min(times)


def main() -> None:
    kind, path, dtype, method, checkpointing, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; answers have a channel of their own
    for library in LIBRARIES[kind]:
        importlib.import_module(library)
    import torch

    torch.set_num_threads(int(threads))
    begin = time.perf_counter()
    runner = RUNNERS[kind](path, dtype, method, checkpointing == "on")
    load_s = time.perf_counter() - begin
    about = {"name": runner.name, "load_s": load_s, "torch": torch.__version__, "loaded_bytes": peak_bytes()}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        shape = (request["batch_size"], request["sequence_length"])
        documents = np.random.default_rng(request["seed"]).integers(1, runner.vocabulary, shape).tolist()
        answer = {"float32": ceiling("float32"), "bfloat16": ceiling("bfloat16")}
        begin = time.perf_counter()
        answer["loss"] = runner.step(documents)
        answer["step_s"] = time.perf_counter() - begin
        print(json.dumps({**answer, "peak_bytes": peak_bytes()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
