"""GGUF against the `gguf` package, against ourselves, and on the starter's real file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gemmary import zoo
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.gguf import read_file
from gemmary.checkpoints.gguf_config import write_config
from gemmary.checkpoints.tensors import tensors
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import BLOCK_SIZES, quantize
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from tests.checkpoints.sources import TinySource, logits, same_leaves, tiny
from tests.tiny import random_tokens

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

FAMILIES = ["gemma-q32", "gemma2-q32", "gemma3-q32", "embeddinggemma-q32"]
WRITTEN = {
    "F32": np.float32,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "Q8_0": None,
    "Q4_0": None,
}


def stored_as(source: TinySource, format: str) -> TinySource:
    """The source as a GGUF file in `format` gives it back: norms through 1 + w in float32."""
    norms = {t.name for t in tensors(source.config) if t.is_norm}

    def lookup(name: str) -> Leaf:
        array = source.lookup(name).dequantize()
        if name in norms:
            return Dense((array + np.float32(1)) - np.float32(1))
        if format in BLOCK_SIZES:
            return Blocks(format, (array.shape[0], array.shape[1]), quantize(format, array))
        return Dense(array.astype(WRITTEN[format]))

    return TinySource(source.config, lookup)


@pytest.mark.parametrize("format", WRITTEN)
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_read(name: str, format: str, tmp_path: Path) -> None:
    source = tiny(name)
    save_checkpoint(source, path := tmp_path / "m.gguf", format="gguf", dtype=format)
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == source.config
    assert checkpoint.name == "tiny"
    expected = stored_as(source, format)
    same_leaves(checkpoint, expected)
    if not source.config.bidirectional:
        tokens = random_tokens(source.config, 9)
        found = logits(checkpoint.config, checkpoint.lookup, tokens)
        assert np.array_equal(found, logits(source.config, expected.lookup, tokens))


@pytest.mark.parametrize("format", WRITTEN)
def test_the_gguf_package_reads_what_we_write(format: str, tmp_path: Path) -> None:
    source = tiny("gemma2-q32")
    save_checkpoint(source, path := tmp_path / "m.gguf", format="gguf", dtype=format)
    reader = gguf.GGUFReader(path)
    found = {t.name: t for t in reader.tensors}
    assert set(found) == {t.gguf for t in tensors(source.config)}
    for tensor in tensors(source.config):
        theirs = found[tensor.gguf]
        array = source.lookup(tensor.name).dequantize()
        assert tuple(theirs.shape[::-1]) == tensor.shape
        if tensor.is_norm:
            assert theirs.tensor_type.name == "F32"
            assert np.array_equal(theirs.data, array + 1)
            continue
        assert theirs.tensor_type.name == format
        kind = gguf.GGMLQuantizationType[format]
        assert np.array_equal(theirs.data.view(np.uint8), gguf.quants.quantize(array, kind).view(np.uint8))
    values = {k: f.contents() for k, f in reader.fields.items()}
    assert values["general.architecture"] == "gemma2"
    assert values["gemma2.attn_logit_softcapping"] == 1.5
    assert values["gemma2.final_logit_softcapping"] == 2.5
    assert values["gemma2.attention.sliding_window"] == 5
    assert values["gemma2.attention.head_count_kv"] == 2
    assert values["gemma2.context_length"] == 64
    sums = (tmp_path / "m.gguf.sha256").read_text()
    assert sums == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  m.gguf\n"


@pytest.mark.parametrize("format", BLOCK_SIZES)
def test_every_block_type_passes_through_unchanged(format: str, tmp_path: Path) -> None:
    source = tiny("gemma3-q256")
    norms = {t.name for t in tensors(source.config) if t.is_norm}
    size, nbytes = BLOCK_SIZES[format]

    def lookup(name: str) -> Leaf:
        leaf = source.lookup(name)
        if name in norms:
            return stored_as(source, "F32").lookup(name)
        rows, columns = leaf.shape
        data = np.random.default_rng(len(name)).integers(0, 256, (rows, columns // size * nbytes), dtype=np.uint8)
        return Blocks(format, (rows, columns), data)

    blocks = TinySource(source.config, lookup)
    save_checkpoint(blocks, tmp_path / "m.gguf", format="gguf")
    same_leaves(open_checkpoint(tmp_path / "m.gguf"), blocks)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["token_embd.weight"] == format


@pytest.mark.parametrize("format", ["Q4_K", "Q6_K"])
def test_blocks_of_256_are_made(format: str, tmp_path: Path) -> None:
    source = tiny("gemma3-q256")
    notices = save_checkpoint(source, path := tmp_path / "m.gguf", format="gguf", dtype=format)
    assert not [notice for notice in notices if "do not divide" in notice]
    expected = stored_as(source, format)
    same_leaves(open_checkpoint(path), expected)
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "blk.3.ffn_down.weight":
            assert tensor.tensor_type.name == format
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(theirs, expected.lookup("layers.3.down").dequantize())


def test_rows_that_blocks_of_256_do_not_fit_are_said(tmp_path: Path) -> None:
    notices = save_checkpoint(tiny("gemma3-q32"), tmp_path / "m.gguf", format="gguf", dtype="Q4_K_M")
    said = [n for n in notices if "do not divide into" in n]
    assert [n.partition(": ")[2].partition(" where")[0] for n in said] == [
        "embed, layers.down, layers.v are Q8_0",
        "layers.down, layers.gate, layers.k, layers.o, layers.q, layers.up, layers.v are Q5_0",
    ]
    formats = open_checkpoint(tmp_path / "m.gguf").formats()
    assert (formats["embed"], formats["layers.0.v"], formats["layers.0.gate"]) == ("Q8_0", "Q5_0", "Q5_0")


# Files made with the gguf package, so that each departs from a sound one by one thing ---------------------------------


class Maker:
    """A tiny Gemma 3 file, written by the gguf package."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = tiny("gemma3-q32")
        self.arrays: dict[str, npt.NDArray[Any]] = {
            t.gguf: self.source.lookup(t.name).dequantize() + np.float32(t.is_norm) for t in tensors(self.source.config)
        }
        self.values = write_config(self.source.config, [])

    def write(self) -> Path:
        writer = gguf.GGUFWriter(self.path, self.values.pop("general.architecture"))
        for key, value in self.values.items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, bool: writer.add_bool}
            add[type(value)](key, value)
        for name, array in self.arrays.items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return self.path


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path / "made.gguf")


