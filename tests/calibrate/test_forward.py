"""The run of a text that tells what arrives where."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.calibrate.forward import run
from gemmary.checkpoints.tensors import tensors
from gemmary.engines import open_engine
from gemmary.quantize.leaves import Dense, Leaf
from tests.tiny import TINY, random_leaves, random_tokens

Double = npt.NDArray[np.float64]


def untouched(name: str, leaf: Leaf, hessian: Double) -> Leaf:
    return leaf


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_hidden_states_are_those_of_the_reference(name: str) -> None:
    config, lookup = TINY[name], random_leaves(TINY[name])
    ids = random_tokens(config, 23)
    waiting = {t.name for t in tensors(config) if t.name.startswith("layers.") and not t.is_norm}
    seen: list[str] = []

    def note(name: str, leaf: Leaf, hessian: Double) -> Leaf:
        seen.append(name)
        assert hessian.shape == (leaf.shape[1], leaf.shape[1])
        return leaf

    found = run(config, lookup, ids, waiting, note, sequence=10)
    engine = open_engine("reference", config, lookup)
    for start in (0, 10, 20):
        taps: dict[str, npt.NDArray[np.float32]] = {}
        chunk = Chunk(ids[start : start + 10])
        engine.step(Batch.of(config, [chunk]), [engine.new_cache(10)], taps)
        assert np.allclose(found[start : start + 10], taps["hidden"], atol=1e-5)
    assert sorted(seen) == sorted(waiting)
    assert seen.index("layers.0.down") < seen.index("layers.1.q")


def test_what_comes_later_sees_what_was_given() -> None:
    config, lookup = TINY["gemma2"], random_leaves(TINY["gemma2"])
    ids = random_tokens(config, 20)
    found: dict[str, Double] = {}

    def without_values(name: str, leaf: Leaf, hessian: Double) -> Leaf:
        found[name] = hessian
        return Dense(np.zeros(leaf.shape, np.float32)) if name == "layers.0.v" else leaf

    hidden = run(config, lookup, ids, {"layers.0.v", "layers.0.o", "layers.0.gate"}, without_values)
    assert not found["layers.0.o"].any()
    assert found["layers.0.gate"].any()
    assert not np.allclose(hidden, run(config, lookup, ids, set(), untouched))
