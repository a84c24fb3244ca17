"""KerasHub's presets: what Keras saves is read, with its logits; the layout by itself, without its libraries, too."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.checkpoints.keras_hub import open_stored, read_config
from gemmary.checkpoints.stored import Stored
from gemmary.config import Config
from gemmary.errors import GemmaryError
from tests.checkpoints.sources import TinySource, logits, same_leaves
from tests.runs import relative_error
from tests.tiny import TINY, random_leaves, random_tokens

Arrays = dict[str, npt.NDArray[Any]]


def config_like(name: str) -> Config:
    """A tiny model as a preset can say it: the bases of RoPE are fixed, and so is the context."""
    c = TINY[name]
    third = c.family == "gemma3"
    return replace(
        c,
        rope_theta=1e6 if third else 1e4,
        rope_theta_local=1e4,
        context_length=32_768 if third else 8192,
        query_pre_attn_scalar=c.hidden_size // c.num_heads if c.query_pre_attn_scalar != c.head_dim else c.head_dim,
    )


def preset(c: Config) -> dict[str, Any]:
    """The `config` of the preset's config.json, as the class of the backbone takes it."""
    third = c.family == "gemma3"
    said: dict[str, Any] = {
        "vocabulary_size": c.vocab_size,
        "num_layers": c.num_layers,
        "num_query_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "hidden_dim": c.hidden_size,
        "intermediate_dim": c.intermediate_size * (1 if third else 2),
        "head_dim": c.head_dim,
        "layer_norm_epsilon": 1e-6,
        "query_head_dim_normalize": c.query_pre_attn_scalar == c.head_dim,
        "use_post_ffw_norm": c.post_norms,
        "use_post_attention_norm": c.post_norms,
        "final_logit_soft_cap": c.final_logit_softcap,
        "attention_logit_soft_cap": c.attn_logit_softcap,
        "sliding_window_size": c.sliding_window or 4096,
        "use_sliding_window_attention": c.sliding_window is not None,
    }
    more = {"use_query_key_norm": True, "global_rope_scaling_factor": c.rope_scaling_factor, "image_size": None}
    return said | more | {"vision_encoder": None} if third else said


def config_json(c: Config) -> dict[str, Any]:
    kind = "Gemma3Backbone" if c.family == "gemma3" else "GemmaBackbone"
    return {"module": "keras_hub", "class_name": kind, "config": preset(c), "registered_name": f"keras_hub>{kind}"}


def layout(source: TinySource) -> Arrays:
    """The arrays by their places in the file."""
    c, found = source.config, {}

    def get(name: str) -> npt.NDArray[Any]:
        return source.lookup(name).dequantize()

    for i in range(c.num_layers):
        block = ("gemma3" if c.qk_norm else "gemma") + "_decoder_block" + (f"_{i}" if i else "")
        arrays = {"pre_attention_norm": get(f"layers.{i}.attn_norm"), "pre_ffw_norm": get(f"layers.{i}.ffn_norm")}
        for ours, theirs, heads in (
            ("q", "query", c.num_heads),
            ("k", "key", c.num_kv_heads),
            ("v", "value", c.num_kv_heads),
        ):
            split = get(f"layers.{i}.{ours}").reshape(heads, c.head_dim, c.hidden_size)
            arrays[f"attention/{theirs}_dense"] = split.swapaxes(1, 2)
        output = get(f"layers.{i}.o").reshape(c.hidden_size, c.num_heads, c.head_dim)
        arrays["attention/output_dense"] = output.transpose(1, 2, 0)
        for ours, theirs in (("gate", "gating_ffw"), ("up", "gating_ffw_2"), ("down", "ffw_linear")):
            arrays[theirs] = get(f"layers.{i}.{ours}").T
        if c.post_norms:
            arrays["post_attention_norm"] = get(f"layers.{i}.post_attn_norm")
            arrays["post_ffw_norm"] = get(f"layers.{i}.post_ffn_norm")
        if c.qk_norm:
            arrays["attention/query_norm"] = get(f"layers.{i}.q_norm")
            arrays["attention/key_norm"] = get(f"layers.{i}.k_norm")
        found |= {f"layers/{block}/{name}/vars/0": array for name, array in arrays.items()}
    found["layers/reversible_embedding/vars/0"] = get("embed")
    found["layers/rms_normalization/vars/0"] = get("final_norm")
    return found


