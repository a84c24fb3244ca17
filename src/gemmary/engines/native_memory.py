"""What the native engine takes of memory, from shapes and formats alone: no weight is read.

These are the sizes of csrc/packed.h, kv_cache.cc, activations.cc and of `Program::reserve` in executor.cc. The steps'
are those of the very trace that the engine runs. A test holds each against what an engine has allocated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gemmary import _core
from gemmary.checkpoints.tensors import Tensor, tensors
from gemmary.config import Config
from gemmary.engines.native_programs import LOGITS, PICTURES, SENTENCES, traced
from gemmary.engines.trace import Weight, plan
from gemmary.quantize.blocks import BLOCK_SIZES
from gemmary.quantize.leaves import padded_columns

MAX_CHUNK = 512
"""The most tokens of one sequence in one step once its windowed layers' caches are rings."""
_TASKS_PER_ATTENTION, _LEAST_QUERIES, _MOST_QUERIES = 128, 24, 96  # executor.cc
_SPAN, _PARTIAL_EXTRA = 256, 16  # step_kernels.h
_LINEAR_SCRATCH = 128 * 1024  # linear.h
_HUGE_PAGE, _ARENA_BLOCK = 2 << 20, 32 << 20  # packed.cc
_GROUP_BYTES, _OUTLIER_BYTES, _SPAN_GROUPS = 40, 8, 32  # activations.h


class Shape(NamedTuple):
    """A matrix without its numbers, as a trace names it."""

    rows: int
    cols: int
    name: str


@dataclass(frozen=True)
class Rows:
    """How many rows of each kind a step has."""

    tokens: int
    outputs: int = 1
    sequences: int = 1
    places: int = 0
    groups: int = 0

    def count(self, kind: str) -> int:
        return {"T": self.tokens, "R": self.outputs, "S": self.sequences, "P": self.places, "G": self.groups}[kind]


def packed_bytes(tensor: Tensor, format: str) -> int:
    """Bytes that the engine holds of a tensor: panels of a matrix and its bias, or a float32 vector."""
    if len(tensor.shape) == 1:
        return 4 * tensor.shape[0] * (2 if tensor.bias else 1)
    rows, columns = tensor.shape
    panels: int = _core.packed_bytes(format, rows, padded_columns(format, columns))
    return panels + (4 * rows if tensor.bias else 0)


def page_bytes(sizes: Iterable[int]) -> int:
    """What weights of these bytes take as whole 2 MiB pages, in the order in which they are packed."""
    total = used = 0
    for nbytes in map(_lines, sizes):
        if nbytes >= _ARENA_BLOCK // 2:
            total += _pages(nbytes)
        elif used + nbytes > _ARENA_BLOCK:
            total, used = total + _pages(used), nbytes
        else:
            used += nbytes
    return total + _pages(used)


def kept_positions(config: Config, capacity: int, max_chunk: int = MAX_CHUNK) -> list[int]:
    """How many of the latest positions each layer's cache keeps."""
    positions = []
    for kind in config.layer_types:
        window = config.window(kind)
        ring = window is not None and not config.bidirectional and capacity > window + max_chunk
        # 16 more: the oldest block of a ring is partly overwritten.
        positions.append(window + max_chunk + 16 if ring and window is not None else capacity)
    return positions


def cache_bytes(config: Config, capacity: int, kv_dtype: str, max_chunk: int = MAX_CHUNK) -> int:
    """Bytes that a full cache for `capacity` tokens holds. Windowed layers keep little more than their window."""
    positions = kept_positions(config, capacity, max_chunk)
    return _core.KvCache.bytes_of(positions, config.num_kv_heads, config.head_dim, capacity, kv_dtype)


def shared_cache_bytes(config: Config, capacity: int, kv_dtype: str) -> int:
    """The same of an encoder, whose layers use one memory in turn."""
    return _core.KvCache.bytes_of([capacity], config.num_kv_heads, config.head_dim, capacity, kv_dtype)


def working_bytes(config: Config, formats: Mapping[str, str], rows: Rows, threads: int, *, result: str = LOGITS) -> int:
    """Buffers and scratch of a step, without the arrays that the caller brings. formats: of each matrix by name."""
    recorded = _recorded(config, result)
    buffers = sum(_lines(4 * rows.count(kind) * width) for kind, width in recorded.slots)
    activations = 0
    for (kind, width), names in recorded.products:
        if any(formats[name] in BLOCK_SIZES for name in names):
            activations = max(activations, quantized_bytes(rows.count(kind), width))
    return buffers + activations + threads * _lines(max(_LINEAR_SCRATCH, _attention_bytes(config, rows, result)))


