"""The probes of the machine do the work that their time is taken for: their sums say so, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary import _core

MIB = 1 << 18  # integers


@pytest.fixture(params=_core.available_isas())
def runtime(request: pytest.FixtureRequest) -> _core.Runtime:
    return _core.Runtime(2, request.param)


def test_reading_reads_every_number(runtime: _core.Runtime) -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(-(2**31), 2**31, 3 * MIB, dtype=np.int32)
    total, seconds = _core.probe_read(runtime, data)
    assert total == int(data.astype(np.int64).sum()) % 2**32
    assert seconds > 0
    with pytest.raises(ValueError, match="whole MiB"):
        _core.probe_read(runtime, data[:-1].copy())


def test_integer_products_are_all_made(runtime: _core.Runtime) -> None:
    for rounds in (1, 7, 100):
        total, multiply_adds, seconds = _core.probe_dot(runtime, rounds)
        assert total == multiply_adds > 0
        assert multiply_adds % rounds == 0
        assert seconds > 0


def test_fused_multiply_adds_are_all_made(runtime: _core.Runtime) -> None:
    for rounds in (1, 7, 100):
        total, multiply_adds, seconds = _core.probe_fma(runtime, rounds)
        assert total == multiply_adds > 0
        assert seconds > 0


@pytest.mark.parametrize("probe", [_core.probe_dot, _core.probe_fma])
def test_no_rounds(probe: object) -> None:
    with pytest.raises(ValueError, match="at least one round"):
        probe(_core.Runtime(1, None), 0)  # type: ignore[operator]
