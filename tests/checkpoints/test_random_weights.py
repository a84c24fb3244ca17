"""Random weights: the same for a seed, of the right formats and sizes, in Gemma's ranges, and writable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.hub import resolve
from gemmary.checkpoints.random_weights import open_random, random_checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from tests.tiny import TINY

QUANTS = [None, "int8", "int4"]
FAMILIES = ["gemma-q256", "gemma2-q256", "gemma3-q256", "embeddinggemma-q32"]
FORMATS = {None: ("BF16", "BF16"), "int8": ("Q8_0", "Q8_0"), "int4": ("Q4_0", "Q6_K")}


def small(family: str, **changes: object) -> Config:
    """A tiny shape whose vocabulary has room for the special pieces and the bytes."""
    return replace(TINY[family], vocab_size=520, **changes)  # type: ignore[arg-type]


def made(family: str, quant: str | None, seed: int = 0) -> Checkpoint:
    return random_checkpoint(small(family), "random:tiny", quant, seed)


def raw(leaf: Leaf) -> bytes:
    assert isinstance(leaf, Blocks | Dense)
    return (leaf.data if isinstance(leaf, Blocks) else leaf.array).tobytes()


@pytest.mark.parametrize("quant", QUANTS)
def test_a_seed_and_a_name_fix_every_bit(quant: str | None) -> None:
    one, again = made("gemma2-q256", quant), made("gemma2-q256", quant)
    forward = {name: raw(one.lookup(name)) for name in one.names()}
    backward = {name: raw(again.lookup(name)) for name in reversed(again.names())}
    assert forward == backward
    assert len(set(forward.values())) == len(forward)
    other = made("gemma2-q256", quant, seed=1)
    assert all(raw(other.lookup(name)) != bits for name, bits in forward.items())


def test_the_bits_are_the_same_everywhere() -> None:
    """Fixed once, so that figures of other days and machines are of the same weights."""
    leaf = made("gemma2-q256", "int4").lookup("layers.0.gate")
    assert isinstance(leaf, Blocks)
    assert leaf.data[0, :6].tolist() == [253, 33, 184, 67, 189, 211]


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_formats_and_bytes(family: str, quant: str | None) -> None:
    checkpoint = made(family, quant)
    table = tensors(checkpoint.config)
    assert checkpoint.names() == [tensor.name for tensor in table]
    matrix, embedding = FORMATS[quant]
    if embedding == "Q6_K" and checkpoint.config.hidden_size % 256:
        embedding = "Q8_0"
    leaves = {tensor.name: checkpoint.lookup(tensor.name) for tensor in table}
    for tensor in table:
        leaf = leaves[tensor.name]
        assert leaf.shape == tensor.shape
        assert leaf.format == ("F32" if tensor.is_norm else embedding if tensor.name == "embed" else matrix)
        assert isinstance(leaf, Dense if leaf.format in ("F32", "BF16") else Blocks)
    assert checkpoint.stored_bytes() == sum(leaf.nbytes for leaf in leaves.values())


def test_four_bits_take_what_llama_cpp_takes() -> None:
    """Gemma 2 2B as llama.cpp's quantizer lays out Q4_0: 256,000 x 2,304 at 6.5625 bits, the other matrices at 4.5."""
    checkpoint = open_random("random:gemma-2-2b:int4")
    norms = (26 * 4 + 1) * 2304
    matrices = checkpoint.config.parameters - 256_000 * 2304 - norms
    assert checkpoint.stored_bytes() == 256_000 * 2304 // 256 * 210 + matrices // 32 * 18 + norms * 4
    assert round(checkpoint.stored_bytes() / 1e9, 2) == 1.62


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_have_no_mean_and_the_stated_deviation(quant: str | None) -> None:
    checkpoint = made("gemma3-q256", quant)
    for name, deviation in (("layers.2.gate", 1.0), ("layers.3.down", 1.0), ("embed", 2.0)):
        values = checkpoint.lookup(name).dequantize() * checkpoint.config.hidden_size**0.5
        values *= (values.shape[1] / checkpoint.config.hidden_size) ** 0.5
        assert abs(values.mean()) < 0.05
        assert values.std() == pytest.approx(deviation, rel=0.05)
    assert np.abs(checkpoint.lookup("layers.0.attn_norm").dequantize()).max() <= 0.2


