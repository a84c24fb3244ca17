"""A run that was interrupted, killed, or met a failing disk goes on as if nothing had been, to the bit."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gemmary
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile
from tests.tune.tiny_tuning import Checkpoints, Heard, Tiny, interrupt, no_ceiling, tiny, undisturbed

__all__ = ["no_ceiling", "tiny", "undisturbed"]

ROOT = Path(__file__).resolve().parents[2]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "dora": {"dora": True, "rslora": True, "accumulation": 3},
    "full": {"method": "full", "lora_dropout": 0.0, "optimizer": "adafactor", "weight_decay": 0.1},
}


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_finishes_the_step_and_a_resumed_run_ends_the_same(method: str, tiny: Tiny) -> None:
    changes = {**METHODS[method], "steps": 6}
    tiny.tune(f"{method}-whole", **changes)
    before = signal.getsignal(signal.SIGINT)
    for step, after in ((1, interrupt), (4, lambda: os.kill(os.getpid(), signal.SIGTERM))):
        with pytest.raises(KeyboardInterrupt):
            tiny.tune(f"{method}-halting", Heard({step: after}), resume=step > 1, **changes)
        assert (tiny.folder / f"{method}-halting/checkpoints/step-{step:08d}/SHA256SUMS").is_file()
    assert signal.getsignal(signal.SIGINT) is before
    heard = Heard()
    tiny.tune(f"{method}-halting", heard, resume=True, **changes)
    assert [line.step for line in heard.lines] == [5, 6]
    assert tiny.left(f"{method}-halting") == tiny.left(f"{method}-whole")


def test_a_second_ctrl_c_leaves_at_once(tiny: Tiny, undisturbed: dict[str, Any]) -> None:
    def twice() -> None:
        interrupt()
        interrupt()

    with pytest.raises(KeyboardInterrupt):
        tiny.tune("impatient", Heard({5: twice}))
    assert not (tiny.folder / "impatient/checkpoints/step-00000005").exists()
    tiny.tune("impatient", resume=True)
    assert tiny.left("impatient") == undisturbed


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tiny: Tiny, undisturbed: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny.tune("damaged", Heard({7: interrupt}))
    path = tiny.folder / "damaged/checkpoints/step-00000007/optimizer-exp_avg.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    heard = Heard()
    tiny.tune("damaged", heard, resume=True)
    (note,) = [text for text in heard.notes if "damaged" in text]
    assert "optimizer-exp_avg.safetensors is not what was written" in note
    assert [line.step for line in heard.lines] == [7, 8, 9, 10]
    assert tiny.left("damaged") == undisturbed


def test_a_kill_before_the_last_old_checkpoint_goes(
    tiny: Tiny, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Checkpoints._remove

    def removes_until_the_end(checkpoints: Checkpoints, path: Path) -> None:
        if 10 in checkpoints.steps():
            raise KeyboardInterrupt
        real(checkpoints, path)

    monkeypatch.setattr(Checkpoints, "_remove", removes_until_the_end)
    with pytest.raises(KeyboardInterrupt):
        tiny.tune("late")
    monkeypatch.setattr(Checkpoints, "_remove", real)
    tiny.tune("late", resume=True)
    assert tiny.left("late") == undisturbed


def failing_at(call: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, whose calls fail from this one on (0: the first), for want of space."""
    calls = iter(range(10**9))

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(calls) >= call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    return wrapped


FAILURES = [
    *((HashingFile, "write", call) for call in (0, 1, 9, 60)),
    *((os, "fsync", call) for call in (0, 4, 7, 13, 14, 40)),
    *((os, "replace", call) for call in (0, 2, 3, 6)),
    *((os, "write", call) for call in (0, 5)),
    (os, "rename", 0),
    (os, "rename", 1),
]


@pytest.mark.parametrize(("owner", "name", "call"), FAILURES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_failing_disk_is_one_line_and_costs_no_checkpoint(
    owner: Any, name: str, call: int, tiny: Tiny, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"failing-{owner.__name__}-{name}-{call}"
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing_at(call, getattr(owner, name)))
        with pytest.raises(GemmaryError, match=r"cannot (write|remove) .*No space left on device") as failure:
            tiny.tune(out)
    assert "\n" not in str(failure.value)
    heard = Heard()
    tiny.tune(out, heard, resume=True)
    assert [text for text in heard.notes if "damaged" in text] == []
    assert tiny.left(out) == undisturbed


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="this system has no sigtimedwait")
@pytest.mark.parametrize(("kind", "kills"), [("KILL", 100), ("INT", 12)])
def test_killed_runs_end_with_the_bytes_of_undisturbed_ones(kind: str, kills: int) -> None:
    """Each kill takes a fork of a process in which PyTorch is already loaded."""
    command = [sys.executable, ROOT / "benchmarks/kills.py", "--kills", str(kills), "--signal", kind]
    environment = {**os.environ, "PYTHONPATH": str(Path(gemmary.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = json.loads(done.stdout or "{}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert found["kills"] == kills
    assert found["runs"] >= kills // 25
    assert found["inside_a_save"] >= (20 if kind == "KILL" else 0)
