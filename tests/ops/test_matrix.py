"""Every op on every engine against the oracle in float64, at odd sizes.

Errors are per element. A float32 engine may be off by 1e-6 of the result's largest magnitude; a bfloat16 one by half a
unit in the last place besides, because every op rounds once: one that rounded inside would miss this.
"""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.ops.spec import Ops
from tests.ops.cases import ATTENTION, SIMPLE, Array, AttentionCase, Case
from tests.ops.harness import HARNESSES, Entry, Harness, ReferenceHarness

each_engine = pytest.mark.parametrize("entry", HARNESSES, ids=lambda entry: entry.name)


def assert_close(actual: Array, expected: Array, harness: Harness) -> None:
    assert actual.shape == expected.shape
    assert np.isfinite(expected).all()
    bound = harness.relative * np.abs(expected) + harness.absolute * np.abs(expected).max()
    excess = float((np.abs(actual - expected) - bound).max())
    assert excess <= 0


@each_engine
@pytest.mark.parametrize("case", SIMPLE, ids=lambda case: case.name)
def test_op(case: Case, entry: Entry) -> None:
    harness = entry.make()
    assert_close(harness.run(case), ReferenceHarness(np.float64, rounding=harness).run(case), harness)


@each_engine
@pytest.mark.parametrize("case", ATTENTION, ids=lambda case: case.name)
def test_attention(case: AttentionCase, entry: Entry) -> None:
    harness = entry.make()
    assert_close(harness.attention(case), ReferenceHarness(np.float64, rounding=harness).attention(case), harness)


def test_every_op_of_the_specification_is_in_the_matrix() -> None:
    specified = {name for name in vars(Ops) if not name.startswith("_")}
    covered = {case.op for case in SIMPLE} | {"attention", "rope_angles", "tap"}
    assert covered == specified
