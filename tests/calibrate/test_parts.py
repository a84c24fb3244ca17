"""What is kept of a job, and for whom."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from gemmary.calibrate.parts import open_parts
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import quantize

DATA = quantize("Q4_0", np.random.default_rng(0).standard_normal((20, 64)).astype(np.float32))


class Killed(BaseException):
    """What ends a run in its middle."""


def left_by_a_killed_run(out: Path, job: dict[str, int]) -> None:
    """One part, kept by a job that never ended."""
    with suppress(Killed), open_parts(out, job) as parts:
        parts.put("a", "Q4_0", (20, 64), [DATA[:16], DATA[16:]])
        assert parts.get("b", "Q4_0", (20, 64)) is None
        raise Killed


def test_parts_are_kept_until_all_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    left_by_a_killed_run(out, {"job": 1})
    with open_parts(out, {"job": 1}) as parts:
        assert len(parts) == 1
        found = parts.get("a", "Q4_0", (20, 64))
        assert found is not None
        assert np.array_equal(found.data, DATA)
        assert parts.get("a", "Q8_0", (20, 64)) is None  # not of that size
    assert list(tmp_path.iterdir()) == []


def test_half_a_part_is_none(tmp_path: Path) -> None:
    def broken() -> object:
        yield DATA[:16]
        raise Killed

    with pytest.raises(Killed), open_parts(tmp_path / "out", {}) as parts:
        parts.put("a", "Q4_0", (20, 64), broken())  # type: ignore[arg-type]
    with open_parts(tmp_path / "out", {}) as parts:
        assert parts.get("a", "Q4_0", (20, 64)) is None


def test_another_job_begins_anew(tmp_path: Path) -> None:
    left_by_a_killed_run(tmp_path / "out", {"job": 1})
    with open_parts(tmp_path / "out", {"job": 2}) as parts:
        assert len(parts) == 0


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        open_parts(tmp_path / "out", {}),
        pytest.raises(GemmaryError, match="another process is writing"),
        open_parts(tmp_path / "out", {}),
    ):
        pass
