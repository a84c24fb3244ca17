"""Quantized weights under autograd: products of the packed ones and their gradients are those of the dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary import _core
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.engines.native_weights import pack
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES
from gemmary.quantize.leaves import FLOATS, Affine, Dense, Leaf, Packed
from gemmary.quantize.leaves import quantized as in_blocks
from tests.checkpoints.sources import TinySource
from tests.checkpoints.test_packed import packed, random_leaf
from tests.engines.helpers import same_bits, stored
from tests.tiny import TINY

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from gemmary.engines import torch_quantized  # noqa: E402 (needs torch)
from gemmary.engines.torch_quantized import QuantizedEmbedding, QuantizedLinear  # noqa: E402

FORMATS = (*FLOATS, *BLOCK_SIZES)
each_format = pytest.mark.parametrize("format", FORMATS)


def sizes(format: str) -> list[tuple[int, int]]:
    """Rows that fill no panel, columns that fill no vector where the format allows it."""
    block = BLOCK_SIZES[format][0] if format in BLOCK_SIZES else 1
    return [(1, block), (16, 3 * block), (37, 5 * block), *([(33, 45), (50, 16)] if block == 1 else [])]


@pytest.mark.parametrize("isa", _core.available_isas())
@each_format
def test_rows_are_those_of_the_leaf_to_the_bit(format: str, isa: str) -> None:
    """Any range of rows, in float32 and rounded to bfloat16, on every instruction set and number of threads."""
    for rows, columns in sizes(format):
        leaf = random_leaf(format, rows, columns)
        values = leaf.dequantize()
        halves = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
        for threads in (1, 3):
            runtime = _core.Runtime(threads, isa)
            weight = pack(runtime, leaf, format)
            for start, stop in {(0, rows), (0, 1), (rows - 1, rows), (rows // 3, rows // 3 * 2)}:
                out, half = (np.empty((stop - start, columns), dtype) for dtype in (np.float32, np.uint16))
                weight.dequantize(runtime, start, out)
                weight.dequantize(runtime, start, half)
                assert same_bits(out, values[start:stop])
                assert np.array_equal(half, halves[start:stop])


def test_rows_that_a_weight_does_not_have() -> None:
    runtime = _core.Runtime(1, None)
    weight = pack(runtime, random_leaf("Q8_0", 16, 32), "Q8_0")
    for row, shape in ((-1, (2, 32)), (15, (2, 32)), (0, (17, 32)), (0, (2, 31))):
        with pytest.raises(ValueError, match="no such rows"):
            weight.dequantize(runtime, row, np.empty(shape, np.float32))


def dense(leaf: Leaf, dtype: Any) -> Any:
    module = torch.nn.Linear(leaf.shape[1], leaf.shape[0], bias=False)
    module.weight = torch.nn.Parameter(torch.from_numpy(leaf.dequantize()).to(dtype), requires_grad=False)
    return module


@pytest.mark.parametrize(("format", "columns"), [("Q4_0", 96), ("Q8_0", 32), ("Q6_K", 256), ("BF16", 45), ("F32", 33)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_and_gradients_are_those_of_the_dequantized(
    format: str, columns: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_quantized, "TILE", 32 * columns)  # several tiles, the last one cut short
    kind, rng = getattr(torch, dtype), np.random.default_rng(0)
    leaf = random_leaf(format, 101, columns)
    quantized, plain = QuantizedLinear(leaf, kind), dense(leaf, kind)
    assert (quantized.in_features, quantized.out_features) == (columns, 101)
    x = torch.from_numpy(rng.standard_normal((3, 5, columns)).astype(np.float32)).to(kind)
    upstream = torch.from_numpy(rng.standard_normal((3, 5, 101)).astype(np.float32)).to(kind)
    found = []
    for module in (quantized, plain):
        leaf_x = x.clone().requires_grad_()
        out = module(leaf_x)
        out.backward(upstream)
        found.append((out.detach(), leaf_x.grad))
    tolerance = 1e-6 if dtype == "float32" else 2**-7
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == kind
        assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def test_gradients_are_true_slopes() -> None:
    """Not only equal to autograd's: a step along the gradient changes the loss by as much as it says."""
    layer = QuantizedLinear(random_leaf("Q4_0", 37, 64))
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 64)).astype(np.float32)).requires_grad_()
    loss = layer(x).square().sum()
    (grad,) = torch.autograd.grad(loss, x)
    step = 1e-4 * grad / grad.norm()
    changed = layer(x.detach() + step).square().sum() - layer(x.detach() - step).square().sum()
    assert float(changed) == pytest.approx(float(2 * (grad * step).sum()), rel=1e-2)


