"""Masks as 16 codes: the VQ-VAE between a 64 x 64 picture of a mask and a 4 x 4 grid of 128 codes, and the way from
there to the pixels of a box.

Arrays carry PyTorch's names, as in big_vision's `vae-oid.npz`. Axes: C channels, H and W rows and columns, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError

Float32 = npt.NDArray[np.float32]

SIDE = 64
"""Of the picture of a mask."""
GRID = 4
"""Of its codes."""
NUM_CODES = 128
CODE_SIZE = 512
_CODEBOOK = "_vq_vae._embedding"
_ENCODER = (("encoder.0", 1, 16), ("encoder.2", 16, 32), ("encoder.4", 32, 64), ("encoder.6", 64, 128))
_ENCODER_RESIDUALS = ("encoder.8.net", "encoder.9.net")
_DECODER_RESIDUALS = ("decoder.2.net", "decoder.3.net")
_DECODER = (("decoder.4", 128, 128), ("decoder.6", 128, 64), ("decoder.8", 64, 32), ("decoder.10", 32, 16))


def _shapes() -> dict[str, tuple[int, ...]]:
    """Every array: name without `.weight`/`.bias` -> shape of the weight; biases have one number an output."""
    shapes: dict[str, tuple[int, ...]] = {name: (o, c, 4, 4) for name, c, o in _ENCODER}
    for residual in (*_ENCODER_RESIDUALS, *_DECODER_RESIDUALS):
        shapes |= {f"{residual}.{i}": (128, 128, k, k) for i, k in ((0, 3), (2, 3), (4, 1))}
    shapes |= {"encoder.10": (CODE_SIZE, 128, 1, 1), "decoder.0": (128, CODE_SIZE, 1, 1), "decoder.12": (1, 16, 1, 1)}
    return shapes | {name: (c, o, 4, 4) for name, c, o in _DECODER}  # transposed convolutions: inputs first


class MaskCodec:
    """Encodes masks as codes and decodes them. `arrays` as in `vae-oid.npz`; more than needed is ignored.

    Raises GemmaryError where an array is missing or has another shape.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        expected: dict[str, tuple[int, ...]] = {_CODEBOOK: (NUM_CODES, CODE_SIZE)}
        for name, shape in _shapes().items():
            outputs = shape[1] if name in dict.fromkeys(n for n, _, _ in _DECODER) else shape[0]
            expected |= {f"{name}.weight": shape, f"{name}.bias": (outputs,)}
        self._arrays: dict[str, Float32] = {}
        for name, shape in expected.items():
            if name not in arrays:
                raise GemmaryError(f"the mask codec lacks {name}")
            if arrays[name].shape != shape:
                raise GemmaryError(f"{name} of the mask codec has shape {arrays[name].shape}, not {shape}")
            self._arrays[name] = np.asarray(arrays[name], dtype=np.float32)

    @classmethod
    def open(cls, path: Path) -> MaskCodec:
        """From an .npz file. Raises GemmaryError where it is none, or holds something else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls({name: file[name] for name in file.files})
        except (OSError, ValueError, EOFError) as error:
            raise GemmaryError(f"{path} is not a mask codec: {str(error).splitlines()[0]}") from error

    def decode(self, codes: Sequence[int]) -> Float32:
        """16 codes, row by row -> [64, 64], about -1 (outside) to 1 (inside)."""
        if len(codes) != GRID * GRID or not all(0 <= code < NUM_CODES for code in codes):
            raise GemmaryError(f"a mask is {GRID * GRID} codes from 0 to {NUM_CODES - 1}, not {list(codes)}")
        x = self._arrays[_CODEBOOK][np.asarray(codes)].T.reshape(CODE_SIZE, GRID, GRID)
        x = _relu(self._conv(x, "decoder.0"))
        for residual in _DECODER_RESIDUALS:
            x = self._residual(x, residual)
        for name, _, _ in _DECODER:
            x = _relu(_conv_transpose(x, self._arrays[f"{name}.weight"], self._arrays[f"{name}.bias"]))
        out: Float32 = self._conv(x, "decoder.12")[0]
        return out

    def encode(self, mask: Float32) -> tuple[int, ...]:
        """A mask cut to its box, [64, 64] from 0 (outside) to 1 -> its 16 codes, row by row."""
        x = (2 * (np.asarray(mask, dtype=np.float32) - np.float32(0.5)))[None]
        for name, _, _ in _ENCODER:
            x = _relu(self._conv(x, name, stride=2, padding=1))
        for residual in _ENCODER_RESIDUALS:
            x = self._residual(x, residual)
        found = self._conv(x, "encoder.10").reshape(CODE_SIZE, -1).T
        book = self._arrays[_CODEBOOK]
        # |x - c|² without |x|², which is the same for every code.
        distances = np.square(book).sum(axis=1) - 2 * found @ book.T
        return tuple(int(code) for code in distances.argmin(axis=1))

    def _conv(self, x: Float32, name: str, stride: int = 1, padding: int = 0) -> Float32:
        return _conv(x, self._arrays[f"{name}.weight"], self._arrays[f"{name}.bias"], stride, padding)

    def _residual(self, x: Float32, name: str) -> Float32:
        inner = _relu(self._conv(x, f"{name}.0", padding=1))
        inner = _relu(self._conv(inner, f"{name}.2", padding=1))
        out: Float32 = x + self._conv(inner, f"{name}.4")
        return out


def paste(mask: Float32, box: tuple[float, float, float, float], width: int, height: int) -> npt.NDArray[np.bool_]:
    """A decoded mask [64, 64] -> [height, width], true inside. box: left, top, right, bottom in pixels, cut to whole
    ones towards zero, as big_vision's evaluation does. Bilinear; above 0 is inside."""
    from PIL import Image

    left, top, right, bottom = (int(side) for side in box)
    left, top = max(0, left), max(0, top)
    right, bottom = min(width, right), min(height, bottom)
    whole = np.zeros((height, width), dtype=np.bool_)
    if right > left and bottom > top:
        size = (right - left, bottom - top)
        resized = Image.fromarray(mask).resize(size, Image.Resampling.BILINEAR)
        whole[top:bottom, left:right] = np.asarray(resized) > 0
    return whole


