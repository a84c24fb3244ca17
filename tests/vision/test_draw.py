"""Drawings and COCO's terms for objects whose pixels are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gemmary.errors import GemmaryError
from gemmary.vision import coco, draw
from gemmary.vision.boxes import Box, Mask

GREY = Image.fromarray(np.full((100, 200, 3), 128, dtype=np.uint8))


def test_frames_are_at_the_edges_of_the_box() -> None:
    drawn = np.asarray(draw.draw(GREY, [Box("cat", (20, 50, 60, 90), 0.5), Box("dog", (120, 50, 180, 90), None)]))
    assert drawn.shape == (100, 200, 3)
    first, second = draw.COLOURS[:2]
    assert tuple(drawn[70, 20]) == tuple(drawn[70, 59]) == tuple(drawn[89, 40]) == first
    assert tuple(drawn[70, 120]) == second
    assert (drawn[70, 22:58] == 128).all()
    assert (drawn[70, 61:119] == 128).all()
    assert (drawn[30:49, 21:40] != 128).any(), "the label is above"
    assert (np.asarray(GREY) == 128).all()


def test_masks_are_a_veil_and_boxes_at_the_border_fit() -> None:
    array = np.zeros((100, 200), dtype=bool)
    array[40:60, 100:150] = True
    drawn = np.asarray(draw.draw(GREY, [], [Mask("cat", (-5.0, 0.0, 200.0, 100.0), array, None)]))
    veiled = np.round(0.55 * 128 + 0.45 * np.array(draw.COLOURS[0]))
    np.testing.assert_allclose(drawn[50, 120], veiled, atol=1)
    assert tuple(drawn[50, 90]) == (128, 128, 128)
    assert tuple(draw.draw(GREY, []).getpixel((0, 0))) == (128, 128, 128)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.webp"])
def test_files_are_what_they_are_called(tmp_path: Path, name: str) -> None:
    draw.save(GREY, tmp_path / name)
    with Image.open(tmp_path / name) as found:
        assert found.format == draw.format_of(Path(name))
        assert found.size == (200, 100)
    with pytest.raises(GemmaryError, match="end its name in"):
        draw.save(GREY, tmp_path / "x.bmp")


def test_entries_in_the_terms_of_coco() -> None:
    array = np.zeros((3, 4), dtype=bool)
    array[1:3, 2] = True
    (entry,) = coco.entries([], [Mask("cat", (1.0, 0.0, 3.5, 3.0), array, 0.25)])
    assert entry == {
        "category": "cat",
        "bbox": [1.0, 0.0, 2.5, 3.0],
        "area": 2,
        "score": 0.25,
        "iscrowd": 0,
        "segmentation": {"counts": [7, 2, 3], "size": [3, 4]},
    }
    boxes = [Box("dog", (0, 0, 2, 3), None), Box("cat", (0, 0, 1, 1), None), Box("dog", (1, 1, 2, 2), None)]
    numbered, categories = coco.numbered(coco.entries(boxes, []))
    assert [each["category_id"] for each in numbered] == [1, 2, 1]
    assert [each["id"] for each in numbered] == [1, 2, 3]
    assert categories == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert numbered[0]["area"] == 6


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_run_lengths_give_the_mask_back(height: int, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.5
    found = coco.rle(mask)
    flat = np.repeat(np.arange(len(found["counts"])) % 2 == 1, found["counts"])
    np.testing.assert_array_equal(flat.reshape(width, height).T, mask)
    assert found["size"] == [height, width]
