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
_CODEBOOK = "_vq_vae._embedding"
_ENCODER = ("encoder.0", "encoder.2", "encoder.4", "encoder.6")
_ENCODER_RESIDUALS = ("encoder.8.net", "encoder.9.net")
_DECODER_RESIDUALS = ("decoder.2.net", "decoder.3.net")
_DECODER = ("decoder.4", "decoder.6", "decoder.8", "decoder.10")
_LAYERS = (*_ENCODER, "encoder.10", "decoder.0", *_DECODER, "decoder.12")
"""Each reads what the one before it writes; `encoder.10` writes codes, which `decoder.0` reads. Residual blocks keep
the number of channels that they are given."""


def shapes_of(channels: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Every array of a codec -> its shape.

    channels: what each of `_LAYERS` writes. Those of `vae-oid.npz` are 16, 32, 64, 128, 512 (the codes), 128, 128, 64,
    32, 16, 1.
    """
    weights: dict[str, tuple[int, ...]] = {}
    wide = dict(zip(_LAYERS, channels, strict=True))
    for name, inputs, outputs in zip(_LAYERS, (1, *channels), channels, strict=False):
        kernel = (4, 4) if name in (*_ENCODER, *_DECODER) else (1, 1)
        transposed = name in _DECODER  # its inputs come first
        weights[name] = (*((inputs, outputs) if transposed else (outputs, inputs)), *kernel)
    for residuals, width in ((_ENCODER_RESIDUALS, wide["encoder.6"]), (_DECODER_RESIDUALS, wide["decoder.0"])):
        for residual in residuals:
            weights |= {f"{residual}.{i}": (width, width, k, k) for i, k in ((0, 3), (2, 3), (4, 1))}
    shapes: dict[str, tuple[int, ...]] = {_CODEBOOK: (NUM_CODES, wide["encoder.10"])}
    for name, shape in weights.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": (shape[1 if name in _DECODER else 0],)}
    return shapes


class MaskCodec:
    """Encodes masks as codes and decodes them. `arrays` as in `vae-oid.npz`, with any numbers of channels that agree
    with each other, in float32 or float16; more arrays than needed are ignored.

    Raises GemmaryError where an array is missing or does not fit the others.
    """

    def __init__(self, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
        channels = []
        for name in _LAYERS:
            bias = f"{name}.bias"
            if bias not in arrays:
                raise GemmaryError(f"the mask codec lacks {bias}")
            if arrays[bias].ndim != 1:
                raise GemmaryError(f"{bias} of the mask codec has shape {arrays[bias].shape}: one number a channel")
            channels.append(len(arrays[bias]))
        if channels[-1] != 1:
            raise GemmaryError(f"the mask codec decodes to {channels[-1]} channels, not 1")
        self._arrays: dict[str, Float32] = {}
        for name, shape in shapes_of(channels).items():
            if name not in arrays:
                raise GemmaryError(f"the mask codec lacks {name}")
            if arrays[name].shape != shape:
                raise GemmaryError(f"{name} of the mask codec has shape {arrays[name].shape}, not {shape}")
            if arrays[name].dtype not in (np.float32, np.float16):
                raise GemmaryError(f"{name} of the mask codec is {arrays[name].dtype}, not float32 or float16")
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
        x = self._arrays[_CODEBOOK][np.asarray(codes)].T.reshape(-1, GRID, GRID)
        x = _relu(self._conv(x, "decoder.0"))
        for residual in _DECODER_RESIDUALS:
            x = self._residual(x, residual)
        for name in _DECODER:
            x = _relu(_conv_transpose(x, self._arrays[f"{name}.weight"], self._arrays[f"{name}.bias"]))
        out: Float32 = self._conv(x, "decoder.12")[0]
        return out

    def encode(self, mask: Float32) -> tuple[int, ...]:
        """A mask cut to its box, [64, 64] from 0 (outside) to 1 -> its 16 codes, row by row."""
        x = (2 * (np.asarray(mask, dtype=np.float32) - np.float32(0.5)))[None]
        for name in _ENCODER:
            x = _relu(self._conv(x, name, stride=2, padding=1))
        for residual in _ENCODER_RESIDUALS:
            x = self._residual(x, residual)
        found = self._conv(x, "encoder.10").reshape(-1, GRID * GRID).T
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
