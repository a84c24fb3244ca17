"""big_vision's `.npz`: what its einsums mean, both ways, in parts, and what is refused."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from gemmary.checkpoints import Checkpoint, npz, open_checkpoint, save_checkpoint
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine

SMALL = Config(
    family="paligemma",
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    intermediate_size=40,
    vocab_size=300,
    context_length=8192,
    layer_types=("global", "global"),
    query_pre_attn_scalar=10,
    vision=VisionConfig(image_size=12, num_layers=3, hidden_size=24, num_heads=3, intermediate_size=36, patch_size=4),
    prefix_lm=True,
)
SECOND = replace(SMALL, family="paligemma2", attn_logit_softcap=50.0, post_norms=True)


def source(config: Config = SMALL) -> Checkpoint:
    return random_checkpoint(config, "random:tiny", None, 0)


@pytest.mark.parametrize("config", [SMALL, SECOND], ids=lambda c: c.family)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_what_is_written_is_read(config: Config, dtype: str | None, tmp_path: Path) -> None:
    mine = source(config)
    save_checkpoint(mine, tmp_path / "m.npz", format="big_vision", dtype=dtype)
    again = open_checkpoint(tmp_path / "m.npz")
    assert again.config == config
    assert again.names() == mine.names()
    # Norms and biases are float32 in memory and are written with the rest.
    typed = np.dtype(np.float32 if dtype else ml_dtypes.bfloat16)
    for name in mine.names():
        ours, theirs = mine.lookup(name), again.lookup(name)
        assert np.array_equal(theirs.dequantize(), ours.dequantize().astype(typed).astype(np.float32)), name
        if isinstance(ours, Affine):
            assert isinstance(theirs, Affine)
            assert np.array_equal(theirs.bias, ours.bias.astype(typed).astype(np.float32)), name


def test_the_arrays_mean_what_their_einsums_say(tmp_path: Path) -> None:
    mine = source()
    save_checkpoint(mine, tmp_path / "m.npz", format="big_vision", dtype="float32")
    file = np.load(tmp_path / "m.npz")
    random = np.random.default_rng(1)
    i = 1

    def ours(name: str, x: np.ndarray) -> np.ndarray:
        leaf = mine.lookup(name)
        y = x @ leaf.dequantize().T
        return y + leaf.bias if isinstance(leaf, Affine) else y

    def same(a: np.ndarray, b: np.ndarray) -> bool:
        return np.allclose(a.reshape(b.shape), b, atol=1e-5)

    x = random.normal(size=(5, 32)).astype(np.float32)
    llm = "params/llm/layers/"
    assert same(ours("layers.1.q", x), np.einsum("TD,NDH->TNH", x, file[llm + "attn/q_einsum/w"][i]))
    kv = np.einsum("TD,CKDH->CTKH", x, file[llm + "attn/kv_einsum/w"][i])
    assert same(ours("layers.1.k", x), kv[0])
    assert same(ours("layers.1.v", x), kv[1])
    heads = random.normal(size=(5, 4, 10)).astype(np.float32)
    out = np.einsum("TNH,NHD->TD", heads, file[llm + "attn/attn_vec_einsum/w"][i])
    assert same(ours("layers.1.o", heads.reshape(5, -1)), out)
    gating = np.einsum("TD,CDF->CTF", x, file[llm + "mlp/gating_einsum"][i])
    assert same(ours("layers.1.gate", x), gating[0])
    assert same(ours("layers.1.up", x), gating[1])
    wide = random.normal(size=(5, 40)).astype(np.float32)
    assert same(ours("layers.1.down", wide), wide @ file[llm + "mlp/linear"][i])

    block = "params/img/Transformer/encoderblock/"
    attention = block + "MultiHeadDotProductAttention_0/"
    c = random.normal(size=(5, 24)).astype(np.float32)
    key = np.einsum("TC,CNH->TNH", c, file[attention + "key/kernel"][i]) + file[attention + "key/bias"][i]
    assert same(ours("vision.layers.1.k", c), key)
    heads = random.normal(size=(5, 3, 8)).astype(np.float32)
    out = np.einsum("TNH,NHC->TC", heads, file[attention + "out/kernel"][i]) + file[attention + "out/bias"][i]
    assert same(ours("vision.layers.1.o", heads.reshape(5, -1)), out)
    up = c @ file[block + "MlpBlock_0/Dense_0/kernel"][i] + file[block + "MlpBlock_0/Dense_0/bias"][i]
    assert same(ours("vision.layers.1.up", c), up)
    patch = random.normal(size=(5, 4, 4, 3)).astype(np.float32)
    seen = np.einsum("Trck,rckC->TC", patch, file["params/img/embedding/kernel"]) + file["params/img/embedding/bias"]
    assert same(ours("vision.patch", patch.transpose(0, 3, 1, 2).reshape(5, -1)), seen)
    assert same(ours("vision.projector", c), c @ file["params/img/head/kernel"] + file["params/img/head/bias"])


def test_parts_are_one_file(tmp_path: Path) -> None:
    save_checkpoint(source(), tmp_path / "m.npz", format="big_vision")
    whole = (tmp_path / "m.npz").read_bytes()
    step = len(whole) // 3 + 1
    (tmp_path / "parts").mkdir()
    for number in range(3):
        (tmp_path / "parts" / f"m.npz.part{number}").write_bytes(whole[number * step : (number + 1) * step])
    one, parts = open_checkpoint(tmp_path / "m.npz"), open_checkpoint(tmp_path / "parts" / "m.npz")
    for name in one.names():
        assert np.array_equal(one.lookup(name).dequantize(), parts.lookup(name).dequantize())
    assert parts.stored_bytes() == len(whole)
    (tmp_path / "parts" / "m.npz.part1").unlink()
    with pytest.raises(GemmaryError, match=r"some are missing: there are 0, 2"):
        open_checkpoint(tmp_path / "parts" / "m.npz")


def test_an_array_across_two_parts(tmp_path: Path) -> None:
    values = np.arange(1000, dtype=np.float32)
    np.savez(tmp_path / "a.npz", x=values)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "b.npz.part0").write_bytes(whole[:2001])
    (tmp_path / "b.npz.part1").write_bytes(whole[2001:])
    assert np.array_equal(npz.NpzFile(tmp_path / "b.npz").array("x"), values)


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    with pytest.raises(GemmaryError, match="there is no file"):
        open_checkpoint(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(GemmaryError, match=r"not a sound .npz file"):
        open_checkpoint(path)
    np.savez_compressed(path, x=np.zeros(4, np.float32))
    with pytest.raises(GemmaryError, match=r"compressed"):
        open_checkpoint(path)
    np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(GemmaryError, match=r"holds \|O numbers"):
        open_checkpoint(path)
    np.savez(path, x=np.zeros(4, np.float32))
    with pytest.raises(GemmaryError, match=r"is no PaliGemma of big_vision's"):
        open_checkpoint(path)
    save_checkpoint(source(), path, format="big_vision")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("params/other.npy", npz.header("F32", (1,)) + b"1234")
    with pytest.raises(GemmaryError, match=r"'params/other', which this model does not have"):
        open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(GemmaryError, match=r"not a sound .npz file"):
        open_checkpoint(path)
    text = random_checkpoint(replace(SMALL, vision=None, family="gemma", prefix_lm=False), "random:x", None, 0)
    with pytest.raises(GemmaryError, match="sees no pictures"):
        save_checkpoint(text, path, format="big_vision")


def test_no_tokenizer_beside_it(tmp_path: Path) -> None:
    save_checkpoint(source(), tmp_path / "m.npz", format="big_vision")
    with pytest.raises(GemmaryError, match=r"put tokenizer.model"):
        open_checkpoint(tmp_path / "m.npz").tokenizer  # noqa: B018
