"""`gemmary plan`, and the page that it makes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from gemmary import memory, plan
from gemmary.cli import console
from gemmary.cli import plan as command
from gemmary.plan import MachineSpeed
from gemmary.plan.page import page
from tests.cli.conftest import Gemmary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardware.md"
KEYS = (
    "weights_bytes kv_bytes activation_bytes optimizer_bytes total_bytes disk_bytes fits decode_tokens_per_s "
    "prefill_tokens_per_s"
)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with 12 GB to be had, measured long ago."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 12 * 10**9)
    speed = MachineSpeed("a processor", "avx2", 2, 25e9, 400e9, 150e9)
    monkeypatch.setattr("gemmary.plan.remembered_speed", lambda threads: speed)


def test_the_page_of_hardware_is_current(gemmary_command: Gemmary) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `gemmary plan --markdown > docs/hardware.md`"
    assert gemmary_command("plan", "--markdown").out == page()


def test_one_model(gemmary_command: Gemmary) -> None:
    done = gemmary_command("plan", "gemma-2-9b", "--devices", "cpu")
    assert done.code == 0
    first, second, third, *table = done.out.splitlines()
    assert first.startswith("gemma-2-9b at int4 with 8k context: 7.67 GB, about ")
    assert "fits into the 12.00 GB of cpu" in second
    assert "18.48 GB to download" in third
    assert [line.split()[0] for line in table[1:]] == ["format", "bfloat16", "int8", "int4"]


def test_json_has_the_names_of_every_figure(gemmary_command: Gemmary) -> None:
    found = json.loads(gemmary_command("plan", "gemma-2-9b", "--devices", "cpu,cuda:24GB", "--json").out)
    assert set(KEYS.split()) <= set(found)
    assert (found["quant"], found["fits"]) == ("int4", True)
    assert found["decode_tokens_per_s"] > 0
    assert [(each["device"], each["quant"]) for each in found["choices"]] == [
        ("cpu", "bfloat16"), ("cpu", "int8"), ("cpu", "int4"), ("cuda", "bfloat16"),
    ]  # fmt: skip


def test_what_does_not_fit_is_advised(gemmary_command: Gemmary) -> None:
    done = gemmary_command("plan", "gemma-2-9b", "--quant", "bfloat16", "--devices", "cpu")
    assert "does not fit into the 12.00 GB of cpu that can be had: int4 fits, with 7.67 GB" in done.out
    tight = gemmary_command("plan", "gemma-2-2b", "--task", "lora", "--batch", "4", "--devices", "cpu")
    assert "gradient checkpointing" in tight.out


def test_the_whole_series(gemmary_command: Gemmary) -> None:
    done = gemmary_command("plan", "--devices", "cpu")
    assert done.out.startswith("cpu: 12.00 GB can be had\n")
    rows = {line.split()[0]: line for line in done.out.splitlines()[2:]}
    assert " nothing " in rows["gemma-2-27b"]
    assert " int4 " in rows["gemma-2-9b"]
    found = json.loads(gemmary_command("plan", "--devices", "cpu", "--context", "1000", "--json").out)
    assert len(found) == len(rows)
    assert {each["context"] for each in found} == {1000}


def test_a_folder_and_mistakes(gemmary_command: Gemmary, base_model: Path) -> None:
    found = json.loads(gemmary_command("plan", base_model, "--json").out)
    assert found["download_bytes"] == 0 < found["disk_bytes"]
    assert "did you mean gemma-2-2b" in gemmary_command("plan", "gema-2-2b").error
    assert "no device is called 'tpu'" in gemmary_command("plan", "gemma-2-2b", "--devices", "tpu").error
    assert "own 8,192 tokens" in gemmary_command("plan", "gemma-2-2b", "--context", "9000").error


def test_a_machine_that_cannot_be_measured_has_no_speeds(
    gemmary_command: Gemmary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmary.plan.remembered_speed", lambda threads: None)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    done = gemmary_command("plan", "gemma-3-270m", "--devices", "cpu", "--json")
    assert "note: no tokens a second: the probe of memory needs" in done.err
    assert json.loads(done.out)["decode_tokens_per_s"] is None


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for out, variable, shown in (
        (Screen(), "", "\033[32ma b\033[0m\n"),
        (Screen(), "1", "a b\n"),
        (io.StringIO(), "", "a b\n"),
    ):
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setenv("NO_COLOR", variable)
        console.write_coloured("a b\n", "green")
        assert out.getvalue() == shown
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    monkeypatch.delenv("NO_COLOR")
    console.table([("x", "1"), ("y", "2")], ("n", "c"), ["red", None])
    assert screen.getvalue() == "n  c\n\033[31mx  1\033[0m\ny  2\n"


def test_the_choices_of_the_command_are_the_planners() -> None:
    """The command has its own, so that its help imports no planner."""
    assert command.TASKS == plan.TASKS
    assert tuple(plan.FORMATS) == command.FORMATS
