"""The Python face for pictures: tasks, results, and one line for each mistake."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.errors import GemmaryError
from gemmary.vision.prompt import prompt_ids
from tests.models import tiny_model
from tests.vision import tiny_paligemma
from tests.vision.tiny_paligemma import CONFIG, PATCHES, SIZE, CountingEngine, model, picture, tokenizer

SHORT: dict[str, Any] = {"max_tokens": 6}


def test_tasks_are_prompts() -> None:
    seer, seen = model(), picture()
    for asked, prompt in (
        (seer.caption(seen, **SHORT), "caption en"),
        (seer.caption(seen, "de", **SHORT), "caption de"),
        (seer.answer(seen, "how many?", **SHORT), "answer en how many?"),
        (seer.ocr(seen, **SHORT), "ocr"),
    ):
        assert asked == seer.generate(prompt, image=seen, **SHORT).text
    assert seer.caption(seen, **SHORT) != seer.caption(picture(1), **SHORT)


def test_a_picture_comes_from_anywhere(tmp_path: Path) -> None:
    seer, seen = model(), Image.fromarray(picture())
    seen.save(tmp_path / "a.png")
    buffer = io.BytesIO()
    seen.save(buffer, "PNG")
    given = [picture(), seen, tmp_path / "a.png", str(tmp_path / "a.png"), buffer.getvalue()]
    assert len({seer.generate("ocr", image=each, **SHORT).tokens for each in given}) == 1
    engine = seer.engine
    assert isinstance(engine, CountingEngine)
    assert engine.pictures_seen == 1


def test_text_is_greedy_unless_told_otherwise() -> None:
    seer = model()
    whole = seer.generate("ocr", image=picture(), max_tokens=9)
    assert whole.tokens == seer.generate("ocr", image=picture(), max_tokens=9, temperature=0.0).tokens
    warm = {seer.generate("ocr", image=picture(), max_tokens=9, temperature=1.0, seed=s).tokens for s in range(4)}
    assert len(warm) > 1
    assert len(seer.generate("ocr", image=picture(), ignore_eos=True).tokens) == 512


def test_lists_of_prompts_and_pictures() -> None:
    seer, one, other = model(), picture(0), picture(1)
    alone = [seer.generate("ocr", image=each, **SHORT).tokens for each in (one, other)]
    assert [each.tokens for each in seer.generate(["ocr", "ocr"], image=[one, other], **SHORT)] == alone
    both = seer.generate(["ocr", "caption en"], image=one, **SHORT)
    assert [each.text for each in both] == [seer.ocr(one, **SHORT), seer.caption(one, **SHORT)]
    two = seer.generate("ocr", image=[one, other], **SHORT)
    assert two.stats.prompt_tokens == len(prompt_ids(tokenizer(), CONFIG, "ocr", 2))
    assert two.tokens == seer.generate(["ocr"], image=[[one, other]], **SHORT)[0].tokens
    assert two.tokens != alone[0]
    assert seer.generate([], image=one) == []
    with pytest.raises(GemmaryError, match="2 pictures do not go with 3 prompts"):
        seer.generate(["a", "b", "c"], image=[one, other])


def test_streams_and_ids_with_places() -> None:
    seer = model()
    ids = prompt_ids(tokenizer(), CONFIG, "ocr")
    whole = seer.generate("ocr", image=picture(), **SHORT)
    assert seer.generate(ids, image=picture(), **SHORT).tokens == whole.tokens
    with seer.stream("ocr", image=picture(), **SHORT) as stream:
        assert "".join(piece.text for piece in stream) == whole.text
    assert isinstance(stream.completion, type(whole))
    with pytest.raises(GemmaryError, match=r"18 places .* 1 pictures need 9"):
        seer.generate([CONFIG.image_token_id] * 9 + ids, image=picture())
    with pytest.raises(GemmaryError, match=r"9 places .* 0 pictures need 0"):
        seer.generate(ids)


def test_text_alone_is_a_prompt_without_places() -> None:
    seer = model()
    found = seer.generate("abc", temperature=0.0, **SHORT)
    ids = prompt_ids(tokenizer(), CONFIG, "abc", 0)
    rows = seer.engine.step(Batch.of(CONFIG, [Chunk(ids, prefix=len(ids))]), [seer.engine.new_cache(99)])
    assert found.tokens[0] == rows[0].argmax()
    assert found.stats.prompt_tokens == len(ids)


def test_detect_and_segment(tmp_path: Path) -> None:
    seer = model(path=tmp_path)
    found = seer.detect(picture(), ["cat", "ab"], max_tokens=60)
    assert found
    assert {each.label for each in found} <= {"cat", "ab"}
    for each in found:
        left, top, right, bottom = each.xyxy
        assert 0 <= left < right <= 40
        assert 0 <= top < bottom <= 30
        assert each.score is not None
        assert 0 <= each.score <= 1
    assert seer.detect(picture(), ["cat", "ab"], max_tokens=60, merge_iou=1e-9) != []
    (whole,) = seer.find_objects([picture()], ["cat", "ab"], max_tokens=60)
    assert list(whole.boxes) == found
    assert whole.malformed == ()
    many = seer.find_objects([picture(), picture(1)], "cat", max_tokens=30)
    alone = [seer.detect(picture(seed), "cat", max_tokens=30) for seed in (0, 1)]
    assert [[box.xyxy for box in each.boxes] for each in many] == [[box.xyxy for box in each] for each in alone]
    with pytest.raises(GemmaryError, match="no label"):
        seer.detect(picture(), [])


def test_segment_uses_the_codec_beside_the_weights(tmp_path: Path) -> None:
    from tests.vision.test_masks import random_arrays

    np.savez(tmp_path / "mask_codec.npz", **random_arrays())
    found = model(path=tmp_path).segment(picture(), "cat", max_tokens=60)
    assert found
    for each in found:
        assert each.array.shape == (30, 40)
        assert each.array.dtype == bool
        left, top, right, bottom = (int(side) for side in each.box)
        each.array[top:bottom, left:right] = False
        assert not each.array.any()


def test_free_text_says_what_is_malformed() -> None:
    marks = [tokenizer().id(f"<loc{n:04}>") for n in (1, 2, 3)]
    script = [*marks, tokenizer().eos_id]
    found = model().generate("detect cat", image=picture(), allowed=lambda tokens: [script[len(tokens)]])
    assert found.boxes == ()
    assert found.masks == ()
    assert [each.reason for each in found.malformed] == ["3 locations, not 4"]


def test_resize_is_a_choice() -> None:
    seer = model()
    seer.caption(picture(), resize="transformers", **SHORT)
    seer.caption(picture(), resize="big_vision", **SHORT)
    seer.caption(picture(), **SHORT)
    assert isinstance(seer.engine, CountingEngine)
    assert seer.engine.pictures_seen == 2  # of two kinds of pixels
    with pytest.raises(GemmaryError, match="resize must be big_vision or transformers, not 'nearest'"):
        seer.caption(picture(), resize="nearest")  # type: ignore[arg-type]


def test_logits_with_pixels() -> None:
    seer = model()
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, SIZE, SIZE, 3)).astype(np.float32)
    ids = prompt_ids(tokenizer(), CONFIG, "abc", 2)
    chunk = Chunk(ids, prefix=len(ids), outputs="all", pictures=seer.engine.see(pixels))
    rows = seer.engine.step(Batch.of(CONFIG, [chunk]), [seer.engine.new_cache(99)])
    np.testing.assert_array_equal(seer.logits(ids, pixels=pixels), rows)
    for wrong, message in (
        (pixels[:1], f"{2 * PATCHES} places .* the pixels {PATCHES}"),
        (pixels[:, :5], "pixels are float32"),
        (pixels * 200, "between -1 and 1"),
    ):
        with pytest.raises(GemmaryError, match=message):
            seer.logits(ids, pixels=wrong)
    with pytest.raises(GemmaryError, match="reads text only"):
        tiny_model().logits([2, 3], pixels=pixels)


@pytest.mark.parametrize("task", ["caption", "ocr", "generate", "detect"])
def test_a_model_of_text_sees_nothing(task: str) -> None:
    ask = getattr(tiny_model(), task)
    more = {"labels": ["cat"]} if task == "detect" else {}
    with pytest.raises(GemmaryError, match=r"^tiny reads text only: for pictures load a model that sees"):
        ask(image=picture(), **more)


def test_broken_pictures_and_chats(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(GemmaryError, match=r"a\.png is not a JPEG, PNG or WebP file"):
        model().caption(tmp_path / "a.png")
    with pytest.raises(GemmaryError, match="does not chat"):
        model().chat("hello")


def test_a_folder_on_disk(tmp_path: Path) -> None:
    loaded = gemmary.load(tiny_paligemma.write_folder(tmp_path / "m"), engine="reference")
    assert (
        loaded.generate("ocr", image=picture(), **SHORT).tokens
        == model().generate("ocr", image=picture(), **SHORT).tokens
    )
