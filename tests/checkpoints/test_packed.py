"""Packed folders: what is written is read, maps in place and converts back; what is unsound is refused in one line."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary import _core
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.packed import FILE
from gemmary.checkpoints.tensors import tensors
from gemmary.engines.native import NativeEngine
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile
from gemmary.quantize.blocks import BLOCK_SIZES, row_bytes
from gemmary.quantize.leaves import FLOATS, Blocks, Dense, Leaf, Packed
from tests.checkpoints.sources import TinySource, logits, tiny
from tests.checkpoints.test_hostile import alter, flip, refused
from tests.engines.helpers import in_steps, same_bits, stored
from tests.tiny import TINY, random_tokens

FORMATS = (*FLOATS, *BLOCK_SIZES)


def random_leaf(format: str, rows: int, columns: int) -> Leaf:
    """Any bits as codes and scales, but scales and floats that are finite."""
    rng = np.random.default_rng([rows, columns])
    if format in FLOATS:
        return Dense(rng.standard_normal((rows, columns)).astype(FLOATS[format]))
    data = rng.integers(0, 256, (rows, row_bytes(format, columns)), np.uint8)
    places = {"Q4_0": [0], "Q5_0": [0], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}
    size = BLOCK_SIZES[format][1]
    for at in places.get(format, [0, 2]):
        data[:, at + 1 :: size] &= 0xBB  # not the largest exponent
    return Blocks(format, (rows, columns), data)


def packed(leaf: Leaf) -> Packed:
    rows, columns = leaf.shape
    runtime = _core.Runtime(1, None)
    weight = _core.PackedWeight(runtime, leaf.format, rows, columns)
    weight.pack(runtime, 0, leaf.stored(0, rows))
    return Packed(leaf.format, (rows, columns), weight.panels)


def same_rows(a: Leaf, b: Leaf) -> bool:
    return a.format == b.format and a.shape == b.shape and np.array_equal(*(x.stored(0, x.shape[0]) for x in (a, b)))


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("format", FORMATS)
def test_panels_lose_nothing(format: str, rows: int) -> None:
    leaf = random_leaf(format, rows, 512)
    panels = packed(leaf)
    assert panels.nbytes == _core.packed_bytes(format, rows, 512)
    assert same_rows(panels, leaf)
    assert np.array_equal(panels.stored(rows // 2, rows), leaf.stored(rows // 2, rows))
    assert same_bits(panels.dequantize(), leaf.dequantize())
    index = np.array([[rows - 1, 0], [rows // 2, 0]])
    assert same_bits(panels.rows(index), leaf.dequantize()[index])


def test_rows_that_a_weight_does_not_have() -> None:
    panels = packed(random_leaf("Q8_0", 16, 32))
    for row in (-1, 16):
        with pytest.raises(ValueError, match="no such row"):
            panels.rows(np.array([row]))


@pytest.mark.parametrize("name", ["gemma", "gemma2-head-scale", "gemma3", "embeddinggemma", "embeddinggemma-q32"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    assert save_checkpoint(source, tmp_path / "m", format="packed") == ["the folder carries no tokenizer"]
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == source.config
    assert checkpoint.format == "packed"
    assert checkpoint.names() == [t.name for t in tensors(source.config)]
    for key in checkpoint.names():
        leaf = checkpoint.lookup(key)
        assert isinstance(leaf, Dense if len(leaf.shape) == 1 else Packed)
        assert same_rows(leaf, source.lookup(key))


@pytest.mark.parametrize("format", ["F32", "BF16", "F16", "Q8_0", "Q4_0"])
def test_mapped_panels_give_the_bits_of_packed_ones(format: str, tmp_path: Path) -> None:
    config = TINY["gemma3-q32"]
    source = TinySource(config, stored(config, format))
    save_checkpoint(source, tmp_path / "m", format="packed")
    lookup = open_checkpoint(tmp_path / "m").lookup
    tokens = random_tokens(config, 40)
    mapped, copied = (NativeEngine(config, each, threads=2) for each in (lookup, source.lookup))
    assert mapped.info.formats == copied.info.formats
    assert same_bits(in_steps(mapped, tokens, [40]), in_steps(copied, tokens, [40]))
    widened, dense = (NativeEngine(config, each, dtype="bfloat16") for each in (lookup, source.lookup))
    assert same_bits(in_steps(widened, tokens, [40]), in_steps(dense, tokens, [40]))


def test_the_native_engine_copies_nothing(tmp_path: Path) -> None:
    config = TINY["gemma-q32"]
    save_checkpoint(TinySource(config, stored(config, "Q8_0")), tmp_path / "m", format="packed")
    leaf = open_checkpoint(tmp_path / "m").lookup("embed")
    assert isinstance(leaf, Packed)
    weight = _core.PackedWeight.borrow(leaf.format, *leaf.shape, leaf.panels)
    assert np.shares_memory(weight.panels, leaf.panels)
    with pytest.raises(ValueError, match="somebody else's"):
        weight.pack(_core.Runtime(1, None), 0, leaf.stored(0, 16))


def test_panels_must_be_aligned_and_whole() -> None:
    leaf = packed(random_leaf("Q8_0", 16, 64))
    moved = np.empty(leaf.nbytes + 1, np.uint8)[1:]
    with pytest.raises(ValueError, match="64-byte aligned"):
        _core.PackedWeight.borrow("Q8_0", 16, 64, moved)
    with pytest.raises(ValueError, match="do not match its shape"):
        _core.PackedWeight.borrow("Q8_0", 17, 64, leaf.panels)


def test_other_engines_read_it(tmp_path: Path) -> None:
    config = TINY["gemma-q32"]
    source = TinySource(config, stored(config, "Q4_0"))
    save_checkpoint(source, tmp_path / "m", format="packed")
    tokens = random_tokens(config, 12)
    lookup = open_checkpoint(tmp_path / "m").lookup
    assert same_bits(logits(config, lookup, tokens), logits(config, source.lookup, tokens))


@pytest.mark.parametrize("format", ["Q8_0", "BF16"])
def test_it_converts_back(format: str, tmp_path: Path) -> None:
    config = TINY["gemma-q32"]
    source = TinySource(config, stored(config, format))
    save_checkpoint(source, tmp_path / "a.gguf", format="gguf")
    save_checkpoint(TinySource(config, open_checkpoint(tmp_path / "a.gguf").lookup), tmp_path / "p", format="packed")
    panels = TinySource(config, open_checkpoint(tmp_path / "p").lookup)
    save_checkpoint(panels, tmp_path / "b.gguf", format="gguf")
    assert (tmp_path / "b.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    save_checkpoint(panels, tmp_path / "again", format="packed")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / "p" / FILE).read_bytes()


def test_it_quantizes_on_the_way(tmp_path: Path) -> None:
    config = TINY["gemma-q32"]
    save_checkpoint(tiny("gemma-q32"), tmp_path / "m", format="packed", dtype="int4")
    expected = stored(config, "Q4_0")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert all(same_rows(checkpoint.lookup(name), expected(name)) for name in checkpoint.names())


def test_rows_that_do_not_divide_into_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match="embed cannot be packed: Q4_0 rows must be a multiple of 32"):
        save_checkpoint(tiny("gemma"), tmp_path / "m", format="packed", dtype="int4")
    assert not (tmp_path / "m").exists()


# What is refused ----------------------------------------------------------------------------------------------------


class Folder:
    """A packed folder whose file can be taken apart and written again."""

    def __init__(self, path: Path) -> None:
        save_checkpoint(TinySource(TINY["gemma-q32"], stored(TINY["gemma-q32"], "Q8_0")), path, format="packed")
        self.path = path
        self.whole = (path / FILE).read_bytes()
        self.start = 8 + struct.unpack_from("<Q", self.whole)[0]
        self.header: dict[str, Any] = json.loads(self.whole[8 : self.start])

    def write(self, header: dict[str, Any], body: bytes | None = None) -> None:
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        (self.path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + (body or self.whole[self.start :]))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "m")


def refusal(folder: Folder, header: dict[str, Any], body: bytes | None = None) -> str:
    folder.write(header, body)
    with pytest.raises(GemmaryError) as caught:
        open_checkpoint(folder.path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "line"),
    [
        ("version", "0", "is packed in layout '0', and this Gemmary reads layout"),
        ("version", None, "is packed in layout None"),
        ("layers.0.q", "Q9_9 96 64", "metadata of 'layers.0.q' are not a known format, rows and columns"),
        ("layers.0.q", "Q8_0 96", "are not a known format, rows and columns"),
        ("layers.0.q", "Q8_0 96 32", "layers.0.q has shape (96, 32), but config.json means (96, 64)"),
        ("layers.0.q", "Q4_0 96 64", "layers.0.q is U8 (6528,), but Q4_0 (96, 64) takes U8 (3456,)"),
        ("layers.0.q", "Q4_K 96 64", "layers.0.q: Q4_K rows must be a multiple of 256 weights, not 64"),
        ("layers.0.q", None, "lacks 'layers.0.q'"),
        ("layers.9.q", "Q8_0 96 64", "holds 'layers.9.q', which this model does not have"),
    ],
)
def test_metadata_that_do_not_fit(folder: Folder, key: str, text: str | None, line: str) -> None:
    metadata = folder.header["__metadata__"]
    if text is None:
        del metadata[key]
    else:
        metadata[key] = text
    assert line in refusal(folder, folder.header)


def test_metadata_are_texts(folder: Folder) -> None:
    folder.header["__metadata__"]["version"] = 1
    assert "its metadata are not texts by name" in refusal(folder, folder.header)


def test_a_norm_of_another_dtype(folder: Folder) -> None:
    folder.header["final_norm"] = {**folder.header["final_norm"], "dtype": "U8", "shape": [256]}
    assert "final_norm is U8 (256,), not F32 (64,)" in refusal(folder, folder.header)


def test_a_tensor_too_many_or_too_few(folder: Folder) -> None:
    last = max(entry["data_offsets"][1] for name, entry in folder.header.items() if name != "__metadata__")
    more = {**folder.header, "extra": {"dtype": "U8", "shape": [0], "data_offsets": [last, last]}}
    assert "holds 'extra', which this model does not have" in refusal(folder, more)
    renamed = {("other" if name == "embed" else name): entry for name, entry in folder.header.items()}
    assert "lacks 'embed'" in refusal(folder, renamed)


def test_a_matrix_that_is_not_aligned(folder: Folder) -> None:
    text = json.dumps(folder.header).encode()
    text += b" " * (4 + -(8 + len(text)) % 64)
    (folder.path / FILE).write_bytes(struct.pack("<Q", len(text)) + text + folder.whole[folder.start :])
    with pytest.raises(GemmaryError, match="embed does not begin at a multiple of 64 bytes"):
        open_checkpoint(folder.path)


def test_a_truncated_file(folder: Folder) -> None:
    for length in (0, 7, 100, folder.start, len(folder.whole) - 1):
        (folder.path / FILE).write_bytes(folder.whole[:length])
        with pytest.raises(GemmaryError, match="not a sound safetensors file"):
            open_checkpoint(folder.path)


def test_mutated_files(folder: Folder) -> None:
    counts = [0, 0]
    for run in range(400):
        rng = random.Random(run)
        if run % 2:
            folder.write(alter(rng, folder.header))
        else:
            changed = flip(rng, folder.whole[: folder.start]) + folder.whole[folder.start :]
            (folder.path / FILE).write_bytes(changed)

        def use() -> None:
            checkpoint = open_checkpoint(folder.path)
            for name in checkpoint.names():
                leaf = checkpoint.lookup(name)
                assert leaf.stored(0, leaf.shape[0]).size

        counts[refused(use)] += 1
    assert counts[0] > 0
    assert counts[1] > 350


def test_the_writer_pads_every_header(tmp_path: Path) -> None:
    from gemmary.checkpoints.safetensors import SafetensorsFile, write

    data: npt.NDArray[np.uint8] = np.arange(3, dtype=np.uint8)
    for length in range(70):
        with open(path := tmp_path / "f.safetensors", "wb") as file:
            write(HashingFile(file), [("a" * (length + 1), "U8", (3,))], [iter([data])])
        read = SafetensorsFile(path)
        (entry,) = read.entries.values()
        assert entry.begin % 64 == 0
        assert np.array_equal(read.data("a" * (length + 1)), data)
