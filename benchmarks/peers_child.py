"""One peer in a process of its own, for peers.py: loads, says so, then answers each line of stdin with one of stdout.

    python peers_child.py PEER PATH DTYPE CONTEXT THREADS

Runs in any environment that holds the peer's library and numpy; Gemmary need not be there.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peers_runners import LIBRARIES, RUNNERS

FIRST_PROMPT = [2, 50, 60, 70, 80, 90]
"""What the first token after loading is written to: BOS and any five ids."""


def seconds(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def peak_bytes() -> int:
    """The largest resident set of this process. Linux's `ru_maxrss` would carry over that of the parent."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
        return int(fields["VmHWM"].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    peer, path, dtype, context, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; answers have a channel of their own
    for library in LIBRARIES[peer]:
        importlib.import_module(library)

    begin = time.perf_counter()
    runner = RUNNERS[peer](path, dtype or None, int(context), int(threads))
    loaded = time.perf_counter()
    runner.start([FIRST_PROMPT])
    first = time.perf_counter()
    about = {"name": runner.name, "load_s": loaded - begin, "first_token_s": first - begin, "peak_bytes": peak_bytes()}
    print(json.dumps(about), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        if "prompts" in request:
            answer["start_s"] = seconds(lambda prompts=request["prompts"]: runner.start(prompts))
        if "steps" in request:
            answer["write_s"] = seconds(lambda steps=request["steps"]: runner.write(steps))
        print(json.dumps({**answer, "peak_bytes": peak_bytes()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
