"""One run on several processes gives the losses of one, and its checkpoints go on in a world of another size."""

from __future__ import annotations

import json
import os
import signal
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from benchmarks.kills import begin, settings_of
from gemmary.checkpoints import open_named
from gemmary.checkpoints.peft import read_adapter
from gemmary.tune import parallel
from gemmary.tune.settings import Settings

STEPS = 20


def settings(folder: Path, method: str, **changes: Any) -> Settings:
    options = {"steps": STEPS, "batch_size": 3, "lora_dropout": 0.0, "threads": 1, **changes}
    return replace(settings_of(folder, method), **options)


def start(size: int, run: Settings, monkeypatch: pytest.MonkeyPatch, dying: int | None = None) -> list[int]:
    """`size` processes of one run, as `torchrun` starts them; that of rank `dying` kills itself in a save."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    children = []
    for rank in range(size):
        for name, value in {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)
        children.append(begin(run, 70 if rank == dying else None))
    for name in (*shared, "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    return children


def codes(children: list[int]) -> list[int]:
    """Exit codes (or minus the signal). When one has failed, the others are ended, as `torchrun` does."""
    found: dict[int, int] = {}
    while len(found) < len(children):
        child, status = os.wait()
        found[child] = os.waitstatus_to_exitcode(status)
        if found[child] != 0:
            for other in set(children) - set(found):
                os.kill(other, signal.SIGKILL)
    return [found[child] for child in children]


def losses(folder: Path) -> dict[int, tuple[float | None, float | None]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["val_loss"]) for line in lines}


def assert_same_losses(one: Path, other: Path) -> None:
    expected, found = losses(one), losses(other)
    assert found.keys() == expected.keys() == set(range(STEPS + 1))
    for step, pair in expected.items():
        assert found[step] == pytest.approx(pair, abs=1e-5), f"step {step}"


@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_processes_compute_what_one_does(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(tmp_path, method)
    assert codes([begin(run)]) == [0]
    both = replace(run, out=str(tmp_path / "both"))
    assert codes(start(2, both, monkeypatch)) == [0, 0]
    assert_same_losses(Path(run.out), Path(both.out))
    assert losses(Path(run.out))[STEPS][0] < 0.9 * losses(Path(run.out))[1][0]
    written = {path.name for path in Path(both.out).iterdir()}
    assert written == {path.name for path in Path(run.out).iterdir()}


def test_a_killed_process_ends_the_run_and_fewer_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = settings(tmp_path, "lora")
    assert codes([begin(run)]) == [0]
    cut = replace(run, out=str(tmp_path / "cut"))
    assert codes(start(4, cut, monkeypatch, dying=0))[0] == -signal.SIGKILL
    reached = max(int(path.name.removeprefix("step-")) for path in (Path(cut.out) / "checkpoints").glob("step-*"))
    assert 0 < reached < STEPS
    assert not (Path(cut.out) / "adapter_model.safetensors").exists()
    assert codes(start(2, replace(cut, resume=True), monkeypatch)) == [0, 0]
    assert_same_losses(Path(run.out), Path(cut.out))
    config = open_named(run.model).config
    ours, theirs = (read_adapter(Path(out), config) for out in (run.out, cut.out))
    for name, weights in ours.weights.items():
        assert theirs.weights[name].b == pytest.approx(weights.b, abs=1e-4)


def test_a_single_process_is_a_world_of_its_own() -> None:
    with parallel.joined(torch.device("cpu")) as world:
        assert world is parallel.ALONE
        assert world.sum(2.5, 3) == (2.5, 3)