def test_codes_are_those_that_ggml_makes() -> None:
    leaf = made("gemma2-q256", "int8").lookup("layers.0.gate")
    assert isinstance(leaf, Blocks)
    codes = leaf.data.reshape(-1, 34)[:, 2:].view(np.int8)
    assert (codes.min(), codes.max()) == (-127, 127)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("family", ["gemma-q256", "gemma2-q256", "gemma3-q256"])
def test_logits_are_finite_and_spread_over_several_units(family: str, quant: str | None) -> None:
    checkpoint = made(family, quant)
    ids = np.random.default_rng(0).integers(0, 520, 40).tolist()
    rows = []
    for name in ("native", "reference"):
        engine = open_engine(name, checkpoint.config, checkpoint.lookup)
        batch = Batch.of(checkpoint.config, [Chunk(ids, outputs="all")])
        rows.append(engine.step(batch, [engine.new_cache(len(ids))]))
    assert np.isfinite(rows[0]).all()
    assert 0.5 < rows[1].std() < 8
    assert np.corrcoef(rows[0].ravel(), rows[1].ravel())[0, 1] > 0.99


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gguf_holds_the_same_weights(tmp_path: Path, family: str, quant: str | None) -> None:
    checkpoint = made(family, quant)
    save_checkpoint(checkpoint, tmp_path / "tiny.gguf", format="gguf")
    again = open_checkpoint(tmp_path / "tiny.gguf")
    assert again.config == checkpoint.config
    for tensor in tensors(checkpoint.config):
        ours, theirs = checkpoint.lookup(tensor.name), again.lookup(tensor.name)
        if tensor.is_norm:  # stored as 1 + w
            np.testing.assert_allclose(theirs.dequantize(), ours.dequantize(), atol=1e-7)
        else:
            assert (theirs.format, raw(theirs)) == (ours.format, raw(ours))
    text = "a b"
    assert again.tokenizer.encode(text, bos=True) == checkpoint.tokenizer.encode(text, bos=True)


def test_the_stand_in_tokenizer() -> None:
    tokenizer = made("gemma2-q256", None).tokenizer
    assert tokenizer.vocab_size == 520
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.bos_id, tokenizer.unk_id) == (0, 1, 2, 3)
    assert tokenizer.turn_ids == (106, 107)
    text = "To be, or not to bé?\n"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode([500, 7]) == " t500 t7"


def test_a_released_shape_runs() -> None:
    with gemmary.random_model("gemma-3-270m", "int4", context=64) as model:
        assert model.name == "random:gemma-3-270m:int4"
        assert model.tokenizer.turn_ids == (105, 106)
        assert any("random" in notice for notice in model.notices)
        assert set(model.info.formats) == {"F32", "Q4_0", "Q8_0"}
        out = model.generate("The", max_tokens=3, temperature=0.0, ignore_eos=True)
        assert len(out.tokens) == 3
        named = open_checkpoint(resolve("random:gemma-3-270m:int4"))
        assert raw(named.lookup("layers.0.q")) == raw(model.lookup("layers.0.q"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("random:gemma-2-2c", "did you mean gemma-2-2b"),
        ("random:", "no model is called ''"),
        ("random:gemma-2-2b:int3", "with :int8 or :int4 after it, not :int3"),
        ("random:gemma-2-2b:", "with :int8 or :int4 after it, not :"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(GemmaryError, match=message):
        gemmary.load(name)


def test_options_that_are_refused() -> None:
    with pytest.raises(GemmaryError, match="seed"):
        gemmary.random_model("gemma-3-270m", seed=-1)
    with pytest.raises(GemmaryError, match="quant must be int8 or int4"):
        gemmary.random_model("gemma-3-270m", "int5")
    with pytest.raises(GemmaryError, match="divide into"):
        random_checkpoint(small("gemma"), "random:odd", "int8", 0)
