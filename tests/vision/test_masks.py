"""The mask codec against PyTorch's layers of the same names, with random weights."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.vision import masks

torch = pytest.importorskip("torch", reason="PyTorch is the other side of this test")


BIG_VISION = (16, 32, 64, 128, 512, 128, 128, 64, 32, 16, 1)
SMALL = (6, 10, 20, 24, 30, 12, 16, 8, 10, 4, 1)


def random_arrays(channels=BIG_VISION, seed=0):
    random = np.random.default_rng(seed)
    arrays = {}
    for name, shape in masks.shapes_of(channels).items():
        spread = 0.1 if len(shape) == 1 else 0.2 if len(shape) == 2 else (np.prod(shape) / max(shape[:2])) ** -0.5
        arrays[name] = (random.standard_normal(shape) * spread).astype(np.float32)
    return arrays


def test_shapes_of_big_visions_arrays():
    shapes = masks.shapes_of(BIG_VISION)
    assert len(shapes) == 1 + 2 * (11 + 12)
    assert shapes["_vq_vae._embedding"] == (128, 512)
    assert shapes["encoder.2.weight"] == (32, 16, 4, 4)
    assert shapes["encoder.9.net.2.weight"] == shapes["decoder.3.net.0.weight"] == (128, 128, 3, 3)
    assert shapes["encoder.10.weight"] == (512, 128, 1, 1)
    assert shapes["decoder.8.weight"] == (64, 32, 4, 4)
    assert shapes["decoder.8.bias"] == (32,)


class Residual(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU()
        self.net = torch.nn.Sequential(
            conv(width, width, 3, padding=1), relu, conv(width, width, 3, padding=1), relu, conv(width, width, 1)
        )

    def forward(self, x):
        return x + self.net(x)


class Twin(torch.nn.Module):
    """The layers of the specification's table, in PyTorch."""

    def __init__(self, arrays, channels):
        super().__init__()
        conv, up, relu = torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.ReLU
        *downs, code, wide = channels[:6]
        steps = zip((1, *downs), downs, strict=False)
        down = [part for c, o in steps for part in (conv(c, o, 4, 2, 1), relu())]
        self.encoder = torch.nn.Sequential(*down, Residual(downs[-1]), Residual(downs[-1]), conv(downs[-1], code, 1))
        steps = pairwise(channels[5:10])
        ups = [part for c, o in steps for part in (up(c, o, 4, 2, 1), relu())]
        ends = Residual(wide), Residual(wide), *ups, conv(channels[9], 1, 1)
        self.decoder = torch.nn.Sequential(conv(code, wide, 1), relu(), *ends)
        self.book = torch.from_numpy(arrays["_vq_vae._embedding"])
        layers = {name: torch.from_numpy(a) for name, a in arrays.items() if not name.startswith("_")}
        self.load_state_dict(layers)

    @torch.inference_mode()
    def decode(self, codes):
        return self.decoder(self.book[list(codes)].T.reshape(1, -1, 4, 4))[0, 0].numpy()

    @torch.inference_mode()
    def encode(self, mask):
        found = self.encoder(2 * (torch.from_numpy(mask)[None, None] - 0.5))[0].flatten(1).T
        return tuple(torch.cdist(found.double(), self.book.double()).argmin(dim=1).tolist())


@pytest.mark.parametrize("channels", [BIG_VISION, SMALL])
def test_decodes_and_encodes_as_the_layers_do(channels):
    arrays = random_arrays(channels)
    codec, twin = masks.MaskCodec(arrays), Twin(arrays, channels)
    random = np.random.default_rng(1)
    for _ in range(3):
        codes = random.integers(0, 128, 16)
        assert np.ptp(codec.decode(codes)) > 0.1
        np.testing.assert_allclose(codec.decode(codes), twin.decode(codes), atol=2e-5)
        mask = random.random((64, 64)).astype(np.float32)
        assert codec.encode(mask) == twin.encode(mask)
    assert len({codec.encode(random.random((64, 64)).astype(np.float32)) for _ in range(3)}) == 3


def test_refuses_arrays_that_do_not_fit():
    arrays = random_arrays()
    some = {name: array for name, array in arrays.items() if name != "decoder.12.bias"}
    with pytest.raises(GemmaryError, match=r"lacks decoder\.12\.bias"):
        masks.MaskCodec(some)
    with pytest.raises(GemmaryError, match=r"encoder\.0\.weight .* has shape \(1,\)"):
        masks.MaskCodec({**arrays, "encoder.0.weight": np.zeros(1)})
    wider = np.zeros(24, np.float32)
    with pytest.raises(GemmaryError, match=r"decoder\.6\.weight .* has shape \(128, 64, 4, 4\), not \(128, 24, 4, 4\)"):
        masks.MaskCodec({**arrays, "decoder.6.bias": wider})
    with pytest.raises(GemmaryError, match="2 channels, not 1"):
        masks.MaskCodec({**arrays, "decoder.12.bias": np.zeros(2, np.float32)})
    with pytest.raises(GemmaryError, match="one number a channel"):
        masks.MaskCodec({**arrays, "encoder.2.bias": np.zeros((2, 2), np.float32)})
    with pytest.raises(GemmaryError, match="is int64, not float32 or float16"):
        masks.MaskCodec({**arrays, "encoder.0.bias": np.zeros(16, np.int64)})


def test_reads_half_precision_from_a_file(tmp_path):
    halves = {name: array.astype(np.float16) for name, array in random_arrays(SMALL).items()}
    np.savez(tmp_path / "codec.npz", **halves)
    wide = masks.MaskCodec({name: array.astype(np.float32) for name, array in halves.items()})
    codes = list(range(16))
    np.testing.assert_array_equal(masks.MaskCodec.open(tmp_path / "codec.npz").decode(codes), wide.decode(codes))


@pytest.mark.parametrize("codes", [[0] * 15, [0] * 15 + [128], [-1] + [0] * 15])
def test_refuses_codes_that_are_none(codes):
    with pytest.raises(GemmaryError, match="16 codes"):
        masks.MaskCodec(random_arrays()).decode(codes)


def test_pastes_into_the_box_and_cuts_out_of_it():
    mask = np.full((64, 64), -1, dtype=np.float32)
    mask[:, 32:] = 1
    whole = masks.paste(mask, (10.9, 20, 50, 40), 100, 60)
    assert whole.shape == (60, 100)
    assert whole[20:40, 31:50].all()
    assert whole.sum() == 20 * 20  # the right half of the box of 40 x 20
    again = masks.cut(whole, (10.9, 20, 50, 40))
    assert again.shape == (64, 64)
    assert again[:, 40:].min() > 0.99
    assert again[:, :24].max() < 0.01


def test_a_box_beyond_the_picture_is_cut():
    ones = np.ones((64, 64), dtype=np.float32)
    assert masks.paste(ones, (-5, -5, 200, 200), 8, 6).all()
    assert not masks.paste(ones, (5, 5, 5, 9), 8, 6).any()
