"""The ids of a prompt with pictures, against the goldens of the real tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gemmary.checkpoints import save_checkpoint
from gemmary.config import VisionConfig
from gemmary.tokenizer import Tokenizer
from gemmary.vision.preprocess import pixels
from gemmary.vision.prompt import prompt_ids
from tests.tiny import TINY
from tests.vision import tiny_paligemma

IMAGE = 257152
CONFIG = replace(TINY["gemma"], vocab_size=IMAGE, vision=VisionConfig(image_size=224), prefix_lm=True)


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared / "tokenizers" / "paligemma")


def test_goldens_at_224_pixels(tokenizer: Tokenizer) -> None:
    words = [2, 6006, 603, 573, 13910, 9980, 235336, 108]
    assert prompt_ids(tokenizer, CONFIG, "Where is the cow standing?") == [IMAGE] * 256 + words
    assert prompt_ids(tokenizer, CONFIG, "") == [IMAGE] * 256 + [2, 108]


def test_the_last_newline_stands_alone(tokenizer: Tokenizer) -> None:
    assert prompt_ids(tokenizer, CONFIG, "ocr\n", 0)[-2:] == [108, 108]


def test_pictures_are_counted_and_text_makes_none(tokenizer: Tokenizer) -> None:
    assert prompt_ids(tokenizer, CONFIG, "ocr", 3).count(IMAGE) == 3 * 256
    assert prompt_ids(tokenizer, CONFIG, "<image> ocr", 1).count(IMAGE) == 256
    assert 256000 + 17 in prompt_ids(tokenizer, CONFIG, "caption <loc0017>")
    with pytest.raises(ValueError, match="without a vision tower"):
        prompt_ids(tokenizer, replace(CONFIG, vision=None), "ocr", 1)


def test_a_written_folder_is_known_to_the_processor_of_transformers(tmp_path: Path) -> None:
    """Same ids and, with its way of resizing, same pixels."""
    transformers = pytest.importorskip("transformers", reason="the other side")
    source = tiny_paligemma.checkpoint()
    save_checkpoint(source, tmp_path / "written")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "written")
    image = Image.fromarray(tiny_paligemma.picture())
    theirs = processor(images=image, text="<image>ab a", return_tensors="np")
    assert theirs["input_ids"][0].tolist() == prompt_ids(source.tokenizer, source.config, "ab a")
    ours = pixels(image, tiny_paligemma.SIZE, "transformers")
    np.testing.assert_allclose(theirs["pixel_values"][0].transpose(1, 2, 0), ours, atol=1e-6)