def tiny(name: str) -> TinySource:
    config = config_like(name)
    return TinySource(config, random_leaves(config))


@pytest.mark.parametrize("name", ["gemma", "gemma-mha", "gemma2", "gemma2-head-scale", "gemma3", "gemma3-mqa"])
def test_the_layout(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    notices: list[str] = []
    config, block = read_config(config_json(source.config), notices)
    assert config == source.config
    assert "does not say its context" in notices[0]
    stored = {place: Stored(a.shape, a.dtype.name, a.__getitem__) for place, a in layout(source).items()}
    same_leaves(open_stored(tmp_path, "tiny", config, block, stored, notices), source)
    with pytest.raises(GemmaryError, match=r"lacks 'layers/rms_normalization/vars/0'"):
        open_stored(tmp_path, None, config, block, {k: v for k, v in stored.items() if "/rms_norm" not in k}, [])
    short = Stored((5, source.config.hidden_size), "float32", stored["layers/rms_normalization/vars/0"].read)
    with pytest.raises(GemmaryError, match=r"'layers/reversible_embedding/vars/0' has shape \(5, "):
        open_stored(tmp_path, None, config, block, {**stored, "layers/reversible_embedding/vars/0": short}, [])
    with pytest.raises(GemmaryError, match=r"holds 'vars/0', which this model does not have"):
        open_stored(tmp_path, None, config, block, {**stored, "vars/0": next(iter(stored.values()))}, [])


def test_released_presets_have_their_context_and_scales() -> None:
    from gemmary.zoo import GEMMA2_27B, GEMMA3_1B, GEMMA_7B

    for config in (GEMMA2_27B, GEMMA3_1B, GEMMA_7B):
        notices: list[str] = []
        assert read_config(config_json(config), notices)[0] == config
        assert notices == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_name": "PaliGemmaBackbone"}, "of KerasHub's only GemmaBackbone and Gemma3Backbone can be read"),
        ({"use_post_ffw_norm": False}, "norms are those of no Gemma"),
        ({"is_embedding_model": True}, "of an embedding model"),
        ({"num_layers": "many"}, "num_layers is 'many'"),
        ({"local_rope_scaling_factor": 2.0}, "RoPE scaling of the local layers"),
    ],
)
def test_other_presets_are_refused(change: dict[str, Any], words: str) -> None:
    data = config_json(config_like("gemma3"))
    data["config"].update(change)
    data["class_name"] = change.get("class_name", data["class_name"])
    with pytest.raises(GemmaryError) as caught:
        read_config(data, [])
    assert words in str(caught.value)


# On disk ----------------------------------------------------------------------------------------------------------


