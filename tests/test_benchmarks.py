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


def test_attention() -> None:
    lines = run("attention.py", "--repeat", "1", "--most", "512", "--bytes", "1", "--threads", "2").splitlines()
    assert [line.split()[0] for line in lines] == ["decode", "prefill", "decode", "prefill", "prefill"] * 3
    assert all("GB/s of" in line or "GFLOP/s" in line for line in lines)


def test_speculation(starter_gguf: Path) -> None:
    lines = run("speculation.py", "--model", str(starter_gguf), "--tokens", "24", "--repeat", "1").splitlines()
    assert [line.split(" tokens/s")[0].strip() for line in lines] == ["copying", "writing freely"]
    assert all(line.endswith("text the same") for line in lines)
