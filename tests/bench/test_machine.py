"""The ceilings as Python asks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary import GemmaryError, memory
from gemmary.bench import Ceilings, Machine, Spread, processor_name, read_bandwidth
from gemmary.bench import machine as module


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_BYTES", 1 << 20)


def test_looks_are_positive() -> None:
    machine = Machine(threads=2)
    assert machine.threads == 2
    assert min(machine.read(0), machine.int8(0.001), machine.float32(0.001)) > 0
    assert read_bandwidth(1, seconds=0) > 0


def test_ceilings_of_the_named_instruction_sets() -> None:
    (found,) = module.ceilings(1, ["scalar"], repeat=1)
    assert isinstance(found, Ceilings)
    assert (found.isa, found.threads, len(found.read.runs)) == ("scalar", 1, 1)
    assert isinstance(found.read, Spread)


def test_refusals_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GemmaryError, match="choose one of scalar"):
        Machine(isa="mmx")
    with pytest.raises(GemmaryError, match="threads must be between"):
        Machine(threads=100_000)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(GemmaryError, match="the probe of memory needs about 1 MB"):
        Machine(threads=1).read()


def test_the_processor_has_a_name(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: A B\n\nprocessor\t: 1\n")
    assert processor_name(info) == "A B (family 25, model 1)"
    info.write_text("model name : C\n")
    assert processor_name(info) == "C"
    assert processor_name(tmp_path / "absent")
