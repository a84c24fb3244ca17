"""The programs of a model, each the trace of what ends in one tap, and what they are fed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary import _core
from gemmary._core import KvCache
from gemmary.batch import Batch
from gemmary.config import Config
from gemmary.engines import Logits
from gemmary.engines.native_weights import core_errors
from gemmary.engines.trace import TraceOps, Value, Weight, compile_trace
from gemmary.model import decoder, vision
from gemmary.model.leaves import Leaves

LOGITS, SENTENCES, PICTURES = "logits", "sentence_embedding", "vision.embeddings"
"""The taps that programs end in."""
_NO_ROWS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Compiled:
    """A program, and the names of the arrays that it fills, the result first."""

    program: Any
    outputs: dict[str, Value]
    group: int = 1
    """Tokens of a group."""

    def arrays(self, tokens: int, outputs: int = 0, sequences: int = 0) -> dict[str, Logits]:
        """Room for what a run with so many rows of each kind fills."""
        counts = {"T": tokens, "R": outputs, "S": sequences, "G": tokens // self.group}
        return {
            name: np.empty((counts[value.rows], value.width), dtype=np.float32) for name, value in self.outputs.items()
        }


@dataclass(frozen=True)
class Traced:
    """What a program computes, recorded."""

    ops: TraceOps
    inputs: tuple[Value, ...]
    """What the caller brings besides tokens."""
    out: Value
    kinds: int
    """How many arrays of visible keys a step has."""


def traced(config: Config, lookup: Callable[[str], Weight], result: str) -> Traced:
    """The trace of what ends in the tap called `result`."""
    ops, weights = TraceOps(), Leaves(lookup)
    inputs: list[Value] = []
    if result == PICTURES:
        assert config.vision is not None
        kinds = 1
        inputs.append(ops.value("T", config.vision.patch_values))
        out = vision.embeddings(ops, config, weights, vision.Pictures(inputs[0], None, 0), None)
    else:
        kinds = len(config.kinds)
        if config.vision:
            inputs.append(ops.value("P", config.hidden_size))
        seen = {kind: n for n, kind in enumerate(config.kinds)}
        step = decoder.Step(None, None, seen, None, (None, inputs[0]) if inputs else None)
        hidden, _ = decoder.hidden_states(ops, config, weights, step, None)
        if result == LOGITS:
            out = decoder.logits(ops, config, weights, step, hidden)
        else:
            out = decoder.sentence_embedding(ops, config, weights, None, hidden)
    return Traced(ops, tuple(inputs), out, kinds)


def compile_program(
    runtime: Any, config: Config, lookup: Callable[[str], Weight], result: str, tapped: bool
) -> Compiled:
    """The program that ends in the tap called `result`; with all taps, or with that one."""
    trace = traced(config, lookup, result)
    outputs = {result: trace.out} | (trace.ops.taps if tapped else {})
    with core_errors():
        program = compile_trace(_core, runtime, trace.ops, [*trace.inputs, *outputs.values()], trace.kinds)
    return Compiled(program, outputs, trace.ops.group)


def run_step(compiled: Compiled, config: Config, batch: Batch, caches: Sequence[KvCache]) -> dict[str, Logits]:
    """One step of a program of the decoder: what it fills."""
    arrays = compiled.arrays(len(batch.tokens), len(batch.outputs), len(batch.sequences))
    inputs, places = [], None
    if config.vision:
        nothing = _NO_ROWS, np.empty((0, config.hidden_size), dtype=np.float32)
        places, values = batch.pictures or nothing
        inputs.append(np.ascontiguousarray(values, dtype=np.float32))
    with core_errors(f"a step of {len(batch.tokens)} tokens"):
        compiled.program.run(
            batch.tokens,
            batch.positions,
            [batch.visible[kind] for kind in config.kinds],
            batch.outputs,
            _ranges(batch.sequences),
            list(caches),
            [*inputs, *arrays.values()],
            candidates=batch.candidates,
            adapters=np.array(batch.adapters, dtype=np.int32) if any(batch.adapters) else None,
            places=places,
        )
    return arrays


def run_tower(
    compiled: Compiled, fed: vision.Pictures, rows: Sequence[slice], caches: Sequence[KvCache], adapter: int
) -> dict[str, Logits]:
    """The tower, with an adapter or 0, on pictures, whose patches are `rows`: what it fills. As many pictures as there
    are caches run at once; a cache serves a picture after another, and nothing of one is left for the next."""
    arrays = compiled.arrays(len(fed.positions))
    for first in range(0, len(rows), len(caches)):
        now = rows[first : first + len(caches)]
        part = slice(now[0].start, now[-1].stop)
        parts = {"T": part, "G": slice(part.start // compiled.group, part.stop // compiled.group)}
        for cache in caches:
            cache.reset()
        with core_errors(f"{len(now)} pictures at once"):
            compiled.program.run(
                fed.positions[part],  # what the table of positions is asked for
                np.concatenate([np.arange(each.stop - each.start, dtype=np.int32) for each in now]),
                [fed.visible[part]],
                _NO_ROWS,
                _ranges([slice(each.start - part.start, each.stop - part.start) for each in now]),
                list(caches[: len(now)]),
                [fed.patches[part], *(array[parts[compiled.outputs[name].rows]] for name, array in arrays.items())],
                adapters=np.full(len(now), adapter, dtype=np.int32) if adapter else None,
            )
    return arrays


def _ranges(rows: Sequence[slice]) -> npt.NDArray[np.int32]:
    return np.array([(each.start, each.stop) for each in rows], dtype=np.int32).reshape(-1, 2)
