"""Records the model instead of running it: ops on named buffers, then a plan of where each buffer lives.

`TraceOps` is an implementation of `ops/spec.Ops` whose arrays are `Value`s: rows of a kind (T tokens, R rows whose
logits are wanted, S sequences, P rows that come from elsewhere, G groups of tokens) times a width. `compile_trace`
hands what it records to the C++ program that replays it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

IN_PLACE = frozenset(
    {"rms_norm", "layer_norm", "rope", "attention", "gelu", "geglu", "add", "place", "softcap", "l2_normalize"}
)
"""Operations whose result may take the place of an operand of its shape that nothing reads later."""


@dataclass(frozen=True)
class Weight:
    """A leaf as the trace names it: a packed matrix, or a float32 vector."""

    name: str
    data: Any
    adapters: Sequence[Any] = ()
    """What each adapter of the model adds to it, or None; empty where the model has none."""
    bias: Any = None
    """float32 [O] of a linear weight that has one; the shift of a `layer_norm`."""


@dataclass(frozen=True)
class Value:
    """A buffer [rows, width], read as `heads` heads side by side."""

    buffer: int
    rows: str
    width: int
    heads: int = 1


@dataclass
class Instruction:
    """One call of the C++ program's builder: `op(label, results, *operands, *settings)`."""

    op: str
    label: str
    results: list[int]
    operands: list[int]
    settings: list[Any]


@dataclass
class TraceOps:
    """`gemmary.ops.spec.Ops` on `Value`s. The step's tokens, positions and sequences are the program's own inputs, so
    what is passed for them is ignored; `visible` is the number of an array of the step."""

    shapes: list[tuple[str, int]] = field(default_factory=list)
    """Rows and width of each buffer."""
    instructions: list[Instruction] = field(default_factory=list)
    taps: dict[str, Value] = field(default_factory=dict)
    group: int = 1
    """Tokens of a group."""

    def value(self, rows: str, width: int, heads: int = 1) -> Value:
        self.shapes.append((rows, width))
        return Value(len(self.shapes) - 1, rows, width, heads)

    def _record(self, op: str, out: Value, operands: Sequence[Value], *settings: Any, label: str = "") -> Value:
        buffers = [operand.buffer for operand in operands]
        self.instructions.append(Instruction(op, f"{op} {label}".strip(), [out.buffer], buffers, list(settings)))
        return out

    def _like(self, x: Value) -> Value:
        return self.value(x.rows, x.width, x.heads)

    def embed(self, table: Weight, tokens: Any, scale: float) -> Value:
        return self._record("embed", self.value("T", table.data.cols), [], table.data, scale, label=table.name)

    def linear(self, x: Value, weight: Weight) -> Value:
        out = self.value(x.rows, weight.data.rows)
        last = self.instructions[-1] if self.instructions else None
        if last is not None and last.op == "linear" and last.operands == [x.buffer]:
            last.label += f"+{weight.name.rpartition('.')[2]}"
            last.results.append(out.buffer)
            last.settings[0].append(weight.data)
            if weight.adapters:
                last.settings[1].append(weight.adapters)
            last.settings[2].append(weight.bias)
            return out
        adapters = [weight.adapters] if weight.adapters else []
        return self._record("linear", out, [x], [weight.data], adapters, [weight.bias], label=weight.name)

    def rms_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        return self._record("rms_norm", self._like(x), [x], weight.data, eps, label=weight.name)

    def layer_norm(self, x: Value, weight: Weight, eps: float) -> Value:
        return self._record("layer_norm", self._like(x), [x], weight.data, weight.bias, eps, label=weight.name)

    def split_heads(self, x: Value, heads: int) -> Value:
        return Value(x.buffer, x.rows, x.width, heads)

    def rope_angles(self, positions: Any, frequencies: tuple[float, ...]) -> Value:
        return self._record("rope_angles", self.value("T", 2 * len(frequencies)), [], list(frequencies))

    def rope(self, x: Value, angles: Value) -> Value:
        return self._record("rope", self._like(x), [x, angles])

    def attention(
        self, q: Value, k: Value, v: Value, cache: Any, layer: int, visible: int, scale: float, softcap: float | None
    ) -> tuple[Value, Any]:
        settings = (layer, visible, q.heads, k.heads, scale, softcap or 0.0)
        out = self._record("attention", self.value("T", q.width), [q, k, v], *settings, label=f"layers.{layer}")
        return out, cache

    def gelu(self, x: Value) -> Value:
        return self._record("gelu", self._like(x), [x])

    def geglu(self, gate: Value, up: Value) -> Value:
        return self._record("geglu", self._like(gate), [gate, up])

    def add(self, x: Value, y: Value) -> Value:
        return self._record("add", self._like(x), [x, y])

    def place(self, x: Value, rows: Any, values: Value) -> Value:
        return self._record("place", self._like(x), [x, values])

    def pool(self, x: Value, count: int) -> Value:
        self.group = count
        return self._record("pool", self.value("G", x.width), [x], count)

    def take(self, x: Value, rows: Any) -> Value:
        return self._record("take", self.value("R", x.width), [x])

    def softcap(self, x: Value, cap: float) -> Value:
        return self._record("softcap", self._like(x), [x], cap)

    def mean_pool(self, x: Value, sequences: Any) -> Value:
        return self._record("mean_pool", self.value("S", x.width), [x])

    def l2_normalize(self, x: Value) -> Value:
        return self._record("l2_normalize", self._like(x), [x])

    def tap(self, name: str, x: Value) -> Value:
        self.taps[name] = x
        return x