def cut(mask: npt.NDArray[np.bool_], box: tuple[float, float, float, float]) -> Float32:
    """The inverse: the part of a whole mask [height, width] in a box -> [64, 64] from 0 to 1, bilinear, antialiased."""
    from PIL import Image

    left, top, right, bottom = (int(side) for side in box)
    part = mask[max(0, top) : bottom, max(0, left) : right].astype(np.float32)
    if 0 in part.shape:
        raise GemmaryError(f"the box {box} has no pixel of the mask")
    return np.asarray(Image.fromarray(part).resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def _relu(x: Float32) -> Float32:
    return np.maximum(x, np.float32(0))


def _conv(x: Float32, weight: Float32, bias: Float32, stride: int, padding: int) -> Float32:
    """x [C, H, W], weight [O, C, k, k] -> [O, H', W']: cross-correlation with zeros around."""
    k = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (k, k), axis=(1, 2))[:, ::stride, ::stride]
    out: Float32 = np.tensordot(weight, windows, axes=((1, 2, 3), (0, 3, 4))) + bias[:, None, None]
    return out


def _conv_transpose(x: Float32, weight: Float32, bias: Float32) -> Float32:
    """x [C, H, W], weight [C, O, 4, 4] -> [O, 2H, 2W]: stride 2, padding 1, as PyTorch counts it."""
    C, H, W = x.shape
    spread = np.zeros((C, 2 * H - 1, 2 * W - 1), dtype=np.float32)
    spread[:, ::2, ::2] = x
    return _conv(spread, weight.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1], bias, stride=1, padding=2)
