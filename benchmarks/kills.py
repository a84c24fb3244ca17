"""Kills tuning runs at random, resumes them, and compares what they end with to a run that nothing disturbed.

    python benchmarks/kills.py --kills 1000

A run is a few steps of LoRA, with dropout, on a model of a few thousand weights; each is killed again and again until
it gets to its end. Kills come by turns after a random time, wherever that finds the process, and at a random write,
fsync or rename (a write then stops half way), so that many strike in the midst of a save. `--signal INT` sends Ctrl-C
instead, at random times. Weights, optimizer, generator, position, metrics and adapter must have the same bytes; the
clock's figures are left out. No process reads data ahead, so there are no workers to kill.

PyTorch is imported once, and warm; every run is a fork of that process, with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gemmary.checkpoints import save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import Config
from gemmary.files import HashingFile
from gemmary.tune import loop
from gemmary.tune.loop import tune
from gemmary.tune.progress import TIMING
from gemmary.tune.settings import Settings
from gemmary.zoo import alternating

SHAPE = Config(
    family="gemma2",
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    vocab_size=512,
    context_length=64,
    layer_types=alternating(2),
    query_pre_attn_scalar=8,
    sliding_window=8,
    attn_logit_softcap=50.0,
    final_logit_softcap=30.0,
    post_norms=True,
)
CALLS = 60
"""A kill by count comes at one of so many writes, fsyncs and renames: about those of a save and a half."""


def settings_of(folder: Path, method: str) -> Settings:
    """A tiny model and its rows, written into the folder, and how it is tuned."""
    save_checkpoint(random_checkpoint(SHAPE, "tiny", None, 0), folder / "tiny")
    words = random.Random(0)
    rows = [{"text": " ".join(words.choice(("tea", "with", "milk", "or", "not")) for _ in range(6))} for _ in range(32)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Settings(
        model=str(folder / "tiny"),
        data=str(folder / "rows.jsonl"),
        out=str(folder / "undisturbed"),
        method=method,
        steps=10,
        epochs=9,
        batch_size=1,
        sequence_length=64,
        accumulation=2,
        learning_rate=0.01,
        warmup_steps=3,
        lora_rank=2,
        lora_targets=("q", "down"),
        lora_dropout=0.1 if method == "lora" else 0.0,
        validation=0.2,
        evaluate_every=3,
        checkpoint_every=2,
        dtype="float32",
        device="cpu",
    )


def begin(settings: Settings, dies_at: int | None = None) -> int:
    """Forks a process that tunes; its id. dies_at: the write, fsync or rename at which it kills itself."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if dies_at is not None:
            die_at(dies_at)
        tune(settings)
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def die_at(call: int) -> None:
    """Arranges for SIGKILL at the given call of those that change the disk."""
    left = [call]

    def deadly(real: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                if half is not None:
                    half(*arguments)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return wrapped

    def write_half(file: HashingFile, data: Any) -> None:
        view = memoryview(data).cast("B")
        file._file.write(view[: len(view) // 2])
        file._file.flush()

    for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
        setattr(os, name, deadly(getattr(os, name)))
    os.write = deadly(os.write, lambda number, data: real_write(number, data[: len(data) // 2]))
    HashingFile.write = deadly(HashingFile.write, write_half)  # type: ignore[method-assign]


real_write = os.write


def ended(child: int) -> int:
    """The exit code of a process once it has ended; -9 for one that was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def strike(child: int, number: int, seconds: float) -> int:
    """Sends the signal after so many seconds, or not where the process ends before; its exit code."""
    signal.sigtimedwait({signal.SIGCHLD}, seconds)
    os.kill(child, number)
    code = ended(child)
    signal.sigtimedwait({signal.SIGCHLD}, 0)
    return code


def left_by(folder: Path) -> dict[str, Any]:
    """All that a run left, without the clock's figures."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{key: value for key, value in line.items() if key not in TIMING} for line in lines]
        elif path.name == "state.json":
            found[name] = {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        elif path.name == "config.yaml":
            found[name] = [line for line in path.read_text().splitlines() if not line.startswith("out:")]
        elif not (path.name == "SHA256SUMS" and path.parent.name.startswith("step-")):
            found[name] = path.read_bytes()
    return found


def kill_runs(folder: Path, kills: int, number: int, method: str, seed: int) -> dict[str, Any]:
    """Kills that many times; how often that was inside a save, how many runs came to their end, and which differed."""
    chance = random.Random(seed)
    settings = settings_of(folder, method)
    tune(replace(settings, out=str(folder / "warm")))
    began = time.monotonic()
    if ended(begin(settings)) != 0:
        raise SystemExit("the undisturbed run failed")
    length = time.monotonic() - began
    wanted = left_by(Path(settings.out))
    found: dict[str, Any] = {"kills": 0, "inside_a_save": 0, "runs": 0, "differing": []}
    settings = replace(settings, out=str(folder / "killed"), resume=True)
    out = Path(settings.out)
    while found["kills"] < kills:
        if number == signal.SIGKILL and chance.random() < 0.5:
            code = ended(begin(settings, chance.randint(1, CALLS)))
        else:
            code = strike(begin(settings), number, chance.uniform(0, length))
        if code not in (0, 130, -number):
            raise SystemExit(f"a resumed run failed with exit code {code}")
        found["kills"] += code != 0
        found["inside_a_save"] += any(out.glob("checkpoints/.*.tmp"))
        if code == 0:
            found["runs"] += 1
            got = left_by(out)
            found["differing"] += sorted(
                name for name in got.keys() | wanted.keys() if got.get(name) != wanted.get(name)
            )
            shutil.rmtree(out)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=1000, metavar="N")
    parser.add_argument("--signal", choices=("KILL", "INT"), default="KILL")
    parser.add_argument("--method", choices=("lora", "full"), default="lora")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    arguments = parser.parse_args()

    torch.set_num_threads(1)  # before any other thread begins: a fork has only the one that forked
    loop.matmul_ceiling = lambda dtype, device: 1e9
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    number = signal.Signals[f"SIG{arguments.signal}"]
    with tempfile.TemporaryDirectory() as folder:
        found = kill_runs(Path(folder), arguments.kills, number, arguments.method, arguments.seed)
    print(json.dumps(found))
    return 1 if found["differing"] else 0


if __name__ == "__main__":
    sys.exit(main())