def step_bytes(config: Config, formats: Mapping[str, str], rows: Rows, threads: int) -> int:
    """All that a step of the decoder takes besides weights and caches: working memory, and the arrays of logits (of an
    encoder of vectors) and of pictures' tokens."""
    result = SENTENCES if config.pooled_dense else LOGITS
    return working_bytes(config, formats, rows, threads, result=result) + _brought_bytes(config, rows, result)


def tower_bytes(config: Config, formats: Mapping[str, str], threads: int) -> int:
    """All that one picture's way through the tower takes: working memory, its keys and values, pixels and result."""
    vision = config.vision
    if vision is None:
        return 0
    rows = Rows(vision.num_patches, outputs=0, groups=vision.num_tokens)
    cache = _core.KvCache.bytes_of(
        [vision.num_patches], vision.num_heads, vision.head_dim, vision.num_patches, "float32"
    )
    pixels = 2 * 4 * vision.num_patches * vision.patch_values  # as an image, and cut into patches
    return (
        working_bytes(config, formats, rows, threads, result=PICTURES)
        + cache
        + pixels
        + 4 * rows.groups * (config.hidden_size)
    )


def quantized_bytes(rows: int, columns: int) -> int:
    """Bytes of activations in int8 groups of 32, with what stands out of them."""
    groups = -(-columns // 32)
    spans = -(-groups // _SPAN_GROUPS)
    return _lines(rows * groups * _GROUP_BYTES) + _lines(rows * groups * _OUTLIER_BYTES) + _lines(4 * rows * spans)


def _brought_bytes(config: Config, rows: Rows, result: str) -> int:
    return sum(4 * rows.count(kind) * width for kind, width in _recorded(config, result).brought)


def _attention_bytes(config: Config, rows: Rows, result: str) -> int:
    """Scratch of one thread: queries that pass over the keys together, their scores and two partial results. The
    partial results of a few queries of a long text, well under a megabyte, are not counted."""
    vision = config.vision
    if result == PICTURES and vision is not None:
        heads, kv_heads, head_dim = vision.num_heads, vision.num_heads, vision.head_dim
    else:
        heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    group = heads // kv_heads
    queries = min(max(rows.tokens * heads // _TASKS_PER_ATTENTION, _LEAST_QUERIES), _MOST_QUERIES)
    together = min(max(1, queries // group), rows.tokens) * group
    width = -(-head_dim // 16) * 16
    return 4 * together * (_SPAN + 3 * width + 4 * _PARTIAL_EXTRA)


def _pages(count: int) -> int:
    return -(-count // _HUGE_PAGE) * _HUGE_PAGE


def _lines(count: int) -> int:
    """In whole cache lines."""
    return -(-count // 64) * 64


@dataclass(frozen=True)
class Recorded:
    """What of a trace takes memory: rows and width of each."""

    slots: tuple[tuple[str, int], ...]
    """Buffers, which instructions use in turn."""
    brought: tuple[tuple[str, int], ...]
    """Arrays of the caller."""
    products: frozenset[tuple[tuple[str, int], tuple[str, ...]]]
    """What matrix products read, and the names of their weights."""


@lru_cache(maxsize=64)
def _recorded(config: Config, result: str) -> Recorded:
    shapes = {tensor.name: tensor.shape for tensor in tensors(config)}
    biased = {tensor.name for tensor in tensors(config) if tensor.bias}

    def lookup(name: str) -> Weight:
        shape = shapes[name]
        matrix = Shape(shape[0], shape[1], name) if len(shape) == 2 else None
        return Weight(name, matrix, bias=name in biased or None)

    trace = traced(config, lookup, result)
    brought = [*trace.inputs, trace.out]
    products = [
        (trace.ops.shapes[each.operands[0]], tuple(matrix.name for matrix in each.settings[0]))
        for each in trace.ops.instructions
        if each.op == "linear"
    ]
    return Recorded(
        tuple(plan(trace.ops, [value.buffer for value in brought]).slots),
        tuple((value.rows, value.width) for value in brought),
        frozenset(products),
    )
