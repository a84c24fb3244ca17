"""Where the mask codec comes from: beside the weights, the cache, or the network once."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.vision import codec
from gemmary.vision.masks import MaskCodec
from tests.checkpoints.fake_hub import Hub, Repo, serve
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
    np.savez(tmp_path / codec.BESIDE, **random_arrays(1))
    expected = decoded(MaskCodec(random_arrays(1)))
    assert decoded(codec.open_codec(tmp_path)) == expected
    assert decoded(codec.open_codec(tmp_path / "model.gguf")) == expected


def test_it_is_fetched_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: bytes) -> None:
    with serve(Hub({"a/b": Repo({codec.FILE: published})})) as hub:
        monkeypatch.setattr(codec, "URL", hub.store_url + codec.SHA256)
        partial = tmp_path / "cache" / (codec.FILE + ".gemmary-partial")
        partial.parent.mkdir()
        partial.write_bytes(published[:1000])
        first = codec.open_codec(tmp_path)
        assert decoded(first) == decoded(MaskCodec(random_arrays()))
        assert hub.ranges() == ["bytes=1000-"]
    assert decoded(codec.open_codec(tmp_path)) == decoded(first)  # now without a network
    assert not partial.exists()


def test_damaged_bytes_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, published: bytes) -> None:
    with serve(Hub({"a/b": Repo({codec.FILE: published})}, damage=True)) as hub:
        monkeypatch.setattr(codec, "URL", hub.store_url + codec.SHA256)
        with pytest.raises(
            GemmaryError, match=r"masks need vae-oid.npz.* arrived damaged \(SHA-256 differs\): try again"
        ):
            codec.open_codec(tmp_path)
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
        codec.open_codec(tmp_path)
    assert "\n" not in str(told.value)
    assert "offline" in str(told.value).lower() or not offline
