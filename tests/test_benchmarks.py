"""The benchmark scripts run, at a size that measures nothing."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gemmary.checkpoints import save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from tests.tiny import TINY

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script: str, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode == 0) == ok, done.stderr
    return done


def need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 2 with random weights in 4 bits."""
    config = replace(TINY["gemma2-q256"], vocab_size=520)
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    save_checkpoint(random_checkpoint(config, "random:tiny", "int4", 0), path, format="gguf")
    return path


def peers(model: Path, *arguments: str) -> dict[str, Any]:
    sizes = ("--prefill", "20", "--decode", "8", "--together", "2", "--repeat", "2", "--loads", "1")
    cache = str(model.parent / "cache")
    done = run("peers.py", "--model", str(model), "--cache", cache, *sizes, "--json", *arguments)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(row: dict[str, Any], name: str) -> None:
    assert row["name"].startswith(name)
    for key in ("prefill", "decode", "together", "read", "probe", "share", "first_token"):
        assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
    assert row["peak_bytes"] > row["weight_bytes"] > 0


@pytest.mark.parametrize(
    ("peer", "module", "name"),
    [
        ("gemmary", "gemmary", "Gemmary"),
        ("gemmary:bfloat16", "gemmary", "Gemmary"),
        ("llama.cpp", "llama_cpp", "llama.cpp"),
        ("transformers", "transformers", "transformers"),
        ("openvino", "optimum.intel", "OpenVINO"),
    ],
)
def test_a_peer(tiny: Path, peer: str, module: str, name: str) -> None:
    need(module.partition(".")[0])
    need(module)
    found = peers(tiny, "--peers", peer)
    assert (found["threads"], found["rounds"]) == (2, 2)
    (row,) = found["peers"]
    check(row, name)


def test_long_contexts_and_the_plot(tiny: Path, tmp_path: Path) -> None:
    need("matplotlib")
    plot = tmp_path / "peers.png"
    (row, other) = peers(
        tiny, "--peers", "gemmary", "gemmary:int8", "--context-decode", "40", "--plot", str(plot)
    )["peers"]  # fmt: skip
    assert row["weight_bytes"] < other["weight_bytes"]
    assert row["deep"]["median"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_table(starter_gguf: Path, tmp_path: Path) -> None:
    sizes = ("--prefill", "20", "--decode", "3", "--together", "0", "--repeat", "1", "--loads", "1")
    table = run("peers.py", "--model", str(starter_gguf), "--peers", "gemmary", *sizes, "--cache", str(tmp_path)).stdout
    assert "weights stored (0.247 GB)" in table
    assert "prefill 20" in table
    assert "together" not in table


def test_tuning(tiny: Path) -> None:
    need("torch")
    need("peft")
    sizes = ("--batch-size", "2", "--sequence-length", "16", "--repeat", "1", "--threads", "1", "--peer-checkpointing")
    cache = ("--cache", str(tiny.parent / "cache"))
    sides = ("--sides", "gemmary", "transformers:float32")
    ours, theirs = json.loads(run("tuning.py", "--model", str(tiny), *sides, *sizes, *cache, "--json").stdout)["rows"]
    for row in (ours, theirs):
        for key in ("tokens_per_s", "step_s", "ceiling_float32", "share"):
            assert 0 < row[key]["min"] <= row[key]["median"] <= row[key]["max"]
        assert row["peak_bytes"] > 0
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)  # the same weights, tokens and rows
    table = run(
        "tuning.py", "--model", str(tiny), "--method", "qlora", "--sides", "gemmary", *sizes, "--restart"
    ).stdout
    assert "base Q4_0" in table
    assert "of the ceiling" in table
    refused = run("tuning.py", "--model", str(tiny), "--sides", "unsloth", ok=False)
    assert "no side is called 'unsloth'" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--peers", "vllm"), "no peer is called 'vllm'"),
        (("--peers", "llama.cpp", "--python", "llama.cpp=no-such-python"), "cannot run no-such-python for llama.cpp"),
        (("--peers", "gemmary", "--model", "random:gemma-9"), "no model is called 'gemma-9'"),
    ],
)
def test_what_peers_refuses(tiny: Path, arguments: tuple[str, ...], message: str) -> None:
    done = run("peers.py", "--model", str(tiny), "--cache", str(tiny.parent), *arguments, ok=False)
    assert message in done.stderr.splitlines()[-1]


