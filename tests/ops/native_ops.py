"""The native engine's ops one at a time: each call is traced as a program of one instruction and run on numpy arrays.

float32 weights and cache, so that what is compared with the oracle is each kernel and not a format's rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gemmary.quantize.leaves import Affine, Dense, Leaf
from tests.ops.cases import Activation, Angles, Array, AttentionCase, Case, Integers, Rows, Table, Weight


@dataclass(frozen=True)
class Fed:
    """An array whose rows are those of `places`."""

    array: Array


class NativeOps:
    """`gemmary.ops.spec.Ops` on arrays [T, width] or [T, heads, H], eagerly."""

    def __init__(self, threads: int = 2, isa: str | None = None) -> None:
        _core = pytest.importorskip("gemmary._core", reason="the native core is not built")
        from gemmary.engines import native_weights, trace

        self.core, self.weights, self.trace = _core, native_weights, trace
        self.runtime = _core.Runtime(threads, isa)

    def _run(self, op: str, operands: Sequence[Any], **step: Any) -> Array:
        """Traces `op` on symbolic twins of the arrays among `operands` and runs it on them."""
        ops = self.trace.TraceOps()
        arrays: list[Array] = []
        values: list[Any] = []

        def twin(operand: Any) -> Any:
            rows = "P" if isinstance(operand, Fed) else "T"
            array = operand.array if isinstance(operand, Fed) else operand
            if not isinstance(array, np.ndarray):
                return operand
            width = int(np.prod(array.shape[1:]))
            arrays.append(np.ascontiguousarray(array.reshape(len(array), width), dtype=np.float32))
            values.append(ops.value(rows, width, array.shape[1] if array.ndim == 3 else 1))
            return values[-1]

        result = getattr(ops, op)(*[twin(operand) for operand in operands])
        out = result[0] if op == "attention" else result
        tokens = step["tokens"] if "tokens" in step else np.zeros(len(arrays[0]), np.int32)
        outputs = step.get("outputs", np.zeros(0, np.int32))
        sequences = step.get("sequences", (slice(0, len(tokens)),))
        rows = {"T": len(tokens), "R": len(outputs), "S": len(sequences), "G": len(tokens) // ops.group}
        arrays.append(np.full((rows[out.rows], out.width), np.nan, np.float32))
        visible = [step["visible"]] if "visible" in step else []
        program = self.trace.compile_trace(self.core, self.runtime, ops, [*values, out], len(visible))
        program.run(
            tokens,
            step.get("positions", np.arange(len(tokens), dtype=np.int32)),
            visible,
            outputs,
            np.array([(s.start, s.stop) for s in sequences], np.int32).reshape(-1, 2),
            step.get("caches", []),
            arrays,
            places=step.get("places"),
        )
        return arrays[-1].reshape(len(arrays[-1]), out.heads, -1) if out.heads > 1 else arrays[-1]

    def _weight(self, leaf: Leaf) -> Any:
        plain = np.ascontiguousarray(leaf.dequantize())
        data = plain if plain.ndim == 1 else self.weights.pack(self.runtime, Dense(plain), "F32")
        return self.trace.Weight("weight", data, bias=leaf.bias if isinstance(leaf, Affine) else None)

    def embed(self, table: Leaf, tokens: Array, scale: float) -> Array:
        return self._run("embed", [self._weight(table), None, scale], tokens=tokens)

    def linear(self, x: Array, weight: Leaf) -> Array:
        return self._run("linear", [x, self._weight(weight)])

    def rms_norm(self, x: Array, weight: Leaf, eps: float) -> Array:
        return self._run("rms_norm", [x, self._weight(weight), eps])

    def layer_norm(self, x: Array, weight: Leaf, eps: float) -> Array:
        return self._run("layer_norm", [x, self._weight(weight), eps])

    def split_heads(self, x: Array, heads: int) -> Array:
        return x.reshape(len(x), heads, -1)

    def rope_angles(self, positions: Array, frequencies: tuple[float, ...]) -> Array:
        return self._run("rope_angles", [None, frequencies], positions=positions, tokens=np.zeros_like(positions))

    def rope(self, x: Array, angles: Array) -> Array:
        return self._run("rope", [x, angles])

    def attention(
        self, q: Array, k: Array, v: Array, cache: Any, layer: int, visible: Array, scale: float, softcap: float | None
    ) -> tuple[Array, Any]:
        """cache: the `KvCache`s of the sequences and the rows of each."""
        caches, sequences = cache
        starts = [c.length for c in caches]
        ranges = [np.arange(n, n + s.stop - s.start) for n, s in zip(starts, sequences, strict=True)]
        out = self._run(
            "attention",
            [q, k, v, None, layer, 0, scale, softcap],
            positions=np.concatenate(ranges).astype(np.int32),
            sequences=sequences,
            visible=visible,
            caches=list(caches),
        )
        return out, cache

    def gelu(self, x: Array) -> Array:
        return self._run("gelu", [x])

    def geglu(self, gate: Array, up: Array) -> Array:
        return self._run("geglu", [gate, up])

    def add(self, x: Array, y: Array) -> Array:
        return self._run("add", [x, y])

    def place(self, x: Array, rows: Array, values: Array) -> Array:
        return self._run("place", [x, None, Fed(values)], places=rows)

    def pool(self, x: Array, count: int) -> Array:
        return self._run("pool", [x, count])

    def take(self, x: Array, rows: Array) -> Array:
        return self._run("take", [x, None], outputs=rows)

    def softcap(self, x: Array, cap: float) -> Array:
        return self._run("softcap", [x, cap])

    def mean_pool(self, x: Array, sequences: Sequence[slice]) -> Array:
        return self._run("mean_pool", [x, None], sequences=sequences)

    def l2_normalize(self, x: Array) -> Array:
        return self._run("l2_normalize", [x])

    def tap(self, name: str, x: Array) -> Array:
        return x


class NativeHarness:
    """`tests.ops.harness.Harness` on `NativeOps`."""

    def __init__(self, isa: str | None = None, relative: float = 0, absolute: float = 1e-6) -> None:
        self.ops = NativeOps(isa=isa)
        self.relative, self.absolute = relative, absolute

    def held(self, array: Array) -> Array:
        return array

    def held_leaf(self, leaf: Leaf) -> Leaf:
        return leaf

    def _argument(self, argument: Any) -> Any:
        match argument:
            case Activation(array) | Integers(array):
                return array
            case Weight(leaf) | Table(leaf):
                return leaf
            case Angles(positions, frequencies):
                return self.ops.rope_angles(positions, frequencies)
            case Rows(slices):
                return slices
        return argument

    def run(self, case: Case) -> Array:
        arguments = [self._argument(a) for a in case.arguments()]
        result: Array = getattr(self.ops, case.op)(*arguments)
        first = arguments[0]
        keeps_shape = isinstance(first, np.ndarray) and case.op in ("rope", "rms_norm")
        return result.reshape(first.shape) if keeps_shape else result

    def attention(self, case: AttentionCase) -> Array:
        caches = {
            s: self.ops.core.KvCache([n], case.kv_heads, case.head_dim, n, "float32", False)
            for s, n in case.lengths.items()
        }
        outs = []
        for call in case.calls():
            cache = ([caches[s] for s in call.sequences], call.rows)
            out, _ = self.ops.attention(call.q, call.k, call.v, cache, 0, call.visible, case.scale, case.softcap)
            outs.append(out.reshape(len(out), -1))
        return np.concatenate(outs)
