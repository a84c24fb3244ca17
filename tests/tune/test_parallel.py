"""One run on several processes gives the losses of one, and its checkpoints go on in a world of another size."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed")

import torch

from benchmarks.kills import SHAPE, begin, settings_of
from gemmary.checkpoints import open_named, save_checkpoint
from gemmary.checkpoints.peft import read_adapter
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.errors import GemmaryError
from gemmary.tune import parallel, tensor_parallel
from gemmary.tune.pretrain import pretrain
from gemmary.tune.settings import TARGETS, Settings
from tests.tiny import TINY
from tests.tune.test_pretrain import settings_for, write_text

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


def test_a_model_from_scratch_on_two_processes(tmp_path: Path) -> None:
    """One makes the start, both train; and what is measured of the model is the same."""
    write_text(tmp_path / "text")
    expected = pretrain(settings_for(tmp_path))
    both = {**vars(settings_for(tmp_path)), "out": str(tmp_path / "both"), "text": str(tmp_path / "text")}
    (tmp_path / "both.yaml").write_text(json.dumps({name: value for name, value in both.items() if value is not None}))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "gemmary", "pretrain", str(tmp_path / "both.yaml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[:2000]
    assert_same_losses(tmp_path / "new" / "model", tmp_path / "both" / "model")
    held_out = json.loads((tmp_path / "both" / "held-out.json").read_text())
    assert held_out["perplexity"] == pytest.approx(expected.held_out.perplexity, rel=1e-4)


def divisible(folder: Path, method: str) -> Settings:
    """A run of a model with norms over its heads, which divide into two parts as its MLP does; all layers adapted."""
    shape = replace(TINY["gemma3"], num_heads=4, num_kv_heads=2, intermediate_size=64, vocab_size=SHAPE.vocab_size)
    save_checkpoint(random_checkpoint(shape, "divisible", None, 0), folder / "divisible")
    return replace(settings(folder, method), model=str(folder / "divisible"), lora_targets=TARGETS)


@pytest.mark.parametrize(("method", "size", "parts"), [("lora", 2, 2), ("full", 2, 2), ("full", 4, 2)])
def test_layers_divided_among_processes(
    method: str, size: int, parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = divisible(tmp_path, method)
    assert codes([begin(run)]) == [0]
    divided = replace(run, out=str(tmp_path / "divided"), tensor_parallel=parts)
    assert codes(start(size, divided, monkeypatch)) == [0] * size
    assert_same_losses(Path(run.out), Path(divided.out))
    assert losses(Path(run.out))[STEPS][0] < 0.9 * losses(Path(run.out))[1][0]


def test_checkpoints_of_divided_layers_go_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = divisible(tmp_path, "full")
    assert codes([begin(run)]) == [0]
    cut = replace(run, out=str(tmp_path / "cut"), tensor_parallel=2)
    assert codes(start(2, cut, monkeypatch, dying=0))[0] == -signal.SIGKILL
    assert codes([begin(replace(cut, resume=True, tensor_parallel=1))]) == [0]
    assert_same_losses(Path(run.out), Path(cut.out))


def test_what_does_not_divide(tmp_path: Path) -> None:
    config = replace(TINY["gemma3"], num_kv_heads=2, num_heads=4, intermediate_size=64)
    tensor_parallel.check(config, 2, "lora", 0.0, False)
    with pytest.raises(GemmaryError, match="does not divide the model's 2 key heads"):
        tensor_parallel.check(config, 4, "lora", 0.0, False)
    with pytest.raises(GemmaryError, match="choose --method lora or full"):
        tensor_parallel.check(config, 2, "qlora", 0.0, False)
    with pytest.raises(GemmaryError, match="knows neither --dora"):
        tensor_parallel.check(config, 2, "lora", 0.1, False)
    with (
        pytest.raises(GemmaryError, match="torchrun --nproc-per-node 2"),
        parallel.joined(torch.device("cpu"), tensor_parallel=2),
    ):
        pass


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
