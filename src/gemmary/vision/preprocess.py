"""A picture from anywhere -> RGB -> the square of numbers that a vision tower reads.

Only JPEG, PNG and WebP are decoded, and only after their header has shown that they are not too large. The aspect ratio
is not kept: PaliGemma and Gemma 3 were trained on pictures that were squeezed into a square.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from PIL.Image import Image

Resize = Literal["big_vision", "transformers"]

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 64_000_000
"""Of a picture, before it is decoded: 192 MB of RGB."""


def open_image(source: Any) -> Image:
    """A picture as RGB, upright.

    source: a path, the bytes of a file, a PIL image, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], uint8 or
    uint16. EXIF orientation is applied, grey is replicated, a palette is looked up, 16 bits become 8, alpha is dropped.

    Raises GemmaryError, one line, for anything that is not a whole picture of a known format and a sane size.
    """
    from PIL import Image, ImageOps

    called = str(source) if isinstance(source, str | os.PathLike) else "the picture"
    with _one_line(called):
        if isinstance(source, np.ndarray):
            image = Image.fromarray(_as_rgb(source))
        elif isinstance(source, Image.Image):
            image = source
        else:
            if isinstance(source, bytes | bytearray | memoryview):
                opened: Any = io.BytesIO(source)
            elif isinstance(source, str | os.PathLike):
                opened = Path(source)
            else:
                raise GemmaryError(f"a picture is a path, bytes, a PIL image or an array, not {type(source).__name__}")
            with Image.open(opened, formats=FORMATS) as image:
                _check_size(image, called)
                return _rgb(ImageOps.exif_transpose(image))
        _check_size(image, called)
        return _rgb(ImageOps.exif_transpose(image))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture file, upright, from its header alone. Raises GemmaryError as `open_image`."""
    from PIL import ExifTags, Image

    with _one_line(str(path)), Image.open(path, formats=FORMATS) as image:
        _check_size(image, str(path))
        # Pillow decodes all of a PNG to find its EXIF data, which may stand behind the pixels and nearly never exist.
        exif = image.getexif() if image.format != "PNG" or b"eXIf" in path.read_bytes() else {}
        turned = exif.get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if turned else (image.width, image.height)


def pixels(image: Image, size: int, resize: Resize = "big_vision", *, bicubic: bool = True) -> npt.NDArray[np.float32]:
    """An RGB picture squeezed into [size, size, 3], float32 in [-1, 1].

    resize: "big_vision" as the checkpoints were trained: bilinear with antialiasing in float32, cut to whole numbers.
    "transformers": in 8 bits, as its processors do, to the bit: bicubic as SigLIP's, which PaliGemma has, or bilinear
    as Gemma 3's.
    """
    from PIL import Image

    if resize == "transformers":
        method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
        small = np.asarray(image.resize((size, size), method), dtype=np.float64)
        square: npt.NDArray[np.float32] = ((small * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)
        return square
    planes = [np.asarray(plane.convert("F").resize((size, size), Image.Resampling.BILINEAR)) for plane in image.split()]
    return as_pixels(np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8))


def as_pixels(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Bytes [..., size, size, 3] -> float32 in [-1, 1]."""
    return squares.astype(np.float32) / np.float32(127.5) - np.float32(1)


def as_bytes(square: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """The inverse, exact for what "big_vision" resizing gives."""
    whole: npt.NDArray[np.uint8] = np.rint((square + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return whole


@contextmanager
def _one_line(called: str) -> Iterator[None]:
    """What Pillow raises for a bad file, as a GemmaryError of one line."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except FileNotFoundError:
        raise GemmaryError(f"{called} does not exist") from None
    except UnidentifiedImageError:
        raise GemmaryError(f"{called} is not a JPEG, PNG or WebP file") from None
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise GemmaryError(f"{called} cannot be read: {str(error).splitlines()[0]}") from None


def _check_size(image: Image, called: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise GemmaryError(
            f"{called} has {image.width:,} x {image.height:,} pixels and {MAX_PIXELS:,} is the most: scale it down"
        )


def _rgb(image: Image) -> Image:
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        from PIL import Image as images

        deep = np.asarray(image, dtype=np.float64).clip(0, 65535)
        image = images.fromarray(np.round(deep / 257).astype(np.uint8))
    if image.mode == "P" or image.mode == "PA":
        image = image.convert("RGBA")  # colours under transparent places are the palette's, not black
    return image if image.mode == "RGB" else image.convert("RGB")


def _as_rgb(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """[H, W, 3] uint8 of an array of any accepted shape."""
    if array.dtype == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise GemmaryError(f"a picture as an array is uint8 or uint16, not {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise GemmaryError(f"a picture as an array is [H, W], or [H, W, C] with 1, 3 or 4 channels, not {array.shape}")
    colours = array[:, :, :3]
    return np.ascontiguousarray(np.broadcast_to(colours, (*colours.shape[:2], 3)))
