"""Repositories of the hub that hold a model in Orbax's or KerasHub's layout alone: what of them is fetched, and that it
runs from the cache, in which every file is a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from gemmary.checkpoints import hub, open_checkpoint, open_named
from gemmary.checkpoints.hub import HubName
from gemmary.checkpoints.hub_files import select_files
from gemmary.checkpoints.hub_layouts import list_of, orbax_folders
from gemmary.errors import GemmaryError
from tests.checkpoints import flax_trees, test_keras_hub, test_orbax
from tests.checkpoints.fake_hub import COMMIT, Hub, Repo, serve
from tests.checkpoints.sources import same_leaves, tiny
from tests.checkpoints.test_hub import pull_all
from tests.tokenizer import small

pytestmark = pytest.mark.usefixtures("cache")


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(cache: Path, repo: str, files: dict[str, bytes]) -> Path:
    """A repository as huggingface_hub leaves it: blobs, and links to them."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "blobs").mkdir(exist_ok=True)
    snapshot = folder / "snapshots" / COMMIT
    for number, (name, data) in enumerate(files.items()):
        (folder / "blobs" / f"{number}").write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(folder / "blobs" / f"{number}", (snapshot / name).parent))
    return snapshot


def orbax(tmp_path: Path, *, ocdbt: bool) -> dict[str, bytes]:
    """The files of a tiny checkpoint, with the config.json of which no release has these sizes."""
    source = tiny("gemma3")
    tree = flax_trees.flat(flax_trees.nested(source.config, source.lookup, transposed=True))
    folder = test_orbax.describe(test_orbax.write(tmp_path / f"made-{ocdbt}", tree, ocdbt=ocdbt), "gemma3")
    return files_of(folder)


def vocabulary(tmp_path: Path) -> bytes:
    small.build().save(tmp_path)
    return (tmp_path / "tokenizer.model").read_bytes()


@pytest.mark.parametrize("ocdbt", [False, True])
@pytest.mark.parametrize("below", ["", "2b/"])
def test_an_orbax_repository_runs_from_the_cache(below: str, ocdbt: bool, cache: Path, tmp_path: Path) -> None:
    files = {below + name: data for name, data in orbax(tmp_path, ocdbt=ocdbt).items()}
    files |= {"tokenizer.model": vocabulary(tmp_path), "README.md": b"# A model", ".gitattributes": b""}
    chosen = select_files(dict.fromkeys(files, 1), HubName("a/gemma-flax"))
    assert set(files) - set(chosen) == {"README.md", ".gitattributes"}
    put(cache, "a/gemma-flax", {name: files[name] for name in chosen})
    checkpoint = open_named("a/gemma-flax")
    assert (checkpoint.format, checkpoint.name) == ("orbax", "a/gemma-flax")
    same_leaves(checkpoint, tiny("gemma3"))
    assert checkpoint.tokenizer.encode("abc") == small.build().encode("abc")
    assert [model.name for model in hub.list_local()] == ["a/gemma-flax"]


def test_of_several_checkpoints_one_is_chosen(cache: Path, tmp_path: Path) -> None:
    made = orbax(tmp_path, ocdbt=False)
    files = {f"{folder}/{name}": data for folder in ("2b", "2b-it") for name, data in made.items()}
    listed = dict.fromkeys(files, 1)
    with pytest.raises(
        GemmaryError, match=r"several checkpoints: choose one, such as `a/g:2b` \(there are 2b, 2b-it\)"
    ):
        select_files(listed, HubName("a/g"))
    with pytest.raises(GemmaryError, match=r"has no checkpoint '7b'"):
        select_files(listed, HubName("a/g", file="7b"))
    assert select_files(listed, HubName("a/g", file="2b-it")) == sorted(f for f in files if f.startswith("2b-it/"))
    snapshot = put(cache, "a/g", files)
    assert hub.resolve("a/g:2b-it") == snapshot / "2b-it"
    same_leaves(open_named("a/g:2b-it"), tiny("gemma3"))
    with pytest.raises(GemmaryError, match="choose one"):
        hub.resolve("a/g")


