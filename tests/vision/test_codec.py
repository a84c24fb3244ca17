"""Where the mask codec comes from: beside the weights, the cache, or the network once."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.errors import GemmaryError
from gemmary.vision import codec
from gemmary.vision.masks import MaskCodec
from tests.checkpoints.fake_hub import Hub, Repo, serve
from tests.checkpoints.sources import TinySource
from tests.checkpoints.test_big_vision import SMALL
from tests.vision.test_masks import random_arrays


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """The file that the codec is to be, and an empty cache."""
    buffer = io.BytesIO()
    np.savez(buffer, **random_arrays())
    monkeypatch.setattr(codec, "SHA256", hashlib.sha256(buffer.getvalue()).hexdigest())
    monkeypatch.setattr(codec, "SIZE", len(buffer.getvalue()))
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return buffer.getvalue()


def decoded(found: MaskCodec) -> bytes:
    return found.decode(range(16)).tobytes()


def test_the_file_beside_the_weights_comes_first(tmp_path: Path) -> None:
    model = random_checkpoint(SMALL, "random:tiny", None, 0)
    assert model.mask_codec_file is None
    save_checkpoint(TinySource(model.config, model.lookup), tmp_path / "without")
    assert open_checkpoint(tmp_path / "without").mask_codec_file is None
    np.savez(tmp_path / "own.npz", **random_arrays(seed=1))
    source = TinySource(model.config, model.lookup, mask_codec_file=tmp_path / "own.npz")
    for format in ("safetensors", "packed"):
        save_checkpoint(source, tmp_path / format, format=format)
        found = open_checkpoint(tmp_path / format).mask_codec_file
        assert decoded(codec.open_codec(found)) == decoded(MaskCodec(random_arrays(seed=1)))


def test_it_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: bytes) -> None:
    with serve(Hub({"a/b": Repo({codec.FILE: published})})) as hub:
        monkeypatch.setattr(codec, "URL", hub.store_url + codec.SHA256)
        partial = tmp_path / "cache" / (codec.FILE + ".gemmary-partial")
        partial.parent.mkdir()
        partial.write_bytes(published[:1000])
        first = codec.open_codec(None)
        assert decoded(first) == decoded(MaskCodec(random_arrays()))
        assert hub.ranges() == ["bytes=1000-"]
    assert decoded(codec.open_codec(None)) == decoded(first)  # now without a network
    assert not partial.exists()


def test_damaged_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: bytes) -> None:
    with serve(Hub({"a/b": Repo({codec.FILE: published})}, damage=True)) as hub:
        monkeypatch.setattr(codec, "URL", hub.store_url + codec.SHA256)
        with pytest.raises(
            GemmaryError, match=r"masks need vae-oid.npz.* arrived damaged \(SHA-256 differs\): try again"
        ):
            codec.open_codec(None)
    assert not list((tmp_path / "cache").glob("*partial"))


@pytest.mark.parametrize("offline", [False, True])
def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: bytes, offline: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("refused\nat once")  # the real one tries again for five seconds

    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.file_download.http_get", refuse)
    with pytest.raises(
        GemmaryError, match=r"masks need vae-oid.npz, which decodes them: cannot fetch .*put it at "
    ) as told:
        codec.open_codec(None)
    assert "\n" not in str(told.value)
    assert "offline" in str(told.value).lower() or not offline