def test_a_file_of_the_gguf_package_is_read(maker: Maker) -> None:
    maker.values["tokenizer.ggml.add_bos_token"] = False
    checkpoint = open_checkpoint(maker.write())
    same_leaves(checkpoint, stored_as(maker.source, "F32"))
    assert checkpoint.name == "made"
    assert checkpoint.chat_template is None
    assert [n for n in checkpoint.notices if "BOS" in n]
    with pytest.raises(GemmaryError, match="carries no tokenizer"):
        _ = checkpoint.tokenizer


def test_a_head_may_stand_twice_but_not_differ(maker: Maker) -> None:
    maker.arrays["output.weight"] = maker.arrays["token_embd.weight"]
    maker.values["general.architecture"] = "gemma3"
    same_leaves(open_checkpoint(maker.write()), stored_as(maker.source, "F32"))
    other = Maker(maker.path)
    other.arrays["output.weight"] = np.nextafter(other.arrays["token_embd.weight"], np.float32(9))
    with pytest.raises(GemmaryError, match=r"output\.weight differs"):
        open_checkpoint(other.write())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a.pop("blk.3.ffn_up.weight"), "lacks blk.3.ffn_up.weight"),
        (lambda a: a.update({"blk.7.ffn_up.weight": np.zeros(4, np.float32)}), "which this model does not have"),
        (lambda a: a.update({"output_norm.weight": np.zeros(63, np.float32)}), "has shape (63,)"),
        (lambda a: a.update({"output_norm.weight": np.zeros(64, np.float16)}), "is F16, not F32"),
        (lambda a: a.update({"blk.0.attn_q.weight": np.zeros((96, 64), np.int32)}), "its tensors are I32"),
    ],
)
def test_other_tensors_are_refused(maker: Maker, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    change(maker.arrays)
    with pytest.raises(GemmaryError) as caught:
        open_checkpoint(maker.write())
    assert words in str(caught.value)


def test_files_that_are_not_whole_are_refused(maker: Maker, tmp_path: Path) -> None:
    whole = maker.write().read_bytes()
    for data, words in [
        (b"", "too short"),
        (b"GGUF", "too short"),
        (b"PK" + whole[2:], "does not begin as a GGUF file"),
        (whole[:500], "truncated inside its header"),
        (whole[:-64], "truncated: its tensors do not fit"),
        (whole + bytes(64), "something follows"),
        (whole[:4] + b"\0\0\0\3" + whole[8:], "big-endian"),
        (whole[:4] + b"\1\0\0\0" + whole[8:], "neither 2 nor 3"),
    ]:
        (path := tmp_path / "bad.gguf").write_bytes(data)
        with pytest.raises(GemmaryError) as caught:
            open_checkpoint(path)
        assert words in str(caught.value)
        assert str(path) in str(caught.value)


def test_rows_that_do_not_divide_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match="do not divide into Q8_0 blocks"):
        save_checkpoint(tiny("gemma"), tmp_path / "m.gguf", format="gguf", dtype="int8")
    with pytest.raises(GemmaryError, match="not Q5_K"):
        save_checkpoint(tiny("gemma3-q256"), tmp_path / "m.gguf", format="gguf", dtype="Q5_K")
    with pytest.raises(GemmaryError, match="cannot be written as 'int3'"):
        save_checkpoint(tiny("gemma"), tmp_path / "m.gguf", format="gguf", dtype="int3")
    with pytest.raises(GemmaryError, match="no format is called 'onnx'"):
        save_checkpoint(tiny("gemma"), tmp_path / "m", format="onnx")
    assert list(tmp_path.iterdir()) == []


