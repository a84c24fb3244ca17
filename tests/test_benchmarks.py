"""The benchmark scripts run, at a size that measures nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_peers(starter_gguf: Path) -> None:
    small = ("--peers", "gemmary", "--prefill", "20", "--decode", "3", "--repeat", "2", "--json")
    (row,) = json.loads(run("peers.py", "--model", str(starter_gguf), *small))
    assert row["name"].startswith("Gemmary")
    assert row["prefill_tokens_per_s"]["min"] <= row["prefill_tokens_per_s"]["median"]
    assert row["decode_tokens_per_s"]["median"] > 0
    assert row["peak_rss_bytes"] > starter_gguf.stat().st_size


def test_speculation(starter_gguf: Path) -> None:
    lines = run("speculation.py", "--model", str(starter_gguf), "--tokens", "24", "--repeat", "1").splitlines()
    assert [line.split(" tokens/s")[0].strip() for line in lines] == ["copying", "writing freely"]
    assert all(line.endswith("text the same") for line in lines)


def test_output_head(starter_gguf: Path) -> None:
    small = ("--tokens", "6", "--repeat", "1", "--positions", "3")
    lines = run("output_head.py", "--model", str(starter_gguf), *small).splitlines()
    assert lines[0].startswith("high halves 94.4 MB")
    assert lines[3].endswith("text the same")
    names = [line.split("  ")[0].strip() for line in lines[4:]]
    assert names == ["full head", "1 wanted", "2 wanted", "4 wanted", "8 wanted"]


def test_output_head_bounds(starter_gguf: Path) -> None:
    small = ("--rows", "2048", "--positions", "2")
    lines = run("output_head_bounds.py", "--model", str(starter_gguf), *small).splitlines()
    shares = [[float(cell) for cell in line.split("|")[2:6]] for line in lines[2:]]
    assert len(shares) == 10
    assert all(0 < share <= 100 for row in shares for share in row)
