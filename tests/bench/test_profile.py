"""The model of the time: roles, sums and bounds, worked out by hand."""

from __future__ import annotations

import pytest

from gemmary.bench import Ceilings, Operation, Phase, Spread
from gemmary.bench.profile import BETWEEN, operations, role
from gemmary.engines.native import Timing

# 10 bytes, 100 integer and 20 float32 operations a second.
AT = Ceilings("scalar", 1, *(Spread.of([value]) for value in (10.0, 100.0, 20.0)))


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("linear layers.3.gate+up", "gate+up"),
        ("linear layers.17.down", "down"),
        ("linear layers.0.q+k+v", "q+k+v"),
        ("linear layers.0.o", "attention out"),
        ("linear embed", "head"),
        ("embed embed", "embedding"),
        ("attention layers.2", "attention"),
        ("rms_norm layers.2.attn_norm", "norms"),
        ("rope_angles", "rope"),
        ("rope", "rope"),
        ("geglu", "geglu"),
    ],
)
def test_roles(label: str, expected: str) -> None:
    assert role(label) == expected


def test_timings_are_summed_by_role_for_a_pass() -> None:
    timings = [
        Timing("linear layers.0.down", 1.0, 10, 0, 4, 100, 0),
        Timing("add", 0.5, 0, 0, 6, 0, 2),
        Timing("linear layers.1.down", 2.0, 20, 0, 4, 100, 0),
    ]
    found = operations(timings, seconds=5.0, passes=2)
    assert found == (
        Operation("down", 1.5, 15, 0, 4, 100, 0),
        Operation(BETWEEN, 0.75),
        Operation("add", 0.25, 0, 0, 3, 0, 1),
    )


def test_the_bound_is_the_longer_time() -> None:
    by_memory = Operation("a", 4.0, weight_bytes=20, cache_bytes=5, activation_bytes=5, int8_operations=100)
    by_int8 = Operation("b", 4.0, weight_bytes=10, int8_operations=300, float_operations=20)
    by_float = Operation("c", 4.0, activation_bytes=1, float_operations=30)
    nothing = Operation("d", 8.0)
    assert [each.bound_s(AT) for each in (by_memory, by_int8, by_float, nothing)] == [3.0, 4.0, 1.5, 0.0]
    assert [each.bound_by(AT) for each in (by_memory, by_int8, by_float, nothing)] == ["memory", "int8", "float32", "-"]
    phase = Phase("decode", 1, 1, Spread.of([20.0]), (by_memory, by_int8, by_float, nothing), AT)
    assert phase.total == Operation("all", 20.0, 30, 5, 6, 400, 50)
    assert (phase.bound_s, phase.accounted) == (8.5, 8.5 / 20)
    assert phase.read_share == pytest.approx(35 / 20 / 10)