# Real weights --------------------------------------------------------------------------------------------------------


def test_the_starter_is_read_as_the_gguf_package_reads_it(starter_gguf: Path) -> None:
    checkpoint = open_checkpoint(starter_gguf)
    assert checkpoint.config == zoo.GEMMA3_270M
    assert checkpoint.name == "Gemma 3 270m"
    assert checkpoint.chat_template is None
    theirs = {t.name: t for t in gguf.GGUFReader(starter_gguf).tensors}
    for tensor in tensors(checkpoint.config):
        leaf = checkpoint.lookup(tensor.name)
        found = theirs[tensor.gguf]
        if tensor.name == "embed":  # a few rows of 262,144
            index = np.array([0, 2, 106, 262_143, 2])
            rows = gguf.quants.dequantize(found.data[index], found.tensor_type)
            assert np.array_equal(leaf.rows(index), rows)
        elif tensor.is_norm:
            assert np.array_equal(leaf.dequantize() + np.float32(1), found.data)
        elif tensor.name.startswith("layers.4."):
            assert leaf.format == found.tensor_type.name
            assert np.array_equal(leaf.dequantize(), gguf.quants.dequantize(found.data, found.tensor_type))


def test_the_starter_is_written_as_it_was(starter_gguf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(starter_gguf)
    checkpoint.load_chat_template = lambda: "{{ a template }}"
    assert save_checkpoint(checkpoint, tmp_path / "copy.gguf", format="gguf") == []
    copy = open_checkpoint(tmp_path / "copy.gguf")
    assert (copy.config, copy.name) == (checkpoint.config, checkpoint.name)
    assert copy.chat_template == "{{ a template }}"
    for name in checkpoint.names():
        mine, theirs = copy.lookup(name), checkpoint.lookup(name)
        if isinstance(mine, Blocks) and isinstance(theirs, Blocks):
            assert mine.format == theirs.format
            assert np.array_equal(mine.data, theirs.data), name
        else:
            assert np.array_equal(mine.dequantize(), theirs.dequantize()), name
    _, before, _ = read_file(starter_gguf)
    _, after, _ = read_file(tmp_path / "copy.gguf")
    assert after["tokenizer.ggml.tokens"][0] == before["tokenizer.ggml.tokens"][0]
    for key in ("scores", "token_type"):
        assert np.array_equal(after[f"tokenizer.ggml.{key}"], before[f"tokenizer.ggml.{key}"])
    for key in ("bos_token_id", "eos_token_id", "add_bos_token", "add_eos_token", "add_space_prefix", "model", "pre"):
        assert after[f"tokenizer.ggml.{key}"] == before[f"tokenizer.ggml.{key}"]
    assert after["tokenizer.ggml.eot_token_id"] == 106
    assert checkpoint.tokenizer.encode("The capital of France is") == copy.tokenizer.encode("The capital of France is")


def test_a_name_out_of_a_file_is_one_printable_line(tmp_path: Path) -> None:
    source = tiny("gemma-q32")
    source.name = "a\x1b[2J\nverdict" + "x" * 100
    save_checkpoint(source, path := tmp_path / "m.gguf", format="gguf")
    assert open_checkpoint(path).name == ("a\ufffd[2J\ufffdverdict" + "x" * 100)[:80]
