"""Modules whose weights stay as they are stored, quantized and packed, while gradients flow through them.

A matrix is kept as the native engine's panels (csrc/packed.h): those of a packed folder are used where the file is
mapped, other leaves are packed once, and unquantized ones may be quantized with that. Both the product and its gradient
dequantize some output rows at a time into a scratch that every module uses in turn, and multiply with that, so never is
more than a tile of a weight in memory in another form. The weights themselves take no gradient: what is trained stands
beside them.

Dequantization is done by the native core on the CPU, and tensors on another device are refused. A GPU would need the
packed codes in its own memory and a kernel that unpacks them there, from `csrc/packed.h`'s layout.

Axes: T tokens, I inputs, O outputs, V vocabulary, D width.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gemmary import _core
from gemmary.engines.native_weights import pack
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Leaf, padded_columns, slices
from gemmary.quantize.pieces import piece

TILE = 1 << 22
"""Weights dequantized at once: 16 MiB of float32. A product with less of a wide matrix (down: 448 rows) is slower."""
_PANEL_ROWS = 16


@lru_cache(maxsize=1)
def _runtime(threads: int) -> Any:
    """The native core's threads beside so many of PyTorch. Those spin for a while after each product and the core's
    would wait for a processor; half of them, which measured faster than all, still unpack faster than is multiplied."""
    return _core.Runtime(max(1, threads // 2), None)


class _Scratch:
    """Memory for one tile in each dtype, shared by all modules. A tile is valid until the next one is asked for:
    autograd is told of every change, so that a graph that kept a tile fails instead of using another's values."""

    def __init__(self) -> None:
        self._memory: dict[torch.dtype, Tensor] = {}

    def tile(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        memory = self._memory.get(dtype)
        if memory is None or memory.numel() < rows * columns:
            with torch.inference_mode(False):
                memory = self._memory[dtype] = torch.empty(max(TILE, rows * columns), dtype=dtype)
        torch.autograd.graph.increment_version(memory)
        return memory[: rows * columns].view(rows, columns)


_SCRATCH = _Scratch()


class PackedMatrix:
    """A frozen matrix [rows, columns] in panels, whose rows are dequantized when asked for."""

    def __init__(self, leaf: Leaf, format: str | None = None) -> None:
        """format: None = as stored, which maps or copies what there is; another is made from it, a slice at a time.

        Raises GemmaryError for a leaf that is not a matrix, that does not fit the format, or that has one which the
        kernels do not.
        """
        if len(leaf.shape) != 2:
            raise GemmaryError(f"only matrices stay quantized, not a weight of shape {leaf.shape}")
        self.shape = (leaf.shape[0], leaf.shape[1])
        self.format = format or leaf.format
        self._columns = leaf.shape[1] if self.format != leaf.format else padded_columns(self.format, leaf.shape[1])
        runtime = _runtime(torch.get_num_threads())
        try:
            if self.format == leaf.format:
                self._packed = pack(runtime, leaf, self.format)
                return
            self._packed = _core.PackedWeight(runtime, self.format, *self.shape)
            for start, stop in slices(leaf):
                self._packed.pack(runtime, start, piece(leaf, start, stop, self.format))
                leaf.release(start, stop)
        except ValueError as error:
            raise GemmaryError(str(error)) from error

    @property
    def panels(self) -> npt.NDArray[np.uint8]:
        """In memory of their own, or in a mapped file: `Packed.panels`."""
        array: npt.NDArray[np.uint8] = self._packed.panels
        return array

    @property
    def nbytes(self) -> int:
        """Of the panels."""
        size: int = self._packed.nbytes
        return size

    def tiles(self) -> list[tuple[int, int]]:
        """First and last (exclusive) of consecutive rows, whole panels that are about `TILE` weights."""
        rows, columns = self.shape
        step = max(_PANEL_ROWS, TILE // columns // _PANEL_ROWS * _PANEL_ROWS)
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]

    def read(self, start: int, out: Tensor) -> Tensor:
        """Fills `out`, float32 or bfloat16, with the rows from `start` on; returns it. [n, columns], those among them
        that fill up the last blocks."""
        array = out.numpy() if out.dtype == torch.float32 else out.view(torch.uint16).numpy()
        self._packed.dequantize(_runtime(torch.get_num_threads()), start, array)
        return out

    def tile(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Rows [start, stop) in the shared scratch: valid until any module's next tile."""
        return self.read(start, _SCRATCH.tile(stop - start, self._columns, dtype))[:, : self.shape[1]]

    def product(self, x: Tensor) -> Tensor:
        """x [T, columns] times the transpose of the matrix -> [T, rows]."""
        out = x.new_empty(x.shape[0], self.shape[0])
        for start, stop in self.tiles():
            torch.mm(x, self.tile(start, stop, x.dtype).t(), out=out[:, start:stop])
        return out

    def product_back(self, grad: Tensor) -> Tensor:
        """grad [T, rows] times the matrix -> [T, columns]: the gradient of x in `product`."""
        total = grad.new_zeros(grad.shape[0], self.shape[1], dtype=torch.float32)
        for start, stop in self.tiles():
            part, tile = grad[:, start:stop], self.tile(start, stop, grad.dtype)
            if grad.dtype == torch.float32:
                total.addmm_(part, tile)
            else:
                total += part @ tile  # the tiles' parts are summed in float32
        return total.to(grad.dtype)


class _Product(torch.autograd.Function):
    """x [T, I] times the transpose of a packed matrix [O, I] -> [T, O]; gradients flow to x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: PackedMatrix) -> Tensor:
        ctx.matrix = matrix
        return matrix.product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        matrix: PackedMatrix = ctx.matrix
        return matrix.product_back(gradients[0]), None


class QuantizedLinear(nn.Module):
    """A linear layer on a frozen leaf [O, I] of any format: in place of an `nn.Linear`."""

    place: Tensor
    bias: Tensor | None

    def __init__(self, leaf: Leaf, dtype: torch.dtype = torch.float32, format: str | None = None) -> None:
        """dtype: of the activations that it is fed, which `place` tells to what is put around it. format: see
        `PackedMatrix`."""
        super().__init__()
        self.matrix = PackedMatrix(leaf.weight if isinstance(leaf, Affine) else leaf, format)
        self.register_buffer("bias", torch.tensor(leaf.bias) if isinstance(leaf, Affine) else None, persistent=False)
        self.out_features, self.in_features = self.matrix.shape
        self.register_buffer("place", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., I] in float32 or bfloat16 -> [..., O] in the same."""
        _check(x)
        out: Tensor = _Product.apply(x.reshape(-1, self.in_features), self.matrix)  # type: ignore[no-untyped-call]
        if self.bias is not None:
            out = (out.float() + self.bias).to(x.dtype)
        return out.view(*x.shape[:-1], self.out_features)

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the weight in float32 [stop - start, I], valid until any module's next tile."""
        return self.matrix.tile(start, stop)

    def row_squares(self) -> Tensor:
        """Sums of squares of the weight's rows [O], float32: what DoRA divides by."""
        return torch.cat([self.tile(start, stop).square().sum(dim=1) for start, stop in self.matrix.tiles()])

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.matrix.format}"


class QuantizedEmbedding(nn.Module):
    """A frozen token table [V, D] of any format: in place of an `nn.Embedding`, and of the head that is tied to it."""

    def __init__(self, leaf: Leaf, format: str | None = None) -> None:
        """format: see `PackedMatrix`."""
        super().__init__()
        self.matrix = PackedMatrix(leaf, format)
        self.num_embeddings, self.embedding_dim = self.shape = self.matrix.shape

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids [...] in 0 … V - 1 -> their rows in float32 [..., D]."""
        _check(tokens)
        return self.rows(tokens.reshape(-1)).view(*tokens.shape, self.embedding_dim)

    def rows(self, tokens: Tensor) -> Tensor:
        """The rows of some tokens [R] in float32 [R, D], in memory of their own."""
        found = torch.empty(len(tokens), self.embedding_dim)
        for number, token in enumerate(tokens.tolist()):
            self.matrix.read(token, found[number : number + 1])
        return found

    def tile(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the table in float32 [stop - start, D], for the scores of a part of the vocabulary:
        valid until any module's next tile."""
        return self.matrix.tile(start, stop)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.matrix.format}"


def _check(x: Tensor) -> None:
    if x.device.type != "cpu":
        raise GemmaryError(f"a quantized base is tuned on the CPU only, not on {x.device}: choose --device cpu")
    if x.is_floating_point() and x.dtype not in (torch.float32, torch.bfloat16):
        raise GemmaryError(f"a quantized layer computes in float32 or bfloat16, not {x.dtype}")
