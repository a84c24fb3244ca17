"""Hugging Face folders against transformers: it loads what we write, we read what it saves, the logits are the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.tensors import tensors
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.quantize.blocks import quantize
from gemmary.quantize.leaves import Blocks, Leaf
from tests.checkpoints.sources import TinySource, files_of, logits, rounded, same_leaves, tiny
from tests.runs import relative_error
from tests.tiny import random_tokens

torch = pytest.importorskip("torch", reason="torch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
safetensors_numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

DECODERS = ["gemma", "gemma-mha", "gemma2", "gemma2-head-scale", "gemma3", "gemma3-mqa"]
BOUND = 2e-5


def their_logits(folder: Path, tokens: list[int]) -> npt.NDArray[np.float32]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


def our_logits(source: Any, tokens: list[int]) -> npt.NDArray[np.float32]:
    # transformers rounds the embedding scale to the dtype that it loads into, here float32; ours is bfloat16.
    return logits(replace(source.config, exact_embedding_scale=True), source.lookup, tokens)


def embeddings(source: Any, tokens: list[int]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """(final hidden states [T, D], sentence embedding) of the reference engine."""
    config = replace(source.config, exact_embedding_scale=True)
    engine = open_engine("reference", config, source.lookup)
    taps: dict[str, npt.NDArray[np.float32]] = {}
    vectors = engine.embed(Batch.of(config, [Chunk(tokens, outputs="none")]), taps)
    return taps["hidden"], vectors[0]


@pytest.mark.parametrize("name", DECODERS)
def test_transformers_loads_what_we_write(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    assert save_checkpoint(source, tmp_path / "m") == ["the folder carries no tokenizer"]
    tokens = random_tokens(source.config, 17)
    assert relative_error(their_logits(tmp_path / "m", tokens), our_logits(source, tokens)) <= BOUND
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config == source.config
    assert checkpoint.notices == []
    same_leaves(checkpoint, source)


@pytest.mark.parametrize("name", DECODERS)
def test_we_read_what_transformers_saves(name: str, tmp_path: Path) -> None:
    source = tiny(name)
    save_checkpoint(source, tmp_path / "ours")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.config == source.config
    same_leaves(checkpoint, source)


@pytest.mark.parametrize("dense", ["embeddinggemma", "embeddinggemma-q32"])
def test_embedding_model_in_both_directions(dense: str, tmp_path: Path) -> None:
    source = tiny(dense)
    save_checkpoint(source, tmp_path / "ours")
    tokens = random_tokens(source.config, 19)
    hidden, vector = embeddings(source, tokens)
    model = transformers.AutoModel.from_pretrained(tmp_path / "ours", dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([tokens])).last_hidden_state[0].numpy()
    assert relative_error(theirs, hidden) <= BOUND

    checkpoint = open_checkpoint(tmp_path / "ours")
    assert checkpoint.config == source.config
    same_leaves(checkpoint, source)
    x = hidden.mean(axis=0)
    for i in (2, 3):
        x = safetensors_numpy.load_file(tmp_path / "ours" / f"{i}_Dense" / "model.safetensors")["linear.weight"] @ x
    assert relative_error(x / np.linalg.norm(x), vector) <= BOUND
    modules = json.loads((tmp_path / "ours" / "modules.json").read_text())
    assert [m["path"] for m in modules] == ["", "1_Pooling", "2_Dense", "3_Dense", "4_Normalize"]

    model.save_pretrained(tmp_path / "theirs")  # the encoder alone
    checkpoint = open_checkpoint(tmp_path / "theirs")
    assert checkpoint.config.pooled_dense == ()
    assert checkpoint.config.sliding_window == source.config.sliding_window
    assert "2_Dense" in checkpoint.notices[0]
    assert np.array_equal(checkpoint.lookup("layers.3.q").dequantize(), source.lookup("layers.3.q").dequantize())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_are_read_exactly(dtype: str, tmp_path: Path) -> None:
    source = rounded(tiny("gemma2"), {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16}[dtype])
    save_checkpoint(source, tmp_path / "m")
    stored = json.loads((tmp_path / "m" / "config.json").read_text())
    assert stored["torch_dtype"] == dtype
    checkpoint = open_checkpoint(tmp_path / "m")
    same_leaves(checkpoint, source)
    assert [n for n in checkpoint.notices if "float16" in n] == checkpoint.notices
    assert bool(checkpoint.notices) == (dtype == "float16")
    tokens = random_tokens(source.config, 13)
    assert relative_error(their_logits(tmp_path / "m", tokens), our_logits(source, tokens)) <= BOUND


def test_a_cast_rounds_to_nearest_even(tmp_path: Path) -> None:
    source = tiny("gemma3")
    save_checkpoint(source, tmp_path / "m", dtype="bfloat16")
    same_leaves(open_checkpoint(tmp_path / "m"), rounded(source, ml_dtypes.bfloat16))


def test_shards_and_checksums(tmp_path: Path) -> None:
    source = tiny("gemma3")
    save_checkpoint(source, tmp_path / "m", shard_bytes=30_000)
    names = files_of(tmp_path / "m")
    shards = [n for n in names if n.startswith("model-0")]
    assert len(shards) > 3
    assert "model.safetensors" not in names
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_parameters"] == source.config.parameters
    for shard in shards:  # the library reads each, and the index says which tensors are in it
        held = set(safetensors_numpy.load_file(tmp_path / "m" / shard))
        assert held == {n for n, place in index["weight_map"].items() if place == shard}
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "m" / "SHA256SUMS").read_text().splitlines())
    assert sums == {
        n: hashlib.sha256((tmp_path / "m" / n).read_bytes()).hexdigest() for n in names if n != "SHA256SUMS"
    }
    same_leaves(open_checkpoint(tmp_path / "m"), source)
    tokens = random_tokens(source.config, 9)
    assert relative_error(their_logits(tmp_path / "m", tokens), our_logits(source, tokens)) <= BOUND


def test_quantized_weights_are_written_dequantized_and_told(tmp_path: Path) -> None:
    source = tiny("gemma3-q32")
    norms = {t.name for t in tensors(source.config) if t.is_norm}

    def lookup(name: str) -> Leaf:
        leaf = source.lookup(name)
        if name in norms:
            return leaf
        return Blocks("Q4_0", (leaf.shape[0], leaf.shape[1]), quantize("Q4_0", leaf.dequantize()))

    quantized = TinySource(source.config, lookup)
    notices = save_checkpoint(quantized, tmp_path / "m")
    assert any("Q4_0 weights are written as float32" in n for n in notices)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert np.array_equal(checkpoint.lookup("layers.2.down").dequantize(), lookup("layers.2.down").dequantize())
    with pytest.raises(GemmaryError, match="not Q8_0"):
        save_checkpoint(quantized, tmp_path / "n", dtype="int8")


# The tokenizer, the template and the ends of a text ---------------------------------------------------------------


def test_tokenizer_template_and_ends(shared: Path, tmp_path: Path) -> None:
    from gemmary.tokenizer import Tokenizer

    source = tiny("gemma2")
    source.tokenizer = Tokenizer.from_folder(shared / "tokenizers" / "gemma2")
    save_checkpoint(source, tmp_path / "base")
    assert open_checkpoint(tmp_path / "base").chat_template is None
    assert json.loads((tmp_path / "base" / "generation_config.json").read_text())["eos_token_id"] == 1

    source.chat_template = "{{ bos_token }}…"
    assert save_checkpoint(source, tmp_path / "it") == []
    assert json.loads((tmp_path / "it" / "generation_config.json").read_text())["eos_token_id"] == [1, 107]
    checkpoint = open_checkpoint(tmp_path / "it")
    assert checkpoint.chat_template == "{{ bos_token }}…"
    assert checkpoint.tokenizer.encode("hello world") == [17534, 2134]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "it")
    assert theirs.encode("hello world") == [2, 17534, 2134]
    assert theirs.chat_template == "{{ bos_token }}…"
    assert theirs.eos_token_id == 1


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("plain", "plain"),
        ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d"),
        ([{"name": []}, 3], None),
        (7, None),
    ],
)
def test_a_template_inside_tokenizer_config(stored: Any, found: str | None, tmp_path: Path) -> None:
    save_checkpoint(tiny("gemma"), tmp_path / "m")
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert open_checkpoint(tmp_path / "m").chat_template == found
