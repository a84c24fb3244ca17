"""`--adapter` and `gemmary merge` on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.checkpoints.peft import write_adapter
from tests.checkpoints.adapters import random_adapter
from tests.cli.conftest import Gemmary
from tests.tiny import TINY

QUICK = ("--max-tokens", 8, "--temperature", 0)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "tuned", random_adapter(TINY["gemma3"]))
    return tmp_path / "tuned"


def test_run_with_an_adapter(gemmary_command: Gemmary, base_model: Path, tuned: Path) -> None:
    plain = gemmary_command("run", base_model, "abc", *QUICK)
    done = gemmary_command("run", base_model, "abc", "--adapter", tuned, *QUICK)
    assert done.code == 0
    assert done.out != plain.out
    assert done.err.splitlines()[0].endswith("adapter tuned (LoRA, rank 3)")
    assert gemmary_command("run", base_model, "abc", "--adapter", base_model).error.endswith("no adapter_config.json")


def test_merge(gemmary_command: Gemmary, base_model: Path, tuned: Path, tmp_path: Path) -> None:
    done = gemmary_command("merge", base_model, tuned, "--out", tmp_path / "merged")
    assert done.code == 0
    assert "NOT the same" not in done.out
    assert done.out.splitlines()[-1].endswith("of safetensors, float32")
    adapted = gemmary_command("run", base_model, "abc", "--adapter", tuned, *QUICK)
    assert gemmary_command("run", tmp_path / "merged", "abc", *QUICK).out == adapted.out
    compared = ("verify", base_model, "--adapter", tuned, "--tokens", 40)
    assert gemmary_command(*compared, "--against", tmp_path / "merged").code == 0
    assert gemmary_command(*compared, "--against", base_model).code == 1
    assert gemmary_command(*compared, "--engine", "reference").code == 0
    assert "already exists" in gemmary_command("merge", base_model, tuned, "--out", tmp_path / "merged").error
