"""Pictures from anywhere, and the square that the tower reads."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gemmary.errors import GemmaryError
from gemmary.vision import preprocess


def picture(width=37, height=23, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_path_bytes_image_and_array_are_the_same_picture(tmp_path):
    image = picture()
    data = encoded(image, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, image, np.asarray(image)):
        np.testing.assert_array_equal(np.asarray(preprocess.open_image(source)), np.asarray(image))


@pytest.mark.parametrize(("format", "options"), [("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_the_three_formats(format, options):
    opened = preprocess.open_image(encoded(picture(), format, **options))
    assert (opened.mode, opened.size) == ("RGB", (37, 23))


def test_other_modes_become_rgb():
    grey = Image.fromarray(np.arange(0, 240, dtype=np.uint8).reshape(12, 20))
    deep = Image.fromarray((np.arange(0, 240, dtype=np.uint16) * 257).reshape(12, 20))
    expected = np.repeat(np.asarray(grey)[:, :, None], 3, axis=2)
    for source in (grey, encoded(grey, "PNG"), encoded(deep, "PNG"), np.asarray(grey), np.asarray(deep)):
        np.testing.assert_array_equal(np.asarray(preprocess.open_image(source)), expected)
    clear = np.zeros((4, 4, 4), dtype=np.uint8)
    clear[:, :, 0] = 200  # red, and wholly transparent
    assert np.asarray(preprocess.open_image(clear))[0, 0].tolist() == [200, 0, 0]
    assert np.asarray(preprocess.open_image(encoded(Image.fromarray(clear), "PNG")))[0, 0].tolist() == [200, 0, 0]
    palette = picture().quantize(16)
    np.testing.assert_array_equal(
        np.asarray(preprocess.open_image(encoded(palette, "PNG"))), np.asarray(palette.convert("RGB"))
    )


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees counterclockwise
    turned = preprocess.open_image(encoded(picture(), "PNG", exif=exif))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(np.asarray(picture()), 3))


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (b"", "not a JPEG, PNG or WebP file"),
        (b"GIF89a" + bytes(100), "not a JPEG, PNG or WebP file"),
        (encoded(picture(), "GIF"), "not a JPEG, PNG or WebP file"),
        (encoded(picture(300, 300), "PNG")[:-2000], "cannot be read"),
        (encoded(picture(300, 300), "JPEG")[:2000], "cannot be read"),
        ("nowhere.png", "nowhere.png does not exist"),
        (3, "not int"),
        (np.zeros((4, 4, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((4, 4, 3), np.float32), "uint8 or uint16, not float32"),
        (np.zeros((0, 4, 3), np.uint8), "1, 3 or 4 channels"),
    ],
)
def test_what_is_no_picture_is_one_line(source, line):
    with pytest.raises(GemmaryError, match=line) as error:
        preprocess.open_image(source)
    assert "\n" not in str(error.value)


def test_a_huge_picture_is_refused_before_it_is_decoded():
    data = encoded(Image.new("1", (9000, 8000)), "PNG")
    with pytest.raises(GemmaryError, match="9,000 x 8,000 pixels"):
        preprocess.open_image(data)


def test_transformers_square_to_the_bit():
    siglip = pytest.importorskip("transformers.models.siglip.image_processing_pil_siglip", reason="the other side")
    processor = siglip.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    for seed, size in enumerate([(37, 23), (16, 16), (100, 301)]):
        image = picture(*size, seed=seed)
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(preprocess.pixels(image, 32, "transformers"), theirs)


def test_gemma_3_square_to_the_bit():
    gemma3 = pytest.importorskip("transformers.models.gemma3.image_processing_pil_gemma3", reason="the other side")
    options = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # as the official folders say
    processor = gemma3.Gemma3ImageProcessorPil(size={"height": 56, "width": 56}, **options)
    for seed, size in enumerate([(37, 23), (56, 56), (100, 301)]):
        image = picture(*size, seed=seed)
        theirs = processor(image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        np.testing.assert_array_equal(preprocess.pixels(image, 56, "transformers", bicubic=False), theirs)


def triangle(size, target):
    """Weights [target, size] of bilinear resampling with antialiasing, from its definition: float64."""
    scale = size / target
    reach = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    weights = np.maximum(0, 1 - abs(np.arange(size)[None] + 0.5 - centres[:, None]) / reach)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(37, 23), (16, 16), (64, 200)])
def test_big_vision_square_is_the_definition_of_it(size):
    image = picture(*size)
    rows, columns = triangle(size[1], 32), triangle(size[0], 32)
    exact = np.einsum("yh,hwc,xw->yxc", rows, np.asarray(image, dtype=np.float64), columns)
    ours = (preprocess.pixels(image, 32) + 1) * 127.5
    assert ours.shape == (32, 32, 3)
    # Cut to whole numbers: where the exact value is one, its float32 neighbour below may be taken.
    assert abs(ours - np.floor(exact + 1e-3)).max() <= 1.01
    assert (abs(ours - np.floor(exact + 1e-3)) < 0.01).mean() > 0.999


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_is_known_from_the_header(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (20, 10)).save(tmp_path / "picture", format=format, exif=exif)
    assert preprocess.size_of(tmp_path / "picture") == preprocess.open_image(tmp_path / "picture").size
    with pytest.raises(GemmaryError, match="nothing does not exist"):
        preprocess.size_of(tmp_path / "nothing")


def test_bytes_hold_the_pixels_exactly():
    square = preprocess.pixels(picture(), 16)
    assert np.array_equal(preprocess.as_pixels(preprocess.as_bytes(square)), square)
