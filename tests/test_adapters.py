"""Adapters from Python: which request gets which, that they do not disturb one another, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary.chat import TEMPLATES
from gemmary.checkpoints.peft import write_adapter
from gemmary.errors import GemmaryError
from gemmary.verify import verify
from tests.checkpoints.adapters import merged, random_adapter
from tests.cli.small_models import write_small
from tests.models import tiny_model
from tests.runs import relative_error, why_absent
from tests.tiny import TINY, random_tokens

PROMPTS = ["abc", "ba", "cab cab cab cab", "a"]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "ignore_eos": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two adapters of it."""
    folder = tmp_path_factory.mktemp("adapted")
    write_small(folder / "model", "gemma2")
    write_adapter(folder / "one", random_adapter(TINY["gemma2"]))
    write_adapter(folder / "two", random_adapter(TINY["gemma2"], seed=1, rank=5, dora=True))
    return folder


def open_both(folder: Path, **options: Any) -> gemmary.Model:
    return gemmary.load(folder / "model", adapter={"one": folder / "one", "two": folder / "two"}, **options)


def test_one_adapter_is_the_default(folder: Path) -> None:
    with gemmary.load(folder / "model") as base, gemmary.load(folder / "model", adapter=folder / "one") as model:
        assert list(model.adapters) == ["one"]
        assert "with one" in model.description
        plain, tuned = base.generate("abc", **GREEDY), model.generate("abc", **GREEDY)
        assert tuned.tokens != plain.tokens
        assert model.generate("abc", adapter="one", **GREEDY).tokens == tuned.tokens
        assert model.generate("abc", adapter=None, **GREEDY).tokens == plain.tokens
        ids = random_tokens(model.config, 20)
        np.testing.assert_array_equal(model.logits(ids, adapter=None), base.logits(ids))
        np.testing.assert_array_equal(model.logits(ids), model.logits(ids, adapter="one"))
        assert np.abs(model.score(ids) - base.score(ids)).max() > 0.1


def test_requests_of_several_adapters_share_steps(folder: Path) -> None:
    with open_both(folder) as model:
        named = [None, "one", "two", "one"]
        alone = [model.generate(p, adapter=a, **GREEDY).tokens for p, a in zip(PROMPTS, named, strict=True)]
        assert [c.tokens for c in model.generate(PROMPTS, adapter=named, **GREEDY)] == alone
        assert [c.tokens for c in model.generate(PROMPTS[1:2] * 2, adapter="one", **GREEDY)] == alone[1:2] * 2
        unguessed = model.generate(PROMPTS, adapter=named, speculate=False, **GREEDY)
        assert [c.tokens for c in unguessed] == alone
        with model.stream(PROMPTS[2], adapter="two", **GREEDY) as stream:
            assert tuple(piece.token for piece in stream) == alone[2]


def test_a_draft_model_without_the_adapter_changes_nothing(folder: Path) -> None:
    with open_both(folder) as model, open_both(folder, draft=folder / "model") as drafted:
        for name in ("one", None):
            assert (
                drafted.generate("abc", adapter=name, **GREEDY).tokens
                == model.generate("abc", adapter=name, **GREEDY).tokens
            )


@pytest.mark.parametrize("engine", ["reference", "torch"])
def test_the_engines_agree(folder: Path, engine: str) -> None:
    if reason := why_absent(engine):
        pytest.skip(reason)
    with open_both(folder) as model, open_both(folder, engine=engine) as other:
        ids = random_tokens(model.config, 30)
        for name in ("one", "two", None):
            assert relative_error(other.logits(ids, adapter=name), model.logits(ids, adapter=name)) < 2e-5


def test_embeddings(tmp_path: Path) -> None:
    write_small(tmp_path / "model", "embeddinggemma")
    adapter = random_adapter(TINY["embeddinggemma"])
    write_adapter(tmp_path / "tuned", adapter)
    with gemmary.load(tmp_path / "model", adapter=tmp_path / "tuned") as model:
        base, tuned = model.embed("abc", adapter=None), model.embed("abc")
        assert float(base @ tuned) < 0.99
        assert verify(model, model, ids=random_tokens(model.config, 20)).passed


def test_verify_sees_the_adapter() -> None:
    adapter = random_adapter(TINY["gemma3-mqa"])
    lookup = merged(tiny_model().lookup, adapter)
    assert not verify(tiny_model(lookup=lookup), tiny_model()).passed


def test_an_adapter_with_a_chat_template_makes_a_conversation_partner(folder: Path, tmp_path: Path) -> None:
    tuned = replace(random_adapter(TINY["gemma2"]), chat_template=TEMPLATES["gemma1"])
    write_adapter(tmp_path / "chat", tuned)
    with gemmary.load(folder / "model", adapter=tmp_path / "chat") as model:
        assert model.instruction_tuned
        assert model.chat_template == TEMPLATES["gemma1"]
        assert not model.chat_prompt("abc").notices
    with gemmary.load(folder / "model", adapter={"chat": tmp_path / "chat", "one": folder / "one"}) as model:
        assert not model.instruction_tuned


def test_what_is_refused(folder: Path, tmp_path: Path) -> None:
    with open_both(folder) as model:
        with pytest.raises(GemmaryError, match="say which adapter: one, two, or None for the base model"):
            model.generate("abc")
        with pytest.raises(GemmaryError, match="no adapter is called 'three': those loaded are one, two"):
            model.generate("abc", adapter="three")
        with pytest.raises(GemmaryError, match="a list of 1 adapters goes with a list of as many prompts"):
            model.generate(PROMPTS, adapter=["one"])
        with pytest.raises(GemmaryError, match="has adapters, which no checkpoint holds"):
            gemmary.save(model, tmp_path / "saved")
    with (
        gemmary.load(folder / "model") as base,
        pytest.raises(GemmaryError, match="no adapter is called 'one': none was loaded"),
    ):
        base.generate("abc", adapter="one")
    with pytest.raises(GemmaryError, match=r"is not an adapter: it has no adapter_config\.json"):
        gemmary.load(folder / "model", adapter=tmp_path)
    write_small(tmp_path / "other", "gemma3")
    with pytest.raises(GemmaryError, match="where this model and rank 3 need"):
        gemmary.load(tmp_path / "other", adapter=folder / "one")
    with pytest.raises(GemmaryError, match="an adapter's name is a text, not 3"):
        gemmary.load(folder / "model", adapter={3: folder / "one"})  # type: ignore[dict-item]
