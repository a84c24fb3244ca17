"""The other commands, each on a small model or an empty cache."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary import zoo
from gemmary.checkpoints import hub
from gemmary.cli import console
from tests.cli.conftest import Gemmary
from tests.cli.small_models import write_small

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def pulled(tmp_path: Path) -> Path:
    """A small model in the hub's cache, as google/gemma-3-270m-it."""
    folder = hub.repo_folder("google/gemma-3-270m-it")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    return write_small(folder / "snapshots" / COMMIT, chat=True)


def test_list_shows_what_is_here(gemmary_command: Gemmary, pulled: Path) -> None:
    done = gemmary_command("list")
    assert done.out.splitlines()[0].split() == ["name", "size", "packed", "copies", "where"]
    assert done.out.splitlines()[1].split()[0] == "gemma-3-270m-it"
    found = json.loads(gemmary_command("list", "--json").out)
    assert [(m["name"], m["path"], m["complete"]) for m in found] == [("gemma-3-270m-it", str(pulled), True)]


def test_list_all_shows_the_zoo(gemmary_command: Gemmary, pulled: Path) -> None:
    found = {row["name"]: row for row in json.loads(gemmary_command("list", "--all", "--json").out)}
    assert set(found) == {row.name for row in zoo.ZOO}
    assert found["gemma-2-2b-it"]["parameters"] == 2_614_341_888
    assert [name for name, row in found.items() if row["local"]] == ["gemma-3-270m-it"]
    assert len(gemmary_command("list", "--all").out.splitlines()) == len(zoo.ZOO) + 1


def test_an_empty_list_says_what_to_do(gemmary_command: Gemmary) -> None:
    done = gemmary_command("list")
    assert (done.code, done.out) == (0, "")
    assert "gemmary run starter" in done.err


def test_rm_asks_first(gemmary_command: Gemmary, pulled: Path) -> None:
    assert "say --yes" in gemmary_command("rm", "gemma-3-270m-it").error
    assert pulled.exists()
    assert gemmary_command("rm", "gemma-3-270m-it", "--yes").out.startswith("deleted gemma-3-270m-it: ")
    assert not pulled.exists()
    assert "nothing to remove" in gemmary_command("rm", "gemma-3-270m-it", "--yes").error


