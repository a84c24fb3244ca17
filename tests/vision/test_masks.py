"""The mask codec against PyTorch's layers of the same names, with random weights."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.vision import masks

torch = pytest.importorskip("torch", reason="PyTorch is the other side of this test")


def random_arrays(seed=0):
    random = np.random.default_rng(seed)
    arrays = {"_vq_vae._embedding": random.standard_normal((128, 512)).astype(np.float32)}
    for name, shape in masks._shapes().items():
        fan_in = np.prod(shape) / max(shape[:2])
        arrays[f"{name}.weight"] = (random.standard_normal(shape) * fan_in**-0.5).astype(np.float32)
        outputs = shape[1] if name in ("decoder.4", "decoder.6", "decoder.8", "decoder.10") else shape[0]
        arrays[f"{name}.bias"] = (0.1 * random.standard_normal(outputs)).astype(np.float32)
    return arrays


class Residual(torch.nn.Module):
    def __init__(self):
        super().__init__()
        conv, relu = torch.nn.Conv2d, torch.nn.ReLU()
        self.net = torch.nn.Sequential(
            conv(128, 128, 3, padding=1), relu, conv(128, 128, 3, padding=1), relu, conv(128, 128, 1)
        )

    def forward(self, x):
        return x + self.net(x)


class Twin(torch.nn.Module):
    """The layers of the specification's table, in PyTorch."""

    def __init__(self, arrays):
        super().__init__()
        conv, up, relu = torch.nn.Conv2d, torch.nn.ConvTranspose2d, torch.nn.ReLU
        down = [part for c, o in ((1, 16), (16, 32), (32, 64), (64, 128)) for part in (conv(c, o, 4, 2, 1), relu())]
        self.encoder = torch.nn.Sequential(*down, Residual(), Residual(), conv(128, 512, 1))
        ups = [part for c, o in ((128, 128), (128, 64), (64, 32), (32, 16)) for part in (up(c, o, 4, 2, 1), relu())]
        self.decoder = torch.nn.Sequential(conv(512, 128, 1), relu(), Residual(), Residual(), *ups, conv(16, 1, 1))
        self.book = torch.from_numpy(arrays["_vq_vae._embedding"])
        layers = {name: torch.from_numpy(a) for name, a in arrays.items() if not name.startswith("_")}
        self.load_state_dict(layers)

    @torch.inference_mode()
    def decode(self, codes):
        return self.decoder(self.book[list(codes)].T.reshape(1, 512, 4, 4))[0, 0].numpy()

    @torch.inference_mode()
    def encode(self, mask):
        found = self.encoder(2 * (torch.from_numpy(mask)[None, None] - 0.5))[0].reshape(512, 16).T
        return tuple(torch.cdist(found.double(), self.book.double()).argmin(dim=1).tolist())


def test_decodes_and_encodes_as_the_layers_do():
    arrays = random_arrays()
    codec, twin = masks.MaskCodec(arrays), Twin(arrays)
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
