"""The cases of the op cross-matrix: which op, on what, for any engine. Nothing here knows one.

An argument is a tagged numpy value that a harness (`harness.py`) turns into its engine's own. Inputs are float32 drawn
from a seed; a harness may round them first to what its engine holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.model.masks import visible
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Affine, Blocks, Dense, Leaf, quantized

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Activation:
    """A float32 array [T, ...] of an engine's activations."""

    array: Array


@dataclass(frozen=True)
class Integers:
    """An int32 array: ids, positions, row numbers."""

    array: Array


@dataclass(frozen=True)
class Weight:
    """A leaf: a matrix [O, I] or a norm's vector [D], either with a bias or without."""

    leaf: Leaf


@dataclass(frozen=True)
class Table:
    """A leaf that is the token table: looked up by `embed`, and multiplied by `linear` as the head."""

    leaf: Leaf


@dataclass(frozen=True)
class Angles:
    """What the engine's own `rope_angles` makes of positions and frequencies."""

    positions: Array
    frequencies: tuple[float, ...]


@dataclass(frozen=True)
class Rows:
    """The rows of each sequence."""

    slices: tuple[slice, ...]


@dataclass(frozen=True)
class Case:
    name: str
    op: str
    make: Callable[[np.random.Generator], tuple[Any, ...]]
    """The arguments of the op, in order."""

    def arguments(self) -> tuple[Any, ...]:
        return self.make(np.random.default_rng(list(self.name.encode())))


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def frequencies(head_dim: int, theta: float = 100.0, factor: float = 1.0) -> tuple[float, ...]:
    return tuple(theta ** (-2 * i / head_dim) / factor for i in range(head_dim // 2))


def simple_cases() -> Iterator[Case]:
    """Every op but attention, at sizes that no vector or tile divides."""
    for rows, inner, outer in ((1, 1, 1), (1, 35, 53), (3, 7, 5), (5, 33, 67), (17, 130, 101), (67, 515, 3)):
        size = f"{rows}x{inner}"

        def linear(rng: np.random.Generator, t: int = rows, i: int = inner, o: int = outer) -> tuple[Any, ...]:
            return Activation(normal(rng, t, i)), Weight(Dense(normal(rng, o, i, scale=i**-0.5)))

        def head(rng: np.random.Generator, t: int = rows, i: int = inner, o: int = outer) -> tuple[Any, ...]:
            return Activation(normal(rng, t, i)), Table(Dense(normal(rng, o, i, scale=i**-0.5)))

        def embed(rng: np.random.Generator, t: int = rows, i: int = inner, o: int = outer) -> tuple[Any, ...]:
            ids = rng.integers(0, o, t).astype(np.int32)
            return Table(Dense(normal(rng, o, i))), Integers(ids), 5.90625

        def norm(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            return Activation(normal(rng, t, i, scale=3)), Weight(Dense(normal(rng, i, scale=0.5))), 1e-6

        def pair(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            return Activation(normal(rng, t, i, scale=3)), Activation(normal(rng, t, i, scale=2))

        def cap(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            return Activation(normal(rng, t, i, scale=4)), 2.5

        def take(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            wanted = rng.integers(0, t, max(1, t // 2)).astype(np.int32)
            return Activation(normal(rng, t, i)), Integers(wanted)

        def one(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            return (Activation(normal(rng, t, i)),)

        def pool(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            middle = (t + 1) // 2
            slices = (slice(0, middle), slice(middle, t)) if t > 1 else (slice(0, 1),)
            return Activation(normal(rng, t, i) + 1), Rows(slices)

        def biased(rng: np.random.Generator, t: int = rows, i: int = inner, o: int = outer) -> tuple[Any, ...]:
            leaf = Affine(Dense(normal(rng, o, i, scale=i**-0.5)), normal(rng, o))
            return Activation(normal(rng, t, i)), Weight(leaf)

        def layer_norm(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            leaf = Affine(Dense(1 + normal(rng, i, scale=0.5)), normal(rng, i))
            return Activation(1 + normal(rng, t, i, scale=3)), Weight(leaf), 1e-6

        def place(rng: np.random.Generator, t: int = rows, i: int = inner) -> tuple[Any, ...]:
            where = np.flatnonzero(rng.integers(0, 2, t)).astype(np.int32)
            return Activation(normal(rng, t, i)), Integers(where), Activation(normal(rng, len(where), i))

        def groups(rng: np.random.Generator, t: int = rows, i: int = inner, o: int = outer) -> tuple[Any, ...]:
            return Activation(normal(rng, t * o, i)), o

        yield Case(f"linear {size}x{outer}", "linear", linear)
        yield Case(f"pool {size} of {outer}", "pool", groups)
        yield Case(f"linear with a bias {size}x{outer}", "linear", biased)
        yield Case(f"layer_norm {size}", "layer_norm", layer_norm)
        yield Case(f"gelu {size}", "gelu", one)
        yield Case(f"place {size}", "place", place)
        yield Case(f"head {size}x{outer}", "linear", head)
        yield Case(f"embed {size}x{outer}", "embed", embed)
        yield Case(f"rms_norm {size}", "rms_norm", norm)
        yield Case(f"geglu {size}", "geglu", pair)
        yield Case(f"add {size}", "add", pair)
        yield Case(f"softcap {size}", "softcap", cap)
        yield Case(f"take {size}", "take", take)
        yield Case(f"mean_pool {size}", "mean_pool", pool)
        yield Case(f"l2_normalize {size}", "l2_normalize", one)

    for rows, heads, head_dim in ((1, 1, 2), (3, 5, 6), (17, 3, 14), (5, 2, 130)):

        def rope(rng: np.random.Generator, t: int = rows, n: int = heads, h: int = head_dim) -> tuple[Any, ...]:
            positions = np.sort(rng.integers(0, 900, t)).astype(np.int32)
            return Activation(normal(rng, t, n, h)), Angles(positions, frequencies(h, factor=float(n)))

        def far(rng: np.random.Generator, t: int = rows, n: int = heads, h: int = head_dim) -> tuple[Any, ...]:
            positions = np.arange(131_071 - t, 131_071, dtype=np.int32)
            return Activation(normal(rng, t, n, h)), Angles(positions, frequencies(h, theta=1e6, factor=8.0))

        def heads_norm(rng: np.random.Generator, t: int = rows, n: int = heads, h: int = head_dim) -> tuple[Any, ...]:
            return Activation(normal(rng, t, n, h)), Weight(Dense(normal(rng, h, scale=0.5))), 1e-6

        def split(rng: np.random.Generator, t: int = rows, n: int = heads, h: int = head_dim) -> tuple[Any, ...]:
            return Activation(normal(rng, t, n * h)), n

        yield Case(f"rope {rows}x{heads}x{head_dim}", "rope", rope)
        yield Case(f"rope at the end of 131072, {rows}x{heads}x{head_dim}", "rope", far)
        yield Case(f"rms_norm of heads {rows}x{heads}x{head_dim}", "rms_norm", heads_norm)
        yield Case(f"split_heads {rows}x{heads}x{head_dim}", "split_heads", split)

    def tiny_norm(rng: np.random.Generator) -> tuple[Any, ...]:
        return Activation(normal(rng, 5, 33, scale=1e-3)), Weight(Dense(normal(rng, 33))), 1e-6

    def zeros(rng: np.random.Generator) -> tuple[Any, ...]:
        return (Activation(np.zeros((2, 7), np.float32)),)

    def wide_gelu(rng: np.random.Generator) -> tuple[Any, ...]:
        gate = np.linspace(-12, 12, 199, dtype=np.float32)[None]
        return Activation(gate), Activation(np.ones_like(gate))

    def tower_norm(rng: np.random.Generator) -> tuple[Any, ...]:
        leaf = Affine(Dense(1 + normal(rng, 1152, scale=0.5)), normal(rng, 1152))
        return Activation(normal(rng, 5, 1152, scale=3)), Weight(leaf), 1e-6

    def same_values(rng: np.random.Generator) -> tuple[Any, ...]:
        leaf = Affine(Dense(normal(rng, 33)), normal(rng, 33))
        return Activation(np.full((2, 33), 0.75, np.float32)), Weight(leaf), 1e-6

    yield Case("layer_norm of the tower", "layer_norm", tower_norm)
    yield Case("layer_norm where nothing varies", "layer_norm", same_values)
    yield Case("rms_norm where epsilon counts", "rms_norm", tiny_norm)
    yield Case("l2_normalize of zeros", "l2_normalize", zeros)
    yield Case("geglu from -12 to 12", "geglu", wide_gelu)

    for format in ("Q8_0", "Q4_0"):

        def leaf(rng: np.random.Generator, o: int, i: int, format: str = format) -> Leaf:
            return Blocks(format, (o, i), blocks.quantize(format, normal(rng, o, i, scale=i**-0.5)))

        def linear_blocks(rng: np.random.Generator, leaf: Callable[..., Leaf] = leaf) -> tuple[Any, ...]:
            return Activation(normal(rng, 5, 96)), Weight(leaf(rng, 37, 96))

        def embed_blocks(rng: np.random.Generator, leaf: Callable[..., Leaf] = leaf) -> tuple[Any, ...]:
            return Table(leaf(rng, 37, 96)), Integers(np.array([36, 0, 5], np.int32)), 3.0

        def filled_up(rng: np.random.Generator, format: str = format) -> tuple[Any, ...]:
            whole = Affine(Dense(normal(rng, 37, 75, scale=75**-0.5)), normal(rng, 37))
            return Activation(normal(rng, 5, 75)), Weight(quantized(whole, format))

        yield Case(f"linear {format}", "linear", linear_blocks)
        yield Case(f"linear {format} filled up", "linear", filled_up)
        yield Case(f"embed {format}", "embed", embed_blocks)


@dataclass(frozen=True)
class Part:
    """Tokens of one sequence in one step."""

    sequence: int
    count: int
    prefix: int = 0


@dataclass(frozen=True)
class AttentionStep:
    """One call: q [T, N, H], k and v [T, K, H]; `sequences[i]` owns `rows[i]`; visible [T, 2]."""

    q: Array
    k: Array
    v: Array
    visible: Array
    sequences: tuple[int, ...]
    rows: tuple[slice, ...]


@dataclass(frozen=True)
class AttentionCase:
    """Calls of `attention` one after another on one layer, each sequence keeping its cache."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    steps: Sequence[Sequence[Part]]
    window: int | None = None
    softcap: float | None = None
    two_sided: bool = False

    @property
    def scale(self) -> float:
        return float((self.head_dim + 3) ** -0.5)

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens of each sequence when all steps are done."""
        total: dict[int, int] = {}
        for part in (part for step in self.steps for part in step):
            total[part.sequence] = total.get(part.sequence, 0) + part.count
        return total

    def calls(self) -> Iterator[AttentionStep]:
        rng = np.random.default_rng(list(self.name.encode()))
        held: dict[int, int] = {}
        for step in self.steps:
            spans, rows, begin = [], [], 0
            for part in step:
                start = held.get(part.sequence, 0)
                held[part.sequence] = start + part.count
                positions = range(start, start + part.count)
                spans += [visible(p, part.prefix, self.window, self.two_sided) for p in positions]
                rows.append(slice(begin, begin + part.count))
                begin += part.count
            yield AttentionStep(
                normal(rng, begin, self.heads, self.head_dim, scale=2),
                normal(rng, begin, self.kv_heads, self.head_dim, scale=2),
                normal(rng, begin, self.kv_heads, self.head_dim),
                np.array(spans, np.int32),
                tuple(part.sequence for part in step),
                tuple(rows),
            )


def attention_cases() -> Iterator[AttentionCase]:
    continued = ((Part(0, 9), Part(1, 1), Part(2, 4)), (Part(1, 6), Part(0, 1)), (Part(2, 1), Part(0, 1), Part(1, 1)))
    prefixed = ((Part(0, 11, prefix=7), Part(1, 5, prefix=5)), (Part(1, 1, prefix=5), Part(0, 3, prefix=7)))
    whole = ((Part(0, 13, prefix=13), Part(1, 1, prefix=1), Part(2, 6, prefix=6)),)
    decode = ((Part(0, 3),), *(((Part(0, 1),),) * 9))
    for name, heads, kv_heads, head_dim in (("MHA", 3, 3, 14), ("GQA", 6, 2, 10), ("MQA", 5, 1, 6), ("one", 1, 1, 2)):
        yield AttentionCase(f"{name} causal", heads, kv_heads, head_dim, continued)
        yield AttentionCase(f"{name} window", heads, kv_heads, head_dim, continued, window=4)
        yield AttentionCase(f"{name} softcap", heads, kv_heads, head_dim, continued, softcap=1.5)
        yield AttentionCase(f"{name} window softcap", heads, kv_heads, head_dim, continued, window=3, softcap=1.5)
        yield AttentionCase(f"{name} prefix", heads, kv_heads, head_dim, prefixed)
        yield AttentionCase(f"{name} prefix window", heads, kv_heads, head_dim, prefixed, window=4, softcap=2.0)
        yield AttentionCase(f"{name} two-sided", heads, kv_heads, head_dim, whole, two_sided=True)
        yield AttentionCase(f"{name} two-sided window", heads, kv_heads, head_dim, whole, window=5, two_sided=True)
        yield AttentionCase(f"{name} decode past the window", heads, kv_heads, head_dim, decode, window=4)
    long = ((Part(0, 531),), (Part(0, 1),))
    yield AttentionCase("long causal", 2, 1, 34, long)
    yield AttentionCase("long window", 2, 1, 34, long, window=70)


SIMPLE = tuple(simple_cases())
ATTENTION = tuple(attention_cases())