@dataclass(frozen=True)
class Place:
    """Where a buffer lives: slot `index` of the program's memory, or the caller's array `index`."""

    index: int
    external: bool


@dataclass
class Plan:
    """Slots (rows, width) and the place of every buffer."""

    slots: list[tuple[str, int]]
    places: dict[int, Place]


def plan(trace: TraceOps, external: Sequence[int]) -> Plan:
    """Gives each buffer a place such that no two that are alive together share one. `external`: buffers that are the
    caller's arrays 0, 1, 2, …, inputs or results; they keep what is written to them."""
    last_use = {b: i for i, instruction in enumerate(trace.instructions) for b in instruction.operands}
    result = Plan([], {buffer: Place(index, True) for index, buffer in enumerate(external)})
    # An operand that only becomes an external result is built in that array in the first place.
    for index in range(len(trace.instructions) - 1, -1, -1):
        instruction = trace.instructions[index]
        place = result.places.get(instruction.results[0])
        if place is not None and instruction.op in IN_PLACE:
            heir = _replaceable(trace, instruction, index, last_use, result.places)
            if heir is not None:
                result.places[heir] = place
    free: list[int] = []
    for index, instruction in enumerate(trace.instructions):
        inherited = None
        for buffer in instruction.results:
            if buffer in result.places:
                continue
            if instruction.op in IN_PLACE:
                inherited = _dying(trace, instruction, index, last_use, result.places)
            if inherited is not None:
                result.places[buffer] = result.places[inherited]
            else:
                result.places[buffer] = Place(_choose(result.slots, free, trace.shapes[buffer]), False)
        ended = {b for b in instruction.operands if last_use[b] == index} - {inherited}
        ended |= {b for b in instruction.results if b not in last_use}
        free += [result.places[b].index for b in sorted(ended) if not result.places[b].external]
    return result


def _replaceable(
    trace: TraceOps, instruction: Instruction, index: int, last_use: dict[int, int], places: dict[int, Place]
) -> int | None:
    """An operand without a place, of the result's shape, that ends at this instruction."""
    shape = trace.shapes[instruction.results[0]]
    for buffer in instruction.operands:
        if buffer not in places and trace.shapes[buffer] == shape and last_use[buffer] == index:
            return buffer
    return None


def _dying(
    trace: TraceOps, instruction: Instruction, index: int, last_use: dict[int, int], places: dict[int, Place]
) -> int | None:
    """An operand in a slot, of the result's shape, that ends at this instruction."""
    shape = trace.shapes[instruction.results[0]]
    for buffer in instruction.operands:
        if not places[buffer].external and trace.shapes[buffer] == shape and last_use[buffer] == index:
            return buffer
    return None


def _choose(slots: list[tuple[str, int]], free: list[int], shape: tuple[str, int]) -> int:
    """A free slot of the right rows: the narrowest that is wide enough, else the widest, made wider; else a new one."""
    rows, width = shape
    fitting = [n for n in free if slots[n][0] == rows]
    if not fitting:
        slots.append(shape)
        return len(slots) - 1
    wide = [n for n in fitting if slots[n][1] >= width]
    chosen = min(wide, key=lambda n: slots[n][1]) if wide else max(fitting, key=lambda n: slots[n][1])
    free.remove(chosen)
    slots[chosen] = (rows, max(width, slots[chosen][1]))
    return chosen


def compile_trace(core: Any, runtime: Any, trace: TraceOps, external: Sequence[Value], kinds: int) -> Any:
    """The C++ program of a trace. `external`: the caller's arrays, in the order in which `run` takes them; `kinds`: how
    many arrays of visible keys a step has."""
    planned = plan(trace, [value.buffer for value in external])
    buffers = []
    for number, (rows, width) in enumerate(trace.shapes):
        place = planned.places[number]
        buffers.append((rows, width, place.index, place.external))
    program = core.Program(runtime, planned.slots, buffers, kinds, len(external))
    for instruction in trace.instructions:
        results = instruction.results if instruction.op == "linear" else instruction.results[0]
        getattr(program, instruction.op)(instruction.label, results, *instruction.operands, *instruction.settings)
    return program
