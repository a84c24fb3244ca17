"""Packed copies on the command line: kept after the text, listed, deleted, and never in the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gemmary.checkpoints import hub, kept, packed
from tests.cli.conftest import Gemmary
from tests.runs import why_absent

pytestmark = pytest.mark.skipif(why_absent("native") is not None, reason=str(why_absent("native")))
QUICK = ("--max-tokens", 4, "--temperature", 0, "--threads", 1)
KEPT = "a packed copy of "


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.VARIABLE, raising=False)
    monkeypatch.setattr(kept, "LEAST_BYTES", 1)


@pytest.fixture
def pulled(base_model: Path) -> Path:
    """A model in the hub's cache, as google/gemma-3-270m."""
    folder = hub.repo_folder("google/gemma-3-270m")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("c0ffee")
    return Path(shutil.copytree(base_model, folder / "snapshots" / "c0ffee"))


def test_a_copy_is_kept_after_the_text_and_used(gemmary_command: Gemmary, base_model: Path) -> None:
    first = gemmary_command("run", base_model, "abc", *QUICK)
    description, speed, *progress, note = first.err.splitlines()
    assert "native engine" in description
    assert "tokens/s" in speed
    assert note.startswith(f"note: {KEPT}{base_model.name} (")
    assert str(kept.home()) in note
    assert "GEMMARY_KEEP_PACKED=0 turns this off" in note
    assert progress[-1] == "writing weights: 100 %"
    assert len(kept.copies()) == 1
    second = gemmary_command("run", base_model, "abc", *QUICK)
    assert second.out == first.out
    assert second.err.splitlines()[0] == description
    assert KEPT not in second.err
    talked = gemmary_command("chat", base_model, *QUICK, stdin="abc\n")
    assert talked.code == 0
    assert KEPT not in talked.err


@pytest.mark.parametrize("value", [None, "0"])
def test_none_is_kept_of_little_or_where_it_is_turned_off(
    gemmary_command: Gemmary, base_model: Path, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.setattr(kept, "LEAST_BYTES", 100_000_000)
    else:
        monkeypatch.setenv(kept.VARIABLE, value)
    assert KEPT not in gemmary_command("run", base_model, "abc", *QUICK).err
    assert not kept.home().exists()


def test_a_full_disk_is_one_line(gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "write", full)
    done = gemmary_command("run", base_model, "abc", *QUICK)
    assert done.code == 0
    assert done.out.strip()
    assert done.err.splitlines()[-1].startswith(f"note: no packed copy of {base_model.name} was kept: cannot write ")
    assert kept.copies() == []


def test_ctrl_c_leaves_nothing(gemmary_command: Gemmary, base_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packed, "write", interrupted)
    done = gemmary_command("run", base_model, "abc", *QUICK)
    assert done.code == 130
    assert done.out.strip()
    assert [file.name for file in kept.home().iterdir()] == [".lock"]


def test_list_and_rm(gemmary_command: Gemmary, pulled: Path, base_model: Path) -> None:
    for model in ("gemma-3-270m", base_model):
        assert gemmary_command("run", model, "abc", *QUICK).code == 0
    found = {row["name"]: row for row in json.loads(gemmary_command("list", "--json").out)}
    sizes = {str(held.source): held.size for held in kept.copies()}
    assert found["gemma-3-270m"]["packed_bytes"] == sizes[str(pulled)]
    own = found[str(base_model)]
    assert (own["packed_bytes"], own["complete"]) == (sizes[str(base_model)], True)
    assert own["bytes"] == sum(file.stat().st_size for file in base_model.iterdir())
    assert "MB" in gemmary_command("list").out or "bytes" in gemmary_command("list").out
    assert f"rm --packed {base_model}" in gemmary_command("rm", base_model, "--yes").error
    assert gemmary_command("rm", "--packed", base_model).out.startswith("deleted packed copies: ")
    assert [held.source for held in kept.copies()] == [pulled]
    assert base_model.exists()
    gemmary_command("rm", "gemma-3-270m", "--yes")
    assert kept.copies() == []


def test_rm_of_all_copies(gemmary_command: Gemmary, pulled: Path) -> None:
    gemmary_command("run", "gemma-3-270m", "abc", *QUICK)
    assert "are free again" in gemmary_command("rm", "--packed").out
    assert kept.copies() == []
    assert pulled.exists()
    assert gemmary_command("rm", "--packed").out == "deleted packed copies: 0 bytes are free again\n"
    assert "say which model" in gemmary_command("rm").error