def test_attention() -> None:
    lines = run("attention.py", "--repeat", "1", "--most", "512", "--bytes", "1", "--threads", "2").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["decode", "prefill", "decode", "prefill", "prefill"] * 3
    assert all("GB/s of" in line or "GFLOP/s" in line for line in lines)


def test_a_long_context(tiny: Path) -> None:
    script = run("long_context.py", "--model", str(tiny), "--context", "40", "--tokens", "2", "--repeat", "1")
    lines = script.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["bfloat16", "int8"]
    assert all("40 tokens of context" in line and "of the bound" in line for line in lines)


def test_speculation(starter_gguf: Path) -> None:
    script = run("speculation.py", "--model", str(starter_gguf), "--tokens", "24", "--repeat", "1")
    lines = script.stdout.splitlines()
    kinds = ["copying", "editing", "summarising", "free, greedy", "free, sampled", "story, sampled", "no repetition"]
    assert [line.split(" tokens/s")[0].strip() for line in lines] == kinds
    assert all(line.endswith("text the same") for line in lines)


def test_a_deeper_model_writes_the_same_and_takes_a_draft(starter_gguf: Path) -> None:
    sizes = ("--model", str(starter_gguf), "--tokens", "24", "--repeat", "1", "--show")
    plain = run("speculation.py", *sizes).stdout.splitlines()
    deeper = run("speculation.py", *sizes, "--deeper", "2", "--draft", str(starter_gguf)).stdout.splitlines()
    texts, same = ([line for line in each if " tokens/s with" not in line] for each in (plain, deeper))
    assert texts == same
    assert all(line.endswith("text the same") for line in deeper if " tokens/s with" in line)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_load(starter_gguf: Path) -> None:
    found = json.loads(run("load.py", str(starter_gguf), "--peers", "Gemmary", "--repeat", "1", "--json").stdout)
    *stages, total = found["Gemmary"]
    assert [row["stage"] for row in stages][2:] == ["weights", "tokenizer", "first token"]
    assert total["peak"] > starter_gguf.stat().st_size


def test_output_head(starter_gguf: Path) -> None:
    small = ("--tokens", "6", "--repeat", "1", "--positions", "3")
    lines = run("output_head.py", "--model", str(starter_gguf), *small).stdout.splitlines()
    assert lines[0].startswith("high halves 94.4 MB")
    assert lines[3].endswith("text the same")
    names = [line.split("  ")[0].strip() for line in lines[4:]]
    assert names == ["full head", "1 wanted", "2 wanted", "4 wanted", "8 wanted"]


def test_output_head_bounds(starter_gguf: Path) -> None:
    small = ("--rows", "2048", "--positions", "2")
    lines = run("output_head_bounds.py", "--model", str(starter_gguf), *small).stdout.splitlines()
    shares = [[float(cell) for cell in line.split("|")[2:6]] for line in lines[2:]]
    assert len(shares) == 10
    assert all(0 < share <= 100 for row in shares for share in row)


def test_quantization(tiny: Path) -> None:
    rows = run("quantization.py", str(tiny), "--only", "int8", "int4-gptq", "--threads", "1").stdout.splitlines()
    assert [row.split("|")[1].strip() for row in rows] == ["row", "---", "(source)", "int8", "int4-gptq"]
    bits, kl = (float(rows[3].split("|")[column]) for column in (3, 6))
    assert bits == 8.5
    assert 0 <= kl < 1


def test_every_size(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    arguments = ("--only", "gemma-3-270m", "--prefill", "4", "--decode", "2", "--threads", "1", "--out", str(rows))
    told = run("every_size.py", *arguments).stdout
    assert "on disk · peak" in told
    row = json.loads(rows.read_text())
    plan = row["plan"]
    assert abs(row["peak_bytes"] - plan["total_bytes"]) < 100e6
    assert row["disk_bytes"] == plan["weights_bytes"]
    assert row["bandwidth_share"] > 0
    with rows.open("a") as file:
        file.write('{"model": "gemma-3-1b-pt", "qua')  # broken off
    assert run("every_size.py", *arguments).stdout == told  # nothing is measured again
    shown = run("every_size.py", "--table", "--out", str(rows)).stdout
    assert shown.splitlines()[2].startswith("| gemma-3-270m | 0.23 GB |")
    assert "read_share: median" in shown
    assert "no model is called 'gemma-9'" in run("every_size.py", "--only", "gemma-9", ok=False).stderr
