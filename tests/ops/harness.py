"""How each engine runs a case of the op cross-matrix. A new engine joins by one more line in `HARNESSES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import pytest

from gemmary.ops.reference import ReferenceOps, SequenceCache, StepCache
from gemmary.quantize.leaves import Affine, Dense, Leaf
from tests.ops.cases import Activation, Angles, Array, AttentionCase, Case, Integers, Rows, Table, Weight
from tests.ops.native_ops import NativeHarness


class Harness(Protocol):
    """relative: how far each element may be from the float64 oracle's, relative to it. absolute: plus this much of
    the result's largest magnitude."""

    relative: float
    absolute: float

    def held(self, array: Array) -> Array:
        """A float32 input as the engine holds it: rounded to the dtype of its activations, float32 again."""
        ...

    def held_leaf(self, leaf: Leaf) -> Leaf:
        """A weight as the engine holds it: itself, or what it is rounded to when it is read."""
        ...

    def run(self, case: Case) -> Array: ...

    def attention(self, case: AttentionCase) -> Array:
        """The outputs of all calls, one after another [rows, N*H]."""
        ...


class ReferenceHarness:
    """numpy, in float32 or float64; `rounding` is that of the engine whose inputs it is given."""

    def __init__(
        self, dtype: Any = np.float32, relative: float = 0, absolute: float = 1e-6, rounding: Harness | None = None
    ) -> None:
        self.ops = ReferenceOps(dtype)
        self.relative, self.absolute, self.rounding = relative, absolute, rounding

    def held(self, array: Array) -> Array:
        return self.rounding.held(array) if self.rounding else array

    def held_leaf(self, leaf: Leaf) -> Leaf:
        return self.rounding.held_leaf(leaf) if self.rounding else leaf

    def _activation(self, array: Array) -> Array:
        return self.held(array).astype(self.ops.dtype)

    def _argument(self, argument: Any) -> Any:
        match argument:
            case Activation(array):
                return self._activation(array)
            case Weight(leaf) | Table(leaf):
                return self.held_leaf(leaf)
            case Integers(array):
                return array
            case Angles(positions, frequencies):
                return self.ops.rope_angles(positions, frequencies)
            case Rows(slices):
                return slices
        return argument

    def run(self, case: Case) -> Array:
        result: Array = getattr(self.ops, case.op)(*[self._argument(a) for a in case.arguments()])
        return result

    def attention(self, case: AttentionCase) -> Array:
        caches = {sequence: SequenceCache() for sequence in case.lengths}
        outs = []
        for call in case.calls():
            step = StepCache([caches[s] for s in call.sequences], call.rows)
            q, k, v = (self._activation(array) for array in (call.q, call.k, call.v))
            outs.append(self.ops.attention(q, k, v, step, 0, call.visible, case.scale, case.softcap)[0])
        return np.concatenate(outs)


class TorchHarness:
    """PyTorch, in float32 or bfloat16."""

    def __init__(self, dtype: str, relative: float, absolute: float) -> None:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        from gemmary.engines import torch_ops

        self.torch, self.module = torch, torch_ops
        self.dtype = getattr(torch, dtype)
        self.ops = torch_ops.TorchOps(self.dtype)
        self.relative, self.absolute = relative, absolute

    def held(self, array: Array) -> Array:
        if self.dtype == self.torch.float32:
            return array
        return array.astype(ml_dtypes.bfloat16).astype(np.float32)

    def held_leaf(self, leaf: Leaf) -> Leaf:
        dense = Dense(self.held(leaf.dequantize()))
        return Affine(dense, self.held(leaf.bias)) if isinstance(leaf, Affine) else dense

    def _tensor(self, array: Array) -> Any:
        return self.torch.tensor(array).to(self.dtype)

    def _weight(self, leaf: Leaf, module: Callable[..., Any]) -> Any:
        made = module(*reversed(leaf.shape))
        made.weight = self.torch.nn.Parameter(self._tensor(leaf.dequantize()))
        if isinstance(leaf, Affine):
            made.bias = self.torch.nn.Parameter(self._tensor(leaf.bias))
        return made

    def _argument(self, argument: Any) -> Any:
        nn = self.torch.nn
        match argument:
            case Activation(array):
                return self._tensor(array)
            case Weight(leaf) if len(leaf.shape) == 1:
                return self._weight(leaf, self.module.LayerNorm if isinstance(leaf, Affine) else self.module.RMSNorm)
            case Weight(leaf):
                return self._weight(leaf, lambda i, o: nn.Linear(i, o, bias=isinstance(leaf, Affine)))
            case Table(leaf):
                return self.module.TokenTable(
                    self._weight(leaf, lambda i, o: nn.Embedding(o, i)),
                    self._weight(leaf, lambda i, o: self.module.Head(i, o, bias=False)),
                )
            case Integers(array):
                return self.torch.tensor(array, dtype=self.torch.int64)
            case Angles(positions, frequencies):
                return self.ops.rope_angles(self.torch.tensor(positions), frequencies)
            case Rows(slices):
                return slices
        return argument

    def run(self, case: Case) -> Array:
        with self.torch.inference_mode():
            out = getattr(self.ops, case.op)(*[self._argument(a) for a in case.arguments()])
        array: Array = out.float().numpy()
        return array

    def attention(self, case: AttentionCase) -> Array:
        from gemmary.config import Config

        config = Config(
            "gemma", 1, 8, case.heads, case.kv_heads, case.head_dim, 8, 8, 8, ("global",), query_pre_attn_scalar=1
        )
        device = self.torch.device("cpu")
        caches = {s: self.module.KeyValues(config, n, self.dtype, device) for s, n in case.lengths.items()}
        outs = []
        for call in case.calls():
            step = self.module.StepCache([caches[s] for s in call.sequences], call.rows)
            visible = self.module.Visible.of(call.visible, call.rows, device)
            q, k, v = (self._tensor(array) for array in (call.q, call.k, call.v))
            out, _ = self.ops.attention(q, k, v, step, 0, visible, case.scale, case.softcap)
            outs.append(out.float().numpy())
            for sequence, rows in zip(call.sequences, call.rows, strict=True):
                caches[sequence].length += rows.stop - rows.start
        return np.concatenate(outs)


@dataclass(frozen=True)
class Entry:
    """An engine in the matrix. `make` skips with a reason where the engine is absent."""

    name: str
    make: Callable[[], Harness]


HARNESSES = [
    Entry("reference-float32", lambda: ReferenceHarness(np.float32, relative=0, absolute=1e-6)),
    Entry("torch-float32", lambda: TorchHarness("float32", relative=0, absolute=1e-6)),
    # One rounding of the result to bfloat16's eight significant bits, and nothing else: what the specification says.
    Entry("torch-bfloat16", lambda: TorchHarness("bfloat16", relative=2**-8, absolute=1e-6)),
    Entry("native-float32", NativeHarness),
    Entry("native-float32-scalar", lambda: NativeHarness(isa="scalar")),
]
