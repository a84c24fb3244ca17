"""The ops in PyTorch, on any of its devices, in float32 or bfloat16; with the keys and values that attention keeps.

A leaf is an `nn.Module` (`nn.Linear`, `nn.Embedding`, `RMSNorm`, or what has been put in its place, such as a linear
layer with an adapter), and is called, so that hooks on it run. Nothing here stops gradients.

Axes: T tokens, S keys of a sequence, N heads, K kv heads, G = N / K, H head_dim, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from gemmary.config import Config
from gemmary.engines.torch_adapters import AdaptedLinear
from gemmary.engines.torch_attention import Tile, attend
from gemmary.engines.torch_functions import add, geglu, gelu, layer_norm, rms_norm, rope
from gemmary.engines.torch_stacks import Stacks, attend_stacked, stacked

QUERY_TILE = 128
"""Queries attended to at once: bounds the float32 scores, and lets a tile read only the keys that it sees."""
VOCABULARY_TILE = 4096
"""Rows of the head widened to float32 at once where it is stored in bfloat16."""


class RMSNorm(nn.Module):
    """A zero-centred norm weight [D]."""

    def __init__(self, size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, x: Tensor, eps: float) -> Tensor:
        return rms_norm(x, self.weight, eps)


class LayerNorm(nn.Module):
    """A norm's scale and shift [D]."""

    def __init__(self, size: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, device=device))
        self.bias = nn.Parameter(torch.zeros(size, device=device))

    def forward(self, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, self.weight, self.bias, eps)


class Head(nn.Linear):
    """The vocabulary's scores, always float32: in bfloat16 many of them would tie."""

    def forward(self, x: Tensor) -> Tensor:
        return scores(x, self.weight)


def scores(x: Tensor, table: Tensor) -> Tensor:
    """x [R, D] times the transpose of the table [V, D], both widened to float32 -> [R, V]."""
    if table.dtype == torch.float32:
        return functional.linear(x.float(), table)
    tiles = torch.split(table, VOCABULARY_TILE)
    return torch.cat([functional.linear(x.float(), rows.float()) for rows in tiles], dim=-1)


class TokenTable(NamedTuple):
    """The tied table as a leaf: rows are looked up in the one, scores come from the other."""

    embedding: nn.Module
    head: nn.Module | None
    """None in an embedding model, and of a table of positions."""