def test_what_stands_around_a_layer_is_told_its_dtype_and_norms() -> None:
    layer = QuantizedLinear(random_leaf("Q8_0", 37, 64), torch.bfloat16)
    assert layer.place.dtype == torch.bfloat16
    assert not list(layer.parameters())
    assert not layer.state_dict()
    torch.testing.assert_close(
        layer.row_squares(), torch.from_numpy(random_leaf("Q8_0", 37, 64).dequantize()).square().sum(dim=1)
    )


@each_format
def test_a_table_is_looked_up_and_read_in_tiles(format: str) -> None:
    leaf = random_leaf(format, 37, 256)
    table, values = QuantizedEmbedding(leaf), torch.from_numpy(leaf.dequantize())
    tokens = torch.tensor([[36, 0, 5], [5, 17, 36]])
    assert table.shape == (37, 256)
    assert torch.equal(table(tokens), values[tokens])
    assert torch.equal(table.rows(tokens[0]), values[tokens[0]])
    for start, stop in ((0, 37), (5, 20), (36, 37)):
        assert torch.equal(table.tile(start, stop), values[start:stop])
    for bad in (-1, 37):
        with pytest.raises(ValueError, match="no such rows"):
            table(torch.tensor([bad]))


def test_a_graph_that_kept_a_tile_fails_instead_of_using_another() -> None:
    table = QuantizedEmbedding(random_leaf("Q8_0", 37, 32))
    x = torch.ones(2, 32, requires_grad=True)
    scores = x @ table.tile(0, 16).t()
    table.tile(16, 32)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scores.sum().backward()


def test_panels_stay_mapped(tmp_path: Path) -> None:
    config = TINY["gemma-q32"]
    save_checkpoint(TinySource(config, stored(config, "Q4_0")), tmp_path / "m", format="packed")
    leaf = open_checkpoint(tmp_path / "m").lookup("layers.0.gate")
    assert isinstance(leaf, Packed)
    layer = QuantizedLinear(leaf)
    assert np.shares_memory(layer.matrix.panels, leaf.panels)
    assert layer.matrix.nbytes == leaf.nbytes
    assert torch.equal(layer.tile(3, 20), torch.from_numpy(leaf.dequantize()[3:20]))


def test_leaves_are_packed_in_their_own_format() -> None:
    leaf = random_leaf("Q4_K", 37, 512)
    matrix = QuantizedLinear(leaf).matrix
    assert (matrix.format, matrix.nbytes) == ("Q4_K", packed(leaf).nbytes)


def test_refusals() -> None:
    with pytest.raises(GemmaryError, match=r"only matrices stay quantized, not a weight of shape \(5,\)"):
        QuantizedLinear(Dense(np.zeros(5, np.float32)))
    layer = QuantizedLinear(random_leaf("Q8_0", 16, 32))
    with pytest.raises(GemmaryError, match="on the CPU only, not on meta") as refused:
        layer(torch.empty(1, 32, device="meta"))
    assert "\n" not in str(refused.value)
    with pytest.raises(GemmaryError, match=r"float32 or bfloat16, not torch\.float16"):
        layer(torch.empty(1, 32, dtype=torch.float16))


def test_rows_that_are_filled_up() -> None:
    """The columns that fill up the last blocks of the tower's rows are nobody's business outside."""
    rng = np.random.default_rng(2)
    dense = Dense(rng.standard_normal((37, 75)).astype(np.float32))
    bias = rng.standard_normal(37).astype(np.float32)
    x = torch.tensor(rng.standard_normal((3, 75)), dtype=torch.float32, requires_grad=True)
    leaf = in_blocks(Affine(dense, bias), "Q8_0")
    layer, weight = QuantizedLinear(leaf), torch.from_numpy(leaf.dequantize())
    y = layer(x)
    torch.testing.assert_close(y, x @ weight.T + torch.from_numpy(bias))
    y.sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(3, 75))
    panels = Packed("Q8_0", (37, 75), layer.matrix.panels)
    assert np.array_equal(panels.dequantize(), leaf.dequantize())
    assert np.array_equal(panels.stored(0, 37), leaf.stored(0, 37))
