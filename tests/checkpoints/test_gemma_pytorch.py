"""gemma_pytorch's `.ckpt`: read only where that is allowed, in a process of its own, to the same leaves and logits."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import Checkpoint, gemma_pytorch, open_checkpoint, save_checkpoint, unpickle
from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.quantize.leaves import Affine
from tests.checkpoints.sources import TinySource, logits, same_leaves, tiny
from tests.tiny import TINY, random_tokens

torch = pytest.importorskip("torch", reason="torch is not installed")

State = dict[str, Any]


def state_of(source: Any, dtype: Any = None) -> State:
    """The parameters and buffers that gemma_pytorch's modules have."""
    c: Config = source.config

    def get(name: str) -> Any:
        found = torch.from_numpy(np.array(source.lookup(name).dequantize()))
        return found if dtype is None else found.to(dtype)

    state: State = {("text_token_embedder" if c.vision else "embedder") + ".weight": get("embed")}
    state["freqs_cis"] = torch.polar(torch.ones(8, c.head_dim // 2), torch.ones(8, c.head_dim // 2))
    state["model.norm.weight"] = get("final_norm")
    for i in range(c.num_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        names = {"input_layernorm": "attn_norm", "self_attn.o_proj": "o", "mlp.down_proj": "down"}
        names |= {"mlp.gate_proj": "gate", "mlp.up_proj": "up"}
        if c.post_norms:
            names |= {"post_attention_layernorm": "post_attn_norm", "post_feedforward_layernorm": "post_ffn_norm"}
        names["pre_feedforward_layernorm" if c.post_norms else "post_attention_layernorm"] = "ffn_norm"
        names |= {"self_attn.query_norm": "q_norm", "self_attn.key_norm": "k_norm"} if c.qk_norm else {}
        state |= {f"{theirs}{name}.weight": get(ours + mine) for name, mine in names.items()}
        state[theirs + "self_attn.qkv_proj.weight"] = torch.cat([get(ours + n) for n in "qkv"])
    return state


def write(folder: Path, source: Any, state: State | None = None, *, described: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    if described:
        (folder / "config.json").write_text(json.dumps(write_config(source.config, "float32", [1])))
    torch.save({"model_state_dict": state_of(source) if state is None else state}, folder / "gemma.ckpt")
    return folder / "gemma.ckpt"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads pickles in this process, which has torch already: it takes a child seconds to begin."""
    read = lambda path: json.dumps(unpickle.places(str(path))).encode()  # noqa: E731
    monkeypatch.setattr(gemma_pytorch, "said_of", read)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_it_has_the_logits_of_the_hugging_face_folder(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    path = write(tmp_path / "theirs", source)
    save_checkpoint(source, tmp_path / "hf")
    ours, theirs = open_checkpoint(path, pickles=True), open_checkpoint(tmp_path / "hf")
    assert ours.config == theirs.config
    assert ours.format == "gemma_pytorch"
    same_leaves(ours, source)
    tokens = random_tokens(source.config, 9)
    assert np.array_equal(logits(ours.config, ours.lookup, tokens), logits(theirs.config, theirs.lookup, tokens))


@pytest.mark.usefixtures("here")
def test_a_model_that_sees_in_bfloat16(tmp_path: Path) -> None:
    vision = VisionConfig(12, num_layers=2, hidden_size=24, num_heads=3, intermediate_size=36, patch_size=3, pool=2,
                          soft_norm=True)  # fmt: skip
    source: Checkpoint = random_checkpoint(replace(TINY["gemma3"], vision=vision), "random:tiny", None, 0)
    state = state_of(source, torch.bfloat16)
    tower = "siglip_vision_model."
    places = {"patch": "patch_embedding", "position": "position_embedding", "final_norm": "final_norm"}
    for i in range(2):
        block = {"attn_norm": "layer_norm1", "ffn_norm": "layer_norm2", "up": "mlp.fc1", "down": "mlp.fc2"}
        block |= {n: f"self_attn.{n}_proj" for n in "qkvo"}
        places |= {f"layers.{i}.{ours}": f"encoder_blocks.{i}.{theirs}" for ours, theirs in block.items()}
    for ours, theirs in places.items():
        leaf = source.lookup("vision." + ours)
        weight = torch.from_numpy(np.array(leaf.dequantize())).bfloat16()
        state[f"{tower}{theirs}.weight"] = weight.reshape(24, 3, 3, 3) if ours == "patch" else weight
        if isinstance(leaf, Affine):
            state[f"{tower}{theirs}.bias"] = torch.from_numpy(np.array(leaf.bias)).bfloat16()
    for ours, theirs in (("soft_norm", "mm_soft_embedding_norm"), ("projector", "mm_input_projection")):
        state[theirs + ".weight"] = torch.from_numpy(np.array(source.lookup("vision." + ours).dequantize())).bfloat16()
    read = open_checkpoint(write(tmp_path / "m", source, state), pickles=True)
    assert read.config == source.config
    assert read.lookup("layers.0.k").format == "BF16"
    for name in source.names():
        mine, theirs_ = read.lookup(name), source.lookup(name)
        assert np.array_equal(mine.dequantize(), theirs_.dequantize().astype("bfloat16").astype(np.float32)), name
        assert isinstance(mine, Affine) == isinstance(theirs_, Affine)


def test_kaggles_folder_is_the_file_in_it(tmp_path: Path) -> None:
    from tests.tokenizer.small import build

    path = write(tmp_path / "2b", tiny("gemma"))
    build().save(path.parent)
    checkpoint = open_checkpoint(path.parent, pickles=True)
    same_leaves(checkpoint, tiny("gemma"))
    assert checkpoint.tokenizer.encode("abc") == build().encode("abc")


def test_it_is_read_only_where_that_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "m", tiny("gemma"))
    for given in (path, path.parent):
        with pytest.raises(GemmaryError, match=r"is a pickle.*gemmary convert .*gemma\.ckpt DST --allow-pickle"):
            open_checkpoint(given)


class _Program:
    """What a hostile pickle does when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def test_a_program_in_the_pickle_is_not_run(tmp_path: Path) -> None:
    path = tmp_path / "m.ckpt"
    torch.save({"model_state_dict": {"x": _Program(tmp_path / "harm")}}, path)
    with pytest.raises(GemmaryError, match=r"is not a sound .ckpt file: .*Unsupported") as caught:
        open_checkpoint(path, pickles=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.usefixtures("here")
def test_unsound_files_are_refused(tmp_path: Path) -> None:
    source = tiny("gemma")
    path = tmp_path / "gemma.ckpt"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(GemmaryError, match=r"is not a sound .ckpt file: File is not a zip"):
        open_checkpoint(path, pickles=True)
    torch.save([torch.zeros(3)], path)
    with pytest.raises(GemmaryError, match="it has no model_state_dict"):
        open_checkpoint(path, pickles=True)
    write(tmp_path, source)
    with zipfile.ZipFile(path) as good, zipfile.ZipFile(tmp_path / "packed", "w", zipfile.ZIP_DEFLATED) as packed:
        for item in good.namelist():
            packed.writestr(item, good.read(item))
    (tmp_path / "packed").rename(path)
    with pytest.raises(GemmaryError, match="is compressed"):
        open_checkpoint(path, pickles=True)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["int8", "missing", "more", "shape"])
def test_other_models_are_refused(kind: str, tmp_path: Path) -> None:
    source: TinySource = tiny("gemma")
    state = state_of(source)
    gate = "model.layers.0.mlp.gate_proj.weight"
    words = {
        "int8": "holds int8 weights",
        "missing": "lacks 'model.layers.0.mlp.up_proj.weight'",
        "more": "holds 'model.more', which this model does not have",
        "shape": "'model.layers.1.mlp.gate_proj.weight' has shape (54, 35)",
    }[kind]
    if kind == "int8":
        state |= {gate: state[gate].to(torch.int8), gate + "_scaler": torch.ones(53)}
    elif kind == "missing":
        del state["model.layers.0.mlp.up_proj.weight"]
    elif kind == "more":
        state["model.more"] = torch.zeros(3)
    else:
        state["model.layers.1.mlp.gate_proj.weight"] = torch.zeros(54, 35)
    with pytest.raises(GemmaryError) as caught:
        open_checkpoint(write(tmp_path / "m", source, state), pickles=True)
    assert words in str(caught.value)


def test_the_names_are_those_of_the_table() -> None:
    """Every tensor of the table has a name in the file, and none twice but the joined matrix."""
    for config in (TINY["gemma"], TINY["gemma2"], TINY["gemma3"]):
        names = [gemma_pytorch._name(tensor, config) for tensor in tensors(config)]
        assert len(set(names)) == len(names) - 2 * config.num_layers
