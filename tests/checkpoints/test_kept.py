"""Packed copies that are kept: the same bits from a map, and never a copy of what the source no longer is."""

from __future__ import annotations

import fcntl
import os
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary.checkpoints import kept, open_checkpoint, packed, save_checkpoint
from gemmary.checkpoints.peft import write_adapter
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine, Packed
from tests.checkpoints.adapters import random_adapter
from tests.checkpoints.sources import TinySource, files_of
from tests.cli.small_models import write_small
from tests.runs import why_absent
from tests.tiny import TINY, random_tokens
from tests.vision import tiny_paligemma

pytestmark = [
    pytest.mark.skipif(why_absent("native") is not None, reason=str(why_absent("native"))),
    pytest.mark.usefixtures("cache"),
]


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kept.VARIABLE, raising=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    return write_small(tmp_path_factory.mktemp("models") / "model", "gemma3-q32", chat=True)


@pytest.fixture(scope="module")
def gguf(source: Path) -> Path:
    """The same as a GGUF file of Q8_0 blocks."""
    save_checkpoint(open_checkpoint(source), path := source.with_name("model.gguf"), format="gguf", dtype="int8")
    return path


def load(path: Path, **options: Any) -> gemmary.Model:
    return gemmary.load(path, threads=1, **options)


def keep(path: Path, **options: Any) -> Path:
    with load(path, **options) as model:
        assert model.packed_bytes > 0
        return model.keep_packed()


def is_mapped(model: gemmary.Model) -> bool:
    """Whether the engine computes in a file: what it packed itself is nobody else's memory."""
    return model.packed_copy is None and model.packed_bytes == 0


def traits(model: gemmary.Model) -> dict[str, Any]:
    """Everything that a user sees of a model."""
    names = ("name", "config", "context", "notices", "info", "chat_template", "weight_format", "description")
    seen: dict[str, Any] = {name: getattr(model, name) for name in names}
    checkpoint = model.checkpoint
    return {
        **seen,
        "checkpoint": (checkpoint.path, checkpoint.format, checkpoint.formats(), checkpoint.stored_bytes()),
        "ids": model.tokenizer.encode("abc tutu cab", bos=True),
        "pieces": model.tokenizer.to_model_bytes(),
    }


@pytest.mark.parametrize("kind", ["folder", "gguf"])
@pytest.mark.parametrize("options", [{}, {"quant": "int4"}, {"dtype": "bfloat16"}], ids=["stored", "int4", "bfloat16"])
def test_a_copy_gives_the_same_bits(source: Path, gguf: Path, kind: str, options: dict[str, Any]) -> None:
    path = gguf if kind == "gguf" else source
    ids = random_tokens(open_checkpoint(path).config, 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gemmary.GemmaryWarning)  # of blocks that are quantized again
        with load(path, **options) as original:
            expected, told = original.logits(ids), traits(original)
            folder = original.keep_packed()
            assert is_mapped(original)  # nothing is left to keep
        assert files_of(folder) == ["SHA256SUMS", "kept.json", "model.safetensors", "tokenizer.model"]
        with load(path, **options) as model:
            assert is_mapped(model)
            assert traits(model) == told
            np.testing.assert_array_equal(model.logits(ids), expected)
        with load(path, **options, packed_copy=False) as again:
            assert not again.packed_bytes
            np.testing.assert_array_equal(again.logits(ids), expected)
    assert [held.folder for held in kept.copies()] == [folder]


def test_the_engine_computes_in_the_file(gguf: Path) -> None:
    keep(gguf)
    checkpoint = open_checkpoint(gguf)
    copy = kept.copy_of(checkpoint, gemmary.__version__)
    assert copy is not None
    mapped = copy.open(checkpoint, notices := [])
    assert mapped is not None
    assert notices == []
    assert all(isinstance(mapped.lookup(name), Packed) for name in ("embed", "layers.0.q"))
    with load(gguf) as model:
        engine: Any = model.engine
        leaf = engine.held("embed")
        assert not leaf.panels.flags.writeable
        assert np.array_equal(leaf.panels, mapped.lookup("embed").panels)  # type: ignore[attr-defined]