def write(folder: Path, source: TinySource, arrays: Arrays | None = None) -> Path:
    """A preset written by h5py alone."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (gemmary[keras])")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(source.config)))
    with h5py.File(folder / "model.weights.h5", "w") as file:
        for place, array in (layout(source) if arrays is None else arrays).items():
            file[place] = array
    return folder


def test_a_preset_on_disk(tmp_path: Path) -> None:
    from tests.tokenizer.small import build

    source = tiny("gemma")
    folder = write(tmp_path / "m", source)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "keras_hub"
    assert checkpoint.stored_bytes() == (folder / "model.weights.h5").stat().st_size
    assert checkpoint.formats()["embed"] == "F32"
    same_leaves(checkpoint, source)
    with pytest.raises(GemmaryError, match=r"has no tokenizer: it lacks assets/tokenizer/vocabulary.spm"):
        open_checkpoint(folder).tokenizer  # noqa: B018
    build().save(tmp_path)
    (folder / "assets/tokenizer").mkdir(parents=True)
    (tmp_path / "tokenizer.model").rename(folder / "assets/tokenizer/vocabulary.spm")
    assert open_checkpoint(folder).tokenizer.encode("abc") == build().encode("abc")


def test_what_lies_outside_of_the_file_is_not_read(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (gemmary[keras])")
    source = tiny("gemma")
    folder = write(tmp_path / "m", source)
    file = folder / "model.weights.h5"
    other = write(tmp_path / "other", source) / "model.weights.h5"
    place = "layers/rms_normalization/vars/0"

    def reopened(words: str, folder: Path = folder) -> None:
        with pytest.raises(GemmaryError, match=words) as caught:
            open_checkpoint(folder)
        assert "\n" not in str(caught.value)

    with h5py.File(file, "a") as opened:
        del opened[place]
        opened[place] = h5py.ExternalLink(str(other), place)
    reopened(r"'layers/rms_normalization/vars/0' is a link")
    with h5py.File(file, "a") as opened:
        del opened[place]
        opened.create_dataset(place, (35,), "f4", external=[(str(other), 0, 140)])
    reopened("lies outside of the file")
    with h5py.File(file, "a") as opened:
        del opened[place]
        opened[place] = np.zeros(35, np.int32)
    reopened("is 'int32'; weights are read as")
    other.write_bytes(other.read_bytes()[:1000])
    reopened("is not a sound HDF5 file", other.parent)


def test_indexes_that_lie_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", tiny("gemma"))
    for file, words in (("../x.h5", "is no shard of this folder"), ("model_00000.weights.h5", "lacks the shard")):
        (folder / "model.weights.json").write_text(json.dumps({"weight_map": {"/layers/x/vars": file}}))
        with pytest.raises(GemmaryError, match=words):
            open_checkpoint(folder)


def test_without_the_library_it_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_json(config_like("gemma"))))
    (tmp_path / "model.weights.h5").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(GemmaryError, match=r'need h5py: pip install "gemmary\[keras\]"'):
        open_checkpoint(tmp_path)


# Keras on the other side --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of Keras's own
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_keras_hub_saves_what_we_read_with_its_logits(name: str, tmp_path: Path) -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras_hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed")
    config = config_like(name)
    config = replace(config, query_pre_attn_scalar=config.head_dim)  # Keras (0.32) computes with no other
    source = TinySource(config, random_leaves(config))
    kind = keras_hub.models.Gemma3Backbone if name == "gemma3" else keras_hub.models.GemmaBackbone
    model = kind(**preset(source.config), dtype="float32")
    arrays = layout(source)
    for weight in model.weights:
        at = weight.path
        place = next(p for p in arrays if _same_place(at, p))
        weight.assign(arrays[place])
    model.save_to_preset(tmp_path / "one")
    model.save_to_preset(tmp_path / "many", max_shard_size=60e3 / 1e9)
    assert len(list((tmp_path / "many").glob("model_*.weights.h5"))) > 1
    ids = random_tokens(source.config, 13)
    hidden = model({"token_ids": np.array([ids]), "padding_mask": np.ones((1, 13), np.int32)})
    theirs = model.token_embedding(hidden, reverse=True)[0].detach().cpu().numpy()
    for folder in ("one", "many"):
        checkpoint = open_checkpoint(tmp_path / folder)
        assert checkpoint.config == source.config
        same_leaves(checkpoint, source)
    exact = replace(source.config, exact_embedding_scale=True)  # as Keras computes in float32
    assert relative_error(theirs, logits(exact, checkpoint.lookup, ids)) <= 2e-5


def _same_place(path: str, place: str) -> bool:
    """Whether a weight of the model (`decoder_block_1/attention/query/kernel`) is the one at a place in the file."""
    theirs = path.rpartition("/")[0]
    names = {"token_embedding": "reversible_embedding", "final_normalization": "rms_normalization"}
    if theirs in names:
        return place == f"layers/{names[theirs]}/vars/0"
    block, _, rest = theirs.partition("/")
    number = block.removeprefix("decoder_block_")
    parts = {"query": "query_dense", "key": "key_dense", "value": "value_dense", "attention_output": "output_dense"}
    parts |= {"ffw_gating": "gating_ffw", "ffw_gating_2": "gating_ffw_2"}
    rest = "/".join(parts.get(part, part) for part in rest.split("/"))
    return place.endswith(f"_decoder_block{'' if number == '0' else '_' + number}/{rest}/vars/0")