@pytest.mark.parametrize(
    ("files", "folders"),
    [
        (["_METADATA", "d/0", "manifest.ocdbt", "ocdbt.process_0/manifest.ocdbt"], [""]),
        (["default/manifest.ocdbt", "default/d/0"], [""]),
        (["gemma3-1b-it/default/manifest.ocdbt", "gemma3-1b/_METADATA"], ["gemma3-1b", "gemma3-1b-it"]),
        (["2b/checkpoint", "2b/transformer.embedder.input_embedding/.zarray"], ["2b"]),
        (["2b/checkpoint", "2b/transformer/embedder.input_embedding/.zarray"], ["2b"]),
        (["checkpoint", "model.ckpt"], []),
        (["deep/er/2b/_METADATA"], []),
    ],
)
def test_where_the_checkpoints_are(files: list[str], folders: list[str]) -> None:
    assert orbax_folders(files) == folders


def test_a_preset_runs_from_the_cache(cache: Path, tmp_path: Path) -> None:
    source = test_keras_hub.tiny("gemma")
    files = files_of(test_keras_hub.write(tmp_path / "made", source))
    files |= {"assets/tokenizer/vocabulary.spm": vocabulary(tmp_path), "task.json": b"{}", "README.md": b""}
    chosen = select_files(dict.fromkeys(files, 1), HubName("keras/gemma_2b_en"))
    assert set(files) - set(chosen) == {"task.json", "README.md"}
    put(cache, "keras/gemma_2b_en", {name: files[name] for name in chosen})
    checkpoint = open_named("keras/gemma_2b_en")
    assert checkpoint.format == "keras_hub"
    same_leaves(checkpoint, source)
    assert checkpoint.tokenizer.encode("abc") == small.build().encode("abc")
    assert [(model.name, model.complete) for model in hub.list_local()] == [("keras/gemma_2b_en", True)]


def test_a_shard_that_is_missing_is_named(cache: Path) -> None:
    index = {"weight_map": {"/layers/a": ["model_00000.weights.h5"], "/layers/b": "model_00001.weights.h5"}}
    files = {"config.json": b'{"class_name": "GemmaBackbone"}', "model.weights.json": json.dumps(index).encode()}
    put(cache, "keras/gemma_2b_en", {**files, "model_00000.weights.h5": b"x"})
    with pytest.raises(GemmaryError, match=r"only partly here \(model_00001\.weights\.h5 is missing\)"):
        hub.resolve("keras/gemma_2b_en")
    assert [model.complete for model in hub.list_local()] == [False]


def test_safetensors_and_gguf_come_first() -> None:
    arrays = {"_METADATA": 1, "manifest.ocdbt": 1, "model.weights.h5": 1}
    assert select_files({**arrays, "model.safetensors": 1}, HubName("a/b")) == ["model.safetensors"]
    assert select_files({**arrays, "g.gguf": 1}, HubName("a/b")) == ["g.gguf"]


def test_pulled_and_broken_off(cache: Path, tmp_path: Path) -> None:
    """Nothing in the checkpoint names its files, so the list of what was asked for tells what is missing."""
    files = orbax(tmp_path, ocdbt=False) | {"tokenizer.model": vocabulary(tmp_path), "README.md": b"text"}
    with serve(Hub({"a/gemma-flax": Repo(files)})) as server:
        (told,) = pull_all(server, ("a/gemma-flax", ""))
    snapshot = cache / "models--a--gemma-flax" / "snapshots" / COMMIT
    assert told == {"path": str(snapshot)}
    assert files_of(snapshot) == {name: data for name, data in files.items() if name != "README.md"}
    same_leaves(open_checkpoint(snapshot), tiny("gemma3"))
    lost = json.loads(list_of(snapshot).read_text())[5]
    (snapshot / lost).unlink()
    with pytest.raises(GemmaryError, match=f"only partly here \\({lost} is missing\\): `gemmary pull a/gemma-flax`"):
        hub.resolve("a/gemma-flax")