@pytest.mark.parametrize("answer", ["n", ""])
def test_rm_takes_no_for_an_answer(pulled: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    from gemmary.cli.parser import build_parser

    def say(_: str) -> str:
        if not answer:
            raise EOFError  # Ctrl-D
        return answer

    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("builtins.input", say)
    arguments = build_parser().parse_args(["rm", "gemma-3-270m-it"])
    with pytest.raises(gemmary.GemmaryError, match="nothing was deleted"):
        arguments.run(arguments)
    assert pulled.exists()


class _Terminal:
    def isatty(self) -> bool:
        return True


def test_pull_says_where_it_lies(gemmary_command: Gemmary, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(name: str, progress: Any) -> Path:
        for done in range(11):
            progress(f"fetching {name}", done, 10)
        return Path("somewhere")

    monkeypatch.setattr("gemmary.checkpoints.download.pull", pull)
    done = gemmary_command("pull", "gemma-2-2b-it")
    assert done.out == "somewhere\n"
    assert done.err.splitlines() == [f"fetching gemma-2-2b-it: {20 * fifth} %" for fifth in range(1, 6)]


def test_show_of_a_row_that_is_not_here(gemmary_command: Gemmary) -> None:
    found = json.loads(gemmary_command("show", "gemma-2-9b-it", "--json").out)
    assert found["path"] is None
    assert found["costs"]["parameters"] == 9_241_705_984
    assert found["tuning"] == "instruction"
    text = gemmary_command("show", "gemma-2-9b-it").out
    assert "9,241,705,984" in text
    assert "not on this machine: `gemmary pull gemma-2-9b-it` fetches it" in text
    assert "21 global, 21 local, window 4,096" in text


def test_show_of_a_checkpoint(gemmary_command: Gemmary, pulled: Path) -> None:
    found = json.loads(gemmary_command("show", "gemma-3-270m-it", "--json").out)
    assert found["path"] == str(pulled)
    assert found["chat_template"] is True
    assert set(found["formats"]) == {"F32"}
    assert found["files"]["model.safetensors"] == (pulled / "model.safetensors").stat().st_size
    assert found["config"]["num_layers"] == 8
    text = gemmary_command("show", pulled).out
    assert "model.safetensors (" in text
    assert "those that the weights came with" in text


def test_convert_writes_what_loads_the_same(gemmary_command: Gemmary, base_model: Path, tmp_path: Path) -> None:
    done = gemmary_command("convert", base_model, tmp_path / "copy", "--dtype", "float32")
    assert done.code == 0
    assert "of safetensors" in done.out
    assert done.err.splitlines()[-1].endswith("and so are the logits of 48 tokens, bit for bit")
    ids = [2, 5, 9]
    first, second = (gemmary.load(path, engine="reference").logits(ids) for path in (base_model, tmp_path / "copy"))
    assert np.array_equal(first, second)
    assert "already exists" in gemmary_command("convert", base_model, tmp_path / "copy").error
    assert gemmary_command("convert", base_model, tmp_path / "copy.gguf").out.endswith("of gguf\n")
    assert (tmp_path / "copy.gguf").read_bytes()[:4] == b"GGUF"


def test_convert_packs_for_the_native_engine(gemmary_command: Gemmary, base_model: Path, tmp_path: Path) -> None:
    assert gemmary_command("convert", base_model, tmp_path / "p", "--format", "packed").out.endswith("of packed\n")
    assert "kind           folder packed for the native engine" in gemmary_command("show", tmp_path / "p").out
    assert json.loads(gemmary_command("show", tmp_path / "p", "--json").out)["format"] == "packed"
    first, second = (gemmary.load(path, engine="reference").logits([2, 5, 9]) for path in (base_model, tmp_path / "p"))
    assert np.array_equal(first, second)


def test_convert_to_deepminds_layout_and_back(gemmary_command: Gemmary, base_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorstore", reason="TensorStore is not installed (gemmary[orbax])")
    assert gemmary_command("convert", base_model, tmp_path / "o", "--format", "orbax").out.endswith("of orbax\n")
    assert "DeepMind's Orbax checkpoint" in gemmary_command("show", tmp_path / "o").out
    assert gemmary_command("convert", tmp_path / "o", tmp_path / "back").code == 0
    first, second = ((folder / "model.safetensors").read_bytes() for folder in (base_model, tmp_path / "back"))
    assert first == second


def test_convert_reads_a_pickle_only_where_that_is_asked_for(gemmary_command: Gemmary, tmp_path: Path) -> None:
    (tmp_path / "m.ckpt").write_bytes(b"")
    assert "is a pickle" in gemmary_command("convert", tmp_path / "m.ckpt", tmp_path / "m").error
    assert not (tmp_path / "m").exists()


def test_embed_writes_a_vector_a_line(gemmary_command: Gemmary, embedding_model: Path) -> None:
    done = gemmary_command("embed", embedding_model, "abc", "the th", "--engine", "reference", "--prompt", "none")
    vectors = np.array([json.loads(line) for line in done.out.splitlines()])
    assert vectors.shape == (2, 39)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = gemmary_command(
        "embed", embedding_model, "--engine", "reference", "--prompt", "none", stdin="abc\n\nthe th\n"
    )
    assert again.out == done.out


def test_embed_needs_an_embedding_model(gemmary_command: Gemmary, base_model: Path) -> None:
    assert "not an embedding model" in gemmary_command("embed", base_model, "abc", "--engine", "reference").error


@pytest.fixture
def reference_for_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """`verify` always runs its model on the native engine; the small models' odd sizes are for the reference."""
    load = gemmary.load

    def on_reference(name: Any, *, engine: str = "native", **options: Any) -> gemmary.Model:
        return load(name, engine="reference", **options)

    monkeypatch.setattr(gemmary, "load", on_reference)


@pytest.mark.usefixtures("reference_for_native")
def test_verify_tells_same_from_different_by_its_exit_code(
    gemmary_command: Gemmary, base_model: Path, tmp_path: Path
) -> None:
    other = write_small(tmp_path / "other", seed=1)
    same = gemmary_command("verify", base_model, "--engine", "reference", "--tokens", 20)
    assert same.code == 0
    assert same.out.splitlines()[-1].split(maxsplit=1) == ["verdict", "the same"]
    different = gemmary_command("verify", base_model, "--against", other, "--tokens", 20, "--taps")
    assert different.code == 1
    assert different.out.splitlines()[-1].split(maxsplit=1) == ["verdict", "NOT the same"]
    assert "first difference" in different.out
    assert "layers.3." in different.out
    found = json.loads(gemmary_command("verify", base_model, "--against", other, "--tokens", 20, "--json").out)
    assert found["passed"] is False
    assert found["tokens"] == 20


@pytest.mark.usefixtures("reference_for_native")
def test_verify_reads_a_text_of_ones_own(gemmary_command: Gemmary, base_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abc the th")
    given = ("verify", base_model, "--engine", "reference", "--json", "--text")
    assert json.loads(gemmary_command(*given, tmp_path / "text").out)["tokens"] < 10
    assert "cannot read nowhere" in gemmary_command(*given, "nowhere").error
    (tmp_path / "text").write_bytes(b"\xff")
    assert "is not UTF-8 text" in gemmary_command(*given, tmp_path / "text").error


@pytest.mark.usefixtures("reference_for_native")
def test_verify_holds_a_dtype_against_as_stored(gemmary_command: Gemmary, base_model: Path) -> None:
    found = json.loads(gemmary_command("verify", base_model, "--dtype", "float32", "--tokens", 9, "--json").out)
    assert found["mean_kl"] == 0


def test_verify_needs_something_to_compare_with(gemmary_command: Gemmary, base_model: Path) -> None:
    assert "say what to compare with" in gemmary_command("verify", base_model).error


def test_convert_tells_how_far_it_is(gemmary_command: Gemmary, base_model: Path, embedding_model: Path) -> None:
    steps = [f"writing weights: {20 * fifth} %" for fifth in range(1, 6)]
    for model, target in (
        (base_model, "a.gguf"),
        (base_model, "a"),
        (embedding_model, "b.gguf"),
        (embedding_model, "b"),
    ):
        assert gemmary_command("convert", model, target).err.splitlines()[:5] == steps


def test_convert_writes_no_gguf_that_cannot_be_opened(gemmary_command: Gemmary, base_model: Path) -> None:
    assert "ends in .gguf" in gemmary_command("convert", base_model, "a", "--format", "gguf").error
    assert not Path("a").exists()


def test_names_out_of_files_have_no_power_over_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("sys.stderr", shown)
    console.note("a\x1b]0;b\x07")
    console.facts([("c", "\x1b[2J")])
    console.table([("\x9b1m", "2,345,678,901 " * 20)], ("d", "e"))
    assert not {"\x1b", "\x07", "\x9b"} & set(shown.getvalue())
    assert "2,345,678,901 " * 19 in shown.getvalue(), "a narrow terminal cuts nothing"