def test_each_form_has_a_copy_of_its_own(source: Path) -> None:
    assert keep(source) != keep(source, quant="int8")
    assert len(kept.copies()) == 2
    with load(source, quant="int4") as model:
        assert not is_mapped(model)


def test_a_source_that_changed_is_packed_again(gguf: Path, tmp_path: Path) -> None:
    shutil.copyfile(gguf, path := tmp_path / "own.gguf")
    first, other = keep(path), keep(gguf)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))
    with load(path) as model:
        assert not is_mapped(model)
        second = model.keep_packed()
    assert not first.exists()
    assert {held.folder for held in kept.copies()} == {second, other}
    path.unlink()
    assert second.exists()
    keep(gguf, dtype="bfloat16")  # which clears away copies of what is gone
    assert not second.exists()
    assert other.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "record", "lost", "layout"])
def test_a_damaged_copy_is_thrown_away_and_told(gguf: Path, damage: str) -> None:
    folder = keep(gguf)
    weights = folder / packed.FILE
    if damage == "cut":
        os.truncate(weights, weights.stat().st_size - 64)
    elif damage == "flipped":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        os.utime(weights, ns=(0, 0))
    elif damage == "record":
        (folder / "kept.json").write_text("{")
    elif damage == "lost":
        (folder / "tokenizer.model").unlink()
    else:
        weights.write_bytes(weights.read_bytes().replace(b'"version":"', b'"versiom":"', 1))
    with pytest.warns(gemmary.GemmaryWarning, match="thrown away as unsound"):
        model = load(gguf)
    assert not is_mapped(model)
    assert len(model.notices) == 1
    assert "\n" not in model.notices[0]
    assert not folder.exists()
    assert model.keep_packed() == folder
    with load(gguf) as again:
        assert is_mapped(again)
        assert again.notices == ()


def test_a_source_replaced_after_it_was_opened_gets_no_copy(source: Path, gguf: Path, tmp_path: Path) -> None:
    shutil.copyfile(gguf, path := tmp_path / "own.gguf")
    times = path.stat()
    shutil.copyfile(gguf, other := tmp_path / "other.gguf")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    with load(path) as model:
        os.replace(other, path)  # of the same size and time
        with pytest.raises(GemmaryError, match="have changed since they were opened"):
            model.keep_packed()
    assert kept.copies() == []


def test_what_others_put_beside_copies_stays(source: Path, gguf: Path) -> None:
    mine = kept.home() / "mine"
    save_checkpoint(open_checkpoint(source), mine, format="packed")
    keep(gguf)
    assert len(kept.copies()) == 1
    kept.remove()
    assert (mine / packed.FILE).is_file()


