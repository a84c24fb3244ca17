"""The thread pool and the executor, compiled with the thread sanitizer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "adapter pool runtime program cost executor head kv_cache packed formats activations pack unpack"


def test_no_races(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ to compile the test with")
    csrc = ROOT / "src/gemmary/csrc"
    program = tmp_path / "race"
    flags = ["-std=c++20", "-O1", "-g0", "-fsanitize=thread", "-pthread", "-ffp-contract=off", f"-I{csrc}"]
    files = [str(csrc / f"{name}.cc") for name in SOURCES.split()] + [str(Path(__file__).with_name("race.cc"))]
    built = subprocess.run([compiler, *flags, *files, "-o", str(program)], capture_output=True, text=True)
    if "cannot find" in built.stderr and "tsan" in built.stderr:
        pytest.skip("this compiler has no thread sanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([program], capture_output=True, text=True)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the thread sanitizer does not run with this kernel's memory layout")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "no race" in ran.stdout
