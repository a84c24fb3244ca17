"""The plan of a traced program's memory: nothing that is still needed is overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from gemmary.config import Config
from gemmary.engines.trace import IN_PLACE, TraceOps, Value, Weight, plan
from gemmary.model import decoder
from gemmary.model.leaves import Leaves
from tests.tiny import TINY, leaf_shapes


@dataclass(frozen=True)
class Shape:
    rows: int
    cols: int


def traced(config: Config) -> tuple[TraceOps, Value]:
    shapes = leaf_shapes(config)
    weights = Leaves(lambda name: Weight(name, Shape(*shapes[name]) if len(shapes[name]) == 2 else None))
    ops = TraceOps()
    step = decoder.Step(None, None, {kind: n for n, kind in enumerate(config.kinds)}, None)
    hidden, _ = decoder.hidden_states(ops, config, weights, step, None)
    return ops, decoder.logits(ops, config, weights, step, hidden)


def replay(ops: TraceOps, external: list[int]) -> dict[Any, int]:
    """Runs the plan with buffer numbers for contents; fails where an operand is not in its place any more."""
    planned = plan(ops, external)
    contents: dict[Any, int] = {}
    for instruction in ops.instructions:
        for operand in instruction.operands:
            assert contents[planned.places[operand]] == operand
        taken = {planned.places[operand] for operand in instruction.operands}
        for result in instruction.results:
            place = planned.places[result]
            assert instruction.op in IN_PLACE or place not in taken
            if not place.external:
                rows, width = planned.slots[place.index]
                assert (rows, width >= ops.shapes[result][1]) == (ops.shapes[result][0], True)
            contents[place] = result
    return contents


@pytest.mark.parametrize("name", TINY)
def test_no_buffer_is_overwritten_before_its_last_use(name: str) -> None:
    ops, out = traced(TINY[name])
    assert out.buffer in replay(ops, [out.buffer]).values()


@pytest.mark.parametrize("name", TINY)
def test_tapped_buffers_keep_what_was_written(name: str) -> None:
    ops, _ = traced(TINY[name])
    tapped = list(dict.fromkeys(value.buffer for value in ops.taps.values()))
    assert set(tapped) <= set(replay(ops, tapped).values())


def test_memory_does_not_grow_with_the_number_of_layers() -> None:
    one, many = (traced(TINY[name])[0] for name in ("gemma3-mqa", "gemma3"))
    slots = [len(plan(ops, []).slots) for ops in (one, many)]
    assert max(slots) < 12


def test_projections_of_one_input_become_one_instruction() -> None:
    ops, _ = traced(TINY["gemma2"])
    linears = [i for i in ops.instructions if i.op == "linear"]
    assert [len(i.results) for i in linears[:4]] == [3, 1, 2, 1]
    assert linears[0].label == "linear layers.0.q+k+v"


def test_logits_are_capped_where_they_were_computed() -> None:
    ops, out = traced(TINY["gemma2"])
    planned = plan(ops, [out.buffer])
    capped = ops.instructions[-1]
    assert capped.op == "softcap"
    assert planned.places[capped.operands[0]] == planned.places[out.buffer]