def test_a_copy_that_cannot_be_mapped_now_stays(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = keep(gguf)

    def refused(*_: Any) -> None:
        raise GemmaryError("cannot read it: Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(packed, "open_weights", refused)
        with pytest.warns(gemmary.GemmaryWarning, match="was not used: cannot read it"):
            assert not is_mapped(load(gguf))
    assert folder.is_dir()
    assert is_mapped(load(gguf))


def test_a_full_disk_costs_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with load(source) as model:
        with monkeypatch.context() as patch:
            patch.setattr(packed, "write", full)
            with pytest.raises(GemmaryError, match="No space left on device; nothing was changed"):
                model.keep_packed()
        assert kept.copies() == []
        assert files_of(kept.home()) == [".lock"]
        assert model.keep_packed().is_dir()  # the model is as it was


def test_one_process_makes_copies_at_a_time(source: Path) -> None:
    kept.home().mkdir(parents=True)
    left = kept.home() / ".key.abc.tmp"
    left.mkdir()
    with load(source) as model:
        with open(kept.home() / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(GemmaryError, match="another process is making a packed copy"):
                model.keep_packed()
            assert left.exists()
        with load(source) as other:
            assert other.keep_packed() == model.keep_packed()  # who comes second finds it there
    assert not left.exists()


def test_what_has_no_copy(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(open_checkpoint(source), tmp_path / "packed", format="packed")
    models = [load(tmp_path / "packed"), load(source, engine="reference"), load(source, packed_copy=False)]
    monkeypatch.setenv(kept.VARIABLE, "0")
    models.append(load(source))
    for model in models:
        assert model.packed_bytes == 0
        with pytest.raises(GemmaryError, match="no packed copy can be kept"):
            model.keep_packed()
    monkeypatch.setenv(kept.VARIABLE, "yes")
    with pytest.raises(GemmaryError, match="GEMMARY_KEEP_PACKED is 0"):
        load(source)


def test_adapters_wrap_a_copy(source: Path, tmp_path: Path) -> None:
    config = open_checkpoint(source).config
    write_adapter(tmp_path / "one", random_adapter(config, dora=True))
    ids = random_tokens(config, 20)
    with load(source, adapter=tmp_path / "one") as original:
        expected, plain = original.logits(ids), original.logits(ids, adapter=None)
        formats = original.info.formats
        original.keep_packed()
    with load(source, adapter=tmp_path / "one") as model, load(source) as base:
        assert is_mapped(model)
        assert is_mapped(base)
        assert model.info.formats == formats
        np.testing.assert_array_equal(model.logits(ids), expected)
        np.testing.assert_array_equal(base.logits(ids), plain)
    with load(source, adapter=tmp_path / "one", dtype="bfloat16") as other:
        assert other.packed_copy is None


@pytest.mark.parametrize("quant", [None, "int4"])
def test_a_model_that_sees(quant: str | None, tmp_path: Path) -> None:
    tiny, path = tiny_paligemma.CONFIG, tmp_path / "m"  # its tower's rows do not divide into blocks
    config = replace(
        TINY["gemma-q32"], family="paligemma", vocab_size=tiny.vocab_size, vision=tiny.vision, prefix_lm=True
    )
    save_checkpoint(TinySource(config, tiny_paligemma.leaves(config), tokenizer=tiny_paligemma.tokenizer()), path)
    side = tiny_paligemma.SIZE
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)
    with load(path, quant=quant) as original:
        expected = original.engine.see(pixels)
        original.keep_packed()
    with load(path, quant=quant) as model:
        assert is_mapped(model)
        np.testing.assert_array_equal(model.engine.see(pixels), expected)
        engine: Any = model.engine
        assert isinstance(engine.held("vision.layers.0.q"), Affine)
        assert engine.held("vision.layers.0.q").format == ("F32" if quant is None else "Q8_0")


def test_a_model_that_embeds(tmp_path: Path) -> None:
    path = write_small(tmp_path / "m", "embeddinggemma")
    with load(path) as original:
        expected = original.embed(["abc", "tutu"])
        original.keep_packed()
    with load(path) as model:
        assert is_mapped(model)
        np.testing.assert_array_equal(model.embed(["abc", "tutu"]), expected)


def test_removing(source: Path, gguf: Path) -> None:
    keep(source)
    keep(gguf)
    assert kept.bytes_of(source) > 0
    assert kept.bytes_of(source.parent) == kept.bytes_of(source) + kept.bytes_of(gguf)
    assert kept.remove(source) > 0
    assert [held.source for held in kept.copies()] == [gguf.resolve()]
    (kept.home() / ".key.abc.tmp").mkdir()
    assert kept.remove() > 0
    assert files_of(kept.home()) == [".lock"]
    assert kept.remove() == 0


@pytest.fixture
def usage(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the disk says of itself."""
    said = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: said)
    return said


def test_what_is_worth_a_copy(usage: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage.free = kept.ROOM * kept.LEAST_BYTES
    assert kept.is_worthwhile(kept.LEAST_BYTES)
    assert not kept.is_worthwhile(kept.LEAST_BYTES - 1)
    assert not kept.is_worthwhile(kept.LEAST_BYTES + 1)  # no room
    monkeypatch.setenv(kept.VARIABLE, "1")
    assert kept.is_worthwhile(1)
    monkeypatch.setenv(kept.VARIABLE, "0")
    assert not kept.is_worthwhile(kept.LEAST_BYTES)