class KeyValues:
    """Keys and values of one sequence, for every layer, in one allocation [2, layers, capacity, K, H]."""

    def __init__(self, config: Config, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (2, config.num_layers, capacity, config.num_kv_heads, config.head_dim)
        self.capacity = capacity
        self.length = 0
        """Tokens held; the engine moves it on when a step is done."""
        self._keys, self._values = torch.empty(shape, dtype=dtype, device=device)

    def truncate(self, length: int) -> None:
        """Forgets the tokens from `length` on."""
        self.length = min(self.length, length)

    def copy(self, other: KeyValues, length: int) -> None:
        """Takes over the first `length` tokens of another one of the model's."""
        self._keys[:, :length] = other._keys[:, :length]
        self._values[:, :length] = other._values[:, :length]
        self.length = length

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Writes k and v [T, K, H] behind the tokens held; all keys and values of the layer so far [S, K, H]."""
        end = self.length + k.shape[0]
        self._keys[layer, self.length : end] = k
        self._values[layer, self.length : end] = v
        return self._keys[layer, :end], self._values[layer, :end]


@dataclass(frozen=True)
class StepCache:
    """For each sequence of the step its cache, or None where nothing is kept, and the rows that are its tokens."""

    caches: Sequence[KeyValues | None]
    rows: Sequence[slice]


@dataclass(frozen=True)
class Visible:
    """`visible` [T, 2] of the step, as attention reads it. Made once a step, read in every layer."""

    spans: npt.NDArray[np.int32]
    rows: Sequence[slice]
    device: torch.device

    @classmethod
    def of(cls, spans: npt.NDArray[np.int32], rows: Sequence[slice], device: torch.device) -> Visible:
        return cls(spans, rows, device)

    @cached_property
    def tiles(self) -> tuple[tuple[Tile, ...], ...]:
        """For each sequence its own."""
        return tuple(tuple(_tiles(self.spans[part], self.device)) for part in self.rows)

    @cached_property
    def stacks(self) -> Stacks | None:
        """All sequences together, where no key is older than the step."""
        return stacked(self.spans, self.rows, self.device)


def _tiles(spans: npt.NDArray[np.int32], device: torch.device) -> list[Tile]:
    tiles = []
    for begin in range(0, len(spans), QUERY_TILE):
        first, last = spans[begin : begin + QUERY_TILE].T
        key = np.arange(first.min(), last.max() + 1)
        seen = (key >= first[:, None]) & (key <= last[:, None])
        unseen = None if seen.all() else torch.from_numpy(~seen).to(device)
        tiles.append(Tile(slice(begin, begin + len(first)), slice(int(key[0]), int(key[-1]) + 1), unseen))
    return tiles


class TorchOps:
    """`gemmary.ops.spec.Ops` in PyTorch; `dtype` is that of the activations. Taps land in `taps` when given. adapted:
    as `Batch.adapted`."""

    def __init__(
        self, dtype: torch.dtype, taps: dict[str, Any] | None = None, adapted: Sequence[tuple[int, slice]] = ()
    ) -> None:
        self.dtype = dtype
        self.taps = taps
        self.adapted = adapted

    def embed(self, table: TokenTable, tokens: Tensor, scale: float) -> Tensor:
        rows: Tensor = table.embedding(tokens)
        return (rows.float() * scale).to(self.dtype)

    def linear(self, x: Tensor, weight: nn.Module | TokenTable) -> Tensor:
        module = weight.head if isinstance(weight, TokenTable) else weight
        assert module is not None
        more = (self.adapted,) if isinstance(module, AdaptedLinear) else ()
        result: Tensor = module(x.to(self.dtype), *more)
        return result

    def rms_norm(self, x: Tensor, weight: nn.Module, eps: float) -> Tensor:
        result: Tensor = weight(x, eps)
        return result

    def layer_norm(self, x: Tensor, weight: nn.Module, eps: float) -> Tensor:
        result: Tensor = weight(x, eps)
        return result

    def split_heads(self, x: Tensor, heads: int) -> Tensor:
        return x.view(x.shape[0], heads, -1)

    def rope_angles(self, positions: Tensor, frequencies: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        each = torch.tensor(frequencies, dtype=torch.float32, device=positions.device)
        angles = (positions.to(torch.float32)[:, None] * each)[:, None, :]
        return angles.cos(), angles.sin()

    def rope(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        return rope(x, angles)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cache: StepCache,
        layer: int,
        visible: Visible,
        scale: float,
        softcap: float | None,
    ) -> tuple[Tensor, StepCache]:
        is_whole = all(kept is None for kept in cache.caches)
        if is_whole and softcap is None and visible.stacks is not None:
            return attend_stacked(q, k, v, visible.stacks, scale), cache
        sequences = list(zip(cache.caches, cache.rows, visible.tiles, strict=True))
        if is_whole:
            moved = [tile.moved(rows.start) for _, rows, tiles in sequences for tile in tiles]
            return attend(q, k, v, moved, scale, softcap), cache
        outs = []
        for kept, rows, tiles in sequences:
            keys, values = (k[rows], v[rows]) if kept is None else kept.append(layer, k[rows], v[rows])
            outs.append(attend(q[rows], keys, values, tiles, scale, softcap))
        return torch.cat(outs), cache

    def geglu(self, gate: Tensor, up: Tensor) -> Tensor:
        return geglu(gate, up)

    def gelu(self, x: Tensor) -> Tensor:
        return gelu(x)

    def place(self, x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
        return x.index_copy(0, rows, values.to(x.dtype))

    def pool(self, x: Tensor, count: int) -> Tensor:
        return x.float().view(-1, count, x.shape[-1]).mean(dim=1).to(x.dtype)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return add(x, y)

    def take(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows]

    def softcap(self, x: Tensor, cap: float) -> Tensor:
        return (cap * torch.tanh(x.float() / cap)).to(x.dtype)

    def mean_pool(self, x: Tensor, sequences: Sequence[slice]) -> Tensor:
        return torch.stack([x[rows].float().mean(dim=0) for rows in sequences])

    def l2_normalize(self, x: Tensor) -> Tensor:
        x32 = x.float()
        norm: Tensor = torch.linalg.vector_norm(x32, dim=-1, keepdim=True)
        return x32 / norm.clamp_min(1e-12)

    def tap(self, name: str, x: Tensor) -> Tensor:
        if self.taps is not None:
            self.taps[name] = x.detach().reshape(x.shape[0], -1).float().cpu().numpy()
        return x
