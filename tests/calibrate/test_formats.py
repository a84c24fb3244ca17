"""The choice of formats: budgets kept, costs spent where they are highest."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.calibrate import formats
from gemmary.calibrate.formats import bits, bits_per_weight, cheapest, mixed, sensitivity, stretches, uniform
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.mixes import kind_of
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Dense
from tests.tiny import TINY, random_leaves, random_tokens


def checkpoint(name: str, scale: dict[str, float] | None = None) -> Checkpoint:
    config, lookup = TINY[name], random_leaves(TINY[name])

    def leaf(name: str) -> Dense:
        return Dense(lookup(name).dequantize() * np.float32((scale or {}).get(kind_of(name), 1.0)))

    class Anything(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return partial(leaf, name)

    return Checkpoint(Path(name), "random", config, name, Anything(), lambda: None, lambda: None)  # type: ignore[arg-type,return-value]


def test_bits_count_the_scales() -> None:
    assert [bits(f) for f in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")] == [4.5, 5.0, 5.5, 8.5]


def test_the_table_may_have_a_format_of_its_own() -> None:
    model = checkpoint("gemma3-q32")
    found = uniform(model, "Q4_0", "Q8_0")
    assert found["embed"] == "Q8_0"
    assert found["layers.6.down"] == "Q4_0"
    assert not any(name.endswith("norm") for name in found)
    counted = bits_per_weight(model, found)
    assert (counted["embed"], counted["others"]) == (8.5, 4.5)
    assert 4.5 < counted["all"] < 8.5


def test_rows_that_do_not_divide_are_named() -> None:
    with pytest.raises(GemmaryError, match=r"gemma3 cannot be quantized: in embed rows of 44 weights"):
        uniform(checkpoint("gemma3"), "Q4_0")


def test_bits_go_where_they_save_most() -> None:
    weights = {"embed": 100, "down": 10, "q": 10}
    costs = {"embed": 1.0, "down": 1.0, "q": 0.01}
    assert cheapest(weights, costs, 4.5) == {"embed": 0, "down": 0, "q": 0}
    assert cheapest(weights, costs, 4.5 + 11 / 120) == {"embed": 0, "down": 1, "q": 0}
    assert cheapest(weights, costs, 4.5 + 111 / 120) == {"embed": 1, "down": 1, "q": 0}
    assert set(cheapest(weights, costs, 8.5).values()) == {len(formats.LADDER) - 1}


def test_a_mix_keeps_to_its_bits() -> None:
    model = checkpoint("gemma3-q32")
    ids = random_tokens(model.config, 60)
    calls: list[tuple[int, int]] = []
    found = mixed(model, 5.25, ids, lambda done, total: calls.append((done, total)))
    assert 4.5 < bits_per_weight(model, found)["all"] <= 5.25
    assert {found[f"layers.{i}.up"] for i in range(7)} == {found["layers.0.up"]}
    assert calls[-1] == (8, 8)
    with pytest.raises(GemmaryError, match=r"at least 4\.5 bits a weight \(Q4_0\), not 4\.25"):
        mixed(model, 4.25, ids, lambda done, total: None)


def test_what_says_more_costs_more() -> None:
    """A branch that is next to nothing before the norm after it is not; one whose inputs are: values all alike."""
    model = checkpoint("gemma-q32", {"layers.o": 1e-3})
    found = sensitivity(model, "Q4_0", ["layers.o", "layers.down"], random_tokens(model.config, 40), lambda *_: None)
    assert 0 <= found["layers.o"] < 0.1 * found["layers.down"]


def test_stretches_are_from_all_of_a_text() -> None:
    ids = list(range(5000))
    found = stretches(ids)
    assert len(found) == formats.TOKENS
    assert (found[0], found[-1]) == (0, 4999)
    assert found[: formats.STRETCH] == ids[: formats.STRETCH]
    assert stretches(ids[:100]) == ids[:100]


def test_an_embedding_model_gets_one_format() -> None:
    with pytest.raises(GemmaryError, match="predicts no tokens"):
        mixed(checkpoint("embeddinggemma-q32"), 6, [1, 2, 3], lambda done, total: None)
