"""Orbax checkpoints: what Orbax writes is read, in every layout and on-disk form; what is unsound is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import VisionConfig
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine
from tests.checkpoints import flax_trees
from tests.checkpoints.flax_trees import Tree
from tests.checkpoints.sources import logits, rounded, same_leaves, tiny
from tests.tiny import random_tokens

ts = pytest.importorskip("tensorstore", reason="TensorStore is not installed (gemmary[orbax])")

LAYOUTS: dict[str, Callable[[Tree], Tree]] = {
    "flat": flax_trees.flat,
    "nested": lambda tree: tree,
    "trained": lambda tree: {"params": tree, "step": np.zeros((), np.int32), "opt_state": {"0": {"mu": tree}}},
    "stacked": lambda tree: flax_trees.stacked(tree, 2),
}


def describe(folder: Path, name: str) -> Path:
    """Puts the config.json of a tiny model beside the arrays, which do not say all of it."""
    (folder / "config.json").write_text(json.dumps(write_config(tiny(name).config, "float32", [1])))
    return folder


def write(folder: Path, tree: Tree, *, driver: str = "zarr", ocdbt: bool = False) -> Path:
    """A tree as Orbax lays it out, by TensorStore alone: a zarr for each array, named by its path with dots."""
    base: dict[str, Any] = {"driver": "file", "path": f"{folder}/"}
    folder.mkdir()
    (folder / "_METADATA").write_text("{}")

    def put(before: list[str], value: Any) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                put([*before, key], each)
            return
        name = ".".join(before) + "/"
        place = {"driver": "ocdbt", "base": base, "path": name} if ocdbt else {**base, "path": base["path"] + name}
        spec = {"driver": driver, "kvstore": place, "store_data_equal_to_fill_value": True}
        ts.open(spec, create=True, dtype=value.dtype, shape=value.shape).result().write(value).result()

    put([], tree)
    return folder


@pytest.mark.parametrize(("driver", "ocdbt"), [("zarr", False), ("zarr3", False), ("zarr", True), ("zarr3", True)])
def test_each_form_on_disk(driver: str, ocdbt: bool, tmp_path: Path) -> None:
    source = rounded(tiny("gemma3"), "bfloat16")
    tree = flax_trees.flat(flax_trees.nested(source.config, source.lookup, transposed=True))
    tree = {key: {last: a.astype("bfloat16") for last, a in arrays.items()} for key, arrays in tree.items()}
    folder = describe(write(tmp_path / "m", tree, driver=driver, ocdbt=ocdbt), "gemma3")
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "orbax"
    assert checkpoint.config == source.config
    assert checkpoint.formats()["layers.0.gate"] == "BF16"
    assert checkpoint.stored_bytes() > 0
    same_leaves(checkpoint, source)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["gemma-mha", "gemma2", "gemma3"])
def test_what_orbax_writes_has_the_logits_of_the_hugging_face_folder(name: str, layout: str, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    source = tiny(name)
    tree = flax_trees.nested(source.config, source.lookup, transposed=name == "gemma3")
    ocp.PyTreeCheckpointer(use_ocdbt=layout != "nested").save(tmp_path / "m", LAYOUTS[layout](tree))
    save_checkpoint(source, tmp_path / "hf")
    theirs, ours = open_checkpoint(tmp_path / "hf"), open_checkpoint(describe(tmp_path / "m", name))
    same_leaves(ours, source)
    tokens = random_tokens(source.config, 9)
    assert np.array_equal(logits(ours.config, ours.lookup, tokens), logits(theirs.config, theirs.lookup, tokens))


def test_a_folder_that_holds_the_arrays_and_the_tokenizer(tmp_path: Path) -> None:
    """As kagglehub downloads one."""
    from tests.tokenizer.small import build

    source = tiny("gemma")
    write(tmp_path / "2b", flax_trees.nested(source.config, source.lookup))
    (tmp_path / "2b" / "_METADATA").rename(tmp_path / "2b" / "checkpoint")  # what the oldest ones have instead
    describe(tmp_path / "2b", "gemma")
    with pytest.raises(GemmaryError, match=r"has no tokenizer: put tokenizer.model or tokenizer.json beside it"):
        open_checkpoint(tmp_path).tokenizer  # noqa: B018
    build().save(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    same_leaves(checkpoint, source)
    assert checkpoint.tokenizer.encode("abc") == build().encode("abc")


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("gemma")
    tree = flax_trees.flat(flax_trees.nested(source.config, source.lookup))
    folder = describe(write(tmp_path / "m", tree), "gemma")

    chunk = folder / "transformer/layer_0/attn/q_einsum.w" / "0.0.0"
    whole = chunk.read_bytes()
    chunk.unlink()
    with pytest.raises(GemmaryError, match=r"is not a sound Orbax checkpoint: .*chunk"):
        open_checkpoint(folder).lookup("layers.0.q")
    chunk.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GemmaryError, match="is not a sound Orbax checkpoint") as caught:
        open_checkpoint(folder).lookup("layers.0.q")
    assert "\n" not in str(caught.value)
    chunk.write_bytes(whole)

    header = chunk.with_name(".zarray")
    said = json.loads(header.read_text())
    for change, words in (
        ({"chunks": [1 << 20, 1 << 20, 64]}, "are larger than the array"),
        ({"dtype": "<i4", "fill_value": None}, "is 'int32'; weights are read as"),
        ({"dtype": "<x9"}, "is not a sound Orbax checkpoint"),
    ):
        header.write_text(json.dumps({**said, **change}))
        with pytest.raises(GemmaryError, match=words):
            open_checkpoint(folder)
    header.write_text("{")
    with pytest.raises(GemmaryError, match="is not a sound Orbax checkpoint"):
        open_checkpoint(folder)

    shutil.rmtree(folder / "transformer")
    with pytest.raises(GemmaryError, match=r"holds 0 arrays of Orbax's"):
        open_checkpoint(folder)
    (folder / "ocdbt.process_0").mkdir()
    with pytest.raises(GemmaryError, match="was never finished"):
        open_checkpoint(folder)
    (folder / "manifest.ocdbt").write_bytes(b"nothing of the kind")
    with pytest.raises(GemmaryError, match="is not a sound Orbax checkpoint"):
        open_checkpoint(folder)


# Writing ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gemma", "gemma-mha", "gemma2", "gemma3"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    assert save_checkpoint(source, tmp_path / "m", format="orbax") == ["the folder carries no tokenizer"]
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == source.config
    same_leaves(checkpoint, source)
    save_checkpoint(source, tmp_path / "n", format="orbax", dtype="bfloat16")
    same_leaves(open_checkpoint(tmp_path / "n"), rounded(source, "bfloat16"))


def test_a_model_that_sees(tmp_path: Path) -> None:
    vision = VisionConfig(12, num_layers=2, hidden_size=24, num_heads=3, intermediate_size=36, patch_size=3, pool=2,
                          soft_norm=True)  # fmt: skip
    source = random_checkpoint(replace(tiny("gemma3").config, vocab_size=500, vision=vision), "random:tiny", None, 0)
    save_checkpoint(source, tmp_path / "m", format="orbax", dtype="float32")
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == source.config
    for name in source.names():
        mine, theirs = checkpoint.lookup(name), source.lookup(name)
        assert np.array_equal(mine.dequantize(), theirs.dequantize()), name
        if isinstance(theirs, Affine):
            assert isinstance(mine, Affine)
            assert np.array_equal(mine.bias, theirs.bias), name


@pytest.mark.parametrize("name", ["gemma-mha", "gemma3"])
def test_orbax_restores_what_is_written(name: str, tmp_path: Path) -> None:
    ocp = pytest.importorskip("orbax.checkpoint", reason="orbax-checkpoint is not installed")
    source = tiny(name)
    save_checkpoint(source, tmp_path / "m", format="orbax")
    expected = flax_trees.flat(flax_trees.nested(source.config, source.lookup, transposed=name == "gemma3"))
    found = ocp.PyTreeCheckpointer().restore(tmp_path / "m")
    assert found.keys() == expected.keys()
    told = ocp.StandardCheckpointer().metadata(tmp_path / "m").item_metadata.tree  # what DeepMind's loader goes by
    assert told.keys() == expected.keys()
    for key, arrays in expected.items():
        assert found[key].keys() == arrays.keys()
        assert all(np.array_equal(found[key][last], array) for last, array in arrays.items()), key


def test_the_table_is_padded_as_the_releases_pad_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("gemma")
    rows = source.config.vocab_size
    monkeypatch.setattr("gemmary.checkpoints.orbax_write._PADDED", {rows: rows + 3})
    save_checkpoint(source, tmp_path / "m", format="orbax")
    with pytest.raises(GemmaryError, match=rf"says vocab_size = {rows}, but m holds {rows + 3}"):
        open_checkpoint(tmp_path / "m")
    monkeypatch.setattr("gemmary.checkpoints.sizes.PADDED_ROWS", {rows + 3: rows})
    same_leaves(open_checkpoint(tmp_path / "m"), source)


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for name, dtype, words in (
        ("embeddinggemma", None, "is no Gemma 1, 2 or 3"),
        ("gemma", "float16", "written as float32 or bfloat16, not F16"),
    ):
        with pytest.raises(GemmaryError, match=words):
            save_checkpoint(tiny(name), tmp_path / "m", format="orbax", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_METADATA").write_text("{}")
    monkeypatch.setitem(__import__("sys").modules, "tensorstore", None)
    with pytest.raises(GemmaryError, match=r'need TensorStore: pip install "gemmary\[orbax\]"'):
        open_checkpoint(tmp_path)
