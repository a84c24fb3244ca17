"""Pictures on the native engine: the same bits alone, in company, and with a prompt that was read before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import gemmary
from gemmary.api import Model
from tests.vision import tiny_paligemma
from tests.vision.tiny_paligemma import picture

OPTIONS = {"max_tokens": 12, "logprobs": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_paligemma.write_folder(tmp_path_factory.mktemp("native") / "seer")


@pytest.fixture
def model(folder: Path) -> Iterator[Model]:
    with gemmary.load(folder, threads=2) as loaded:
        yield loaded


def test_text_is_that_of_the_reference(model: Model, folder: Path) -> None:
    reference = gemmary.load(folder, engine="reference")
    for prompt in ("caption en", "ocr"):
        expected = reference.generate(prompt, image=picture(), max_tokens=12)
        assert model.generate(prompt, image=picture(), max_tokens=12).tokens == expected.tokens
    assert [box.xyxy for box in model.detect(picture(), ["cat", "ab"], max_tokens=60)] == [
        box.xyxy for box in reference.detect(picture(), ["cat", "ab"], max_tokens=60)
    ]


def test_company_changes_no_bit(model: Model) -> None:
    pictures = [picture(seed) for seed in range(3)]
    alone = [model.generate("ocr", image=each, **OPTIONS).logprobs for each in pictures]  # type: ignore[call-overload]
    several = [*pictures, [picture(3), picture(4)]]
    together = model.generate(["ocr"] * 4, image=several, **OPTIONS)  # type: ignore[call-overload]
    assert [each.logprobs for each in together[:3]] == alone


def test_a_prompt_that_was_read_before_gives_the_same_bits(model: Model) -> None:
    first = model.generate("ocr", image=picture(), **OPTIONS)  # type: ignore[call-overload]
    assert model.scheduler.prefixes.nbytes > 0
    again = model.generate("ocr", image=picture(), **OPTIONS)  # type: ignore[call-overload]
    assert again.logprobs == first.logprobs
    other = model.generate("caption en", image=picture(), **OPTIONS)  # type: ignore[call-overload]
    assert other.tokens != first.tokens
    assert model.generate("ocr", image=picture(), **OPTIONS).logprobs == first.logprobs  # type: ignore[call-overload]
