"""compressed-tensors' folders: transformers computes from ours what we do, and its integers become ours unchanged."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.calibrate.quantize import quantize
from gemmary.checkpoints import Checkpoint, open_checkpoint, save_checkpoint
from gemmary.checkpoints.compressed import is_packed
from gemmary.checkpoints.safetensors import SafetensorsFile
from gemmary.checkpoints.tensors import tensors
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Leaf, quantized
from tests.calibrate.test_quantize import TEXT, seer
from tests.checkpoints.sources import logits
from tests.cli.small_models import write_small
from tests.runs import Array, relative_error
from tests.tiny import random_tokens

FORMATS = {"int4": "Q4_0", "int8": "Q8_0"}
METHOD = "compressed-tensors"
BOUND = 2e-5
"""Of float32 sums in another order: the weights are the same numbers."""


def written(folder: Path, kind: str, to: str = "int4") -> Checkpoint:
    save_checkpoint(open_checkpoint(write_small(folder / "source", kind)), folder / "out", format=METHOD, dtype=to)
    return open_checkpoint(folder / "out")


def bits(leaf: Any) -> Array:
    found: Array = leaf.stored(0, leaf.shape[0])
    return found


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", ["gemma-q32", "gemma2-q32", "gemma3-q32"])
def test_the_layers_are_our_blocks_and_all_else_is_as_it_was(tmp_path: Path, kind: str, to: str) -> None:
    made, source = written(tmp_path, kind, to), open_checkpoint(tmp_path / "source")
    assert made.names() == source.names()
    for tensor in tensors(source.config):
        ours, before = made.lookup(tensor.name), source.lookup(tensor.name)
        if tensor.is_norm or tensor.name == "embed":
            assert np.array_equal(ours.dequantize(), before.dequantize())
            continue
        expected = blocks.quantize(FORMATS[to], before.dequantize())
        assert ours.format == FORMATS[to]
        assert np.array_equal(bits(ours), expected.reshape(-1))
        assert np.array_equal(ours.dequantize(), blocks.dequantize(FORMATS[to], expected))
        some = np.array([[3, 0], [5, 3]])
        assert np.array_equal(ours.rows(some), ours.dequantize()[some])
    tokens = random_tokens(made.config, 9)
    native = open_engine("native", made.config, made.lookup, dtype="float32")
    (row,) = native.step(Batch.of(made.config, [Chunk(tokens)]), [native.new_cache(9)])
    assert relative_error(row, logits(made.config, made.lookup, tokens)[-1]) < BOUND


def by_layer(source: Checkpoint) -> Checkpoint:
    """All `down` and the second layer in int8, the rest of the layers in int4."""

    def leaf(name: str) -> Leaf:
        found = source.lookup(name)
        if len(found.shape) == 1 or not name.startswith("layers."):
            return found
        return quantized(found, "Q8_0" if name.endswith(".down") or name.startswith("layers.1.") else "Q4_0")

    return replace(source, leaves={name: partial(leaf, name) for name in source.leaves})


def test_a_mix_names_its_modules(tmp_path: Path) -> None:
    mixed = by_layer(open_checkpoint(write_small(tmp_path / "source", "gemma2-q32")))
    save_checkpoint(mixed, tmp_path / "out", format=METHOD)
    made = open_checkpoint(tmp_path / "out")
    for tensor in tensors(made.config):
        assert np.array_equal(made.lookup(tensor.name).dequantize(), mixed.lookup(tensor.name).dequantize())
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    count = made.config.num_layers
    names = [f"model.{t.hugging_face.removesuffix('.weight')}" for t in tensors(made.config) if is_packed(t)]
    chosen = {
        group["weights"]["num_bits"]: {
            name for name in names for target in group["targets"] if re.match(target.removeprefix("re:"), name)
        }
        for group in groups.values()
    }
    assert chosen[4] | chosen[8] == set(names)
    assert not chosen[4] & chosen[8]
    assert len(chosen[8]) == 7 + count - 1
    assert r"re:.*layers\.\d+\.mlp\.down_proj$" in groups["group_1"]["targets"]


@pytest.mark.parametrize(
    ("kind", "to", "method"),
    [
        ("gemma2-q32", "int4", "gptq"),
        ("gemma3-q32", "int4", "rtn"),
        ("gemma2-q32", "int8", "rtn"),
        ("gemma3-q32", "a mix by layer", "rtn"),
        ("gemma2-q32", "a mix by kind", "gptq"),
    ],
)
def test_transformers_computes_the_same(
    tmp_path: Path, kind: str, to: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    monkeypatch.setattr("gemmary.calibrate.quality.measure", lambda *given: "elsewhere")
    source = write_small(tmp_path / "source", kind)
    if to == "a mix by layer":
        save_checkpoint(by_layer(open_checkpoint(source)), tmp_path / "out", format=METHOD)
    else:
        options: dict[str, Any] = {"to": to} if to in FORMATS else {"bits": 6.0}
        text = TEXT if method == "gptq" else None
        quantize(source, tmp_path / "out", format=METHOD, method=method, text=text, **options)
    made = open_checkpoint(tmp_path / "out")
    assert len({f for name, f in made.formats().items() if name.startswith("layers.")} - {"F32"}) == 1 + ("mix" in to)
    tokens = random_tokens(made.config, 17)
    # transformers rounds the embedding scale to the dtype that it loads into, here float32; ours is bfloat16.
    ours = logits(replace(made.config, exact_embedding_scale=True), made.lookup, tokens)
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    with torch.no_grad():
        theirs = peer.eval()(torch.tensor([tokens])).logits[0].numpy()
    assert relative_error(theirs, ours) < BOUND
    before = open_checkpoint(source)
    plain = logits(replace(before.config, exact_embedding_scale=True), before.lookup, tokens)
    assert relative_error(theirs, plain) > 100 * BOUND


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 128), (8, None)])
def test_what_their_package_writes_is_read_as_it_is(tmp_path: Path, bits: int, group: int | None) -> None:
    """Groups of 128 and whole rows have scales in common, which our blocks repeat. All are bfloat16."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    source = open_checkpoint(write_small(tmp_path / "source", "gemma2-q256"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.bfloat16)
    weights = {"num_bits": bits, "strategy": "group" if group else "channel", "symmetric": True, "group_size": group}
    scheme = QuantizationConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}},
        format="pack-quantized",
        ignore=["lm_head"],
    )
    apply_quantization_config(model, scheme, show_progress=False)
    expected: dict[str, Any] = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight_scale"):
            weight = module.weight.data
            wide = weight.reshape(len(weight), -1, group or weight.shape[1])
            module.weight_scale.data = (wide.abs().amax(dim=-1) / (2 ** (bits - 1) - 0.5)).to(torch.bfloat16)
            least, most = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            scale = module.weight_scale.data[..., None]
            code = torch.clamp(torch.round(wide / scale), least, most).float()
            expected[name + ".weight"] = (code * scale.float()).reshape(weight.shape).numpy()
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="300KB")
    compressor.update_config(tmp_path / "theirs")
    made = open_checkpoint(tmp_path / "theirs")
    for tensor in tensors(source.config):
        if tensor.name.startswith("layers.") and not tensor.is_norm:
            leaf = made.lookup(tensor.name)
            assert leaf.format == {4: "Q4_0", 8: "Q8_0"}[bits]
            assert np.array_equal(leaf.dequantize(), expected["model." + tensor.hugging_face])


def test_a_tower_stays_as_it_was(tmp_path: Path) -> None:
    source = open_checkpoint(seer(tmp_path / "seer"))
    done = quantize(tmp_path / "seer", tmp_path / "out", format=METHOD)
    made = open_checkpoint(tmp_path / "out")
    assert made.config == source.config
    for name in ("vision.layers.1.down", "vision.projector", "embed"):
        assert np.array_equal(made.lookup(name).dequantize(), source.lookup(name).dequantize())
    assert made.lookup("layers.1.down").format == "Q4_0"
    assert (done.quality.formats["layers.down"], done.quality.formats["embed"]) == ("Q4_0", "F32")
    assert done.quality.bits_per_weight["embed"] == 32
    assert done.quality.measured is not None


def test_packed_folders_become_these_and_these_become_gguf(tmp_path: Path) -> None:
    write_small(tmp_path / "source", "gemma2-q32")
    quantize(tmp_path / "source", tmp_path / "packed", to="int8")
    source = open_checkpoint(tmp_path / "packed")
    assert save_checkpoint(source, tmp_path / "out", format=METHOD)[0].startswith("Q8_0 weights are written as float32")
    made = open_checkpoint(tmp_path / "out")
    save_checkpoint(made, tmp_path / "again.gguf", format="gguf", dtype="int8")
    again = open_checkpoint(tmp_path / "again.gguf")
    for name in ("layers.0.q", "layers.2.down"):
        assert np.array_equal(bits(source.lookup(name)), bits(made.lookup(name)))
        assert np.array_equal(bits(source.lookup(name)), bits(again.lookup(name)))
    with pytest.raises(GemmaryError, match="int8 or int4, not of F32"):
        save_checkpoint(open_checkpoint(tmp_path / "source"), tmp_path / "none", format=METHOD)
    with pytest.raises(GemmaryError, match="int8 or int4, not of BF16"):
        save_checkpoint(source, tmp_path / "none", format=METHOD, dtype="bfloat16")
    for options in ({"to": "Q5_0"}, {"embed": "int8"}):
        with pytest.raises(GemmaryError, match="the embedding table as it was"):
            quantize(tmp_path / "source", tmp_path / "none", format=METHOD, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "none").exists()


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = to

    return change


WEIGHTS = ("quantization_config", "config_groups", "group_0", "weights")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("quantization_config", to="gptq"), "quant_method is 'gptq', and compressed-tensors is read only"),
        (_set("quantization_config", "quant_method", to="gptq"), "quant_method is 'gptq'"),
        (_set("quantization_config", "config_groups", to=[]), "config_groups is no table of groups"),
        (
            _set("quantization_config", "config_groups", "group_0", "format", to="int-quantized"),
            "pack-quantized is read",
        ),
        (
            _set("quantization_config", "config_groups", "group_0", "input_activations", to={}),
            "activations are quantized",
        ),
        (_set("quantization_config", "kv_cache_scheme", to={}), "keys and values are quantized as well"),
        (_set(*WEIGHTS, "symmetric", to=False), "not integers around zero"),
        (_set(*WEIGHTS, "type", to="float"), "not integers around zero"),
        (_set(*WEIGHTS, "num_bits", to=3), "weights have 3 bits"),
        (_set("quantization_config", to=None), "lacks 'model.layers.0.self_attn.q_proj.weight'"),
        (_set("intermediate_size", to=192), "config.json means"),
    ],
)
def test_other_quantizations_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    made = written(tmp_path, "gemma2-q32")
    data = json.loads((made.path / "config.json").read_text())
    change(data)
    (made.path / "config.json").write_text(json.dumps(data))
    with pytest.raises(GemmaryError, match=words):
        open_checkpoint(made.path)


def test_damaged_parts_are_refused(tmp_path: Path) -> None:
    made = written(tmp_path, "gemma2-q32")
    path = made.path / "model.safetensors"
    whole = path.read_bytes()
    (tmp_path / "whole.safetensors").write_bytes(whole)
    name = "model.layers.1.mlp.down_proj.weight_"
    size = int.from_bytes(whole[:8], "little")

    def put(stored_name: str, name: str | None = None, **changes: Any) -> None:
        """The same file with other words in its header for one tensor."""
        header = json.loads(whole[8 : 8 + size])
        header[name or stored_name] = header.pop(stored_name) | changes
        text = json.dumps(header, separators=(",", ":")).encode()
        path.write_bytes(whole[:8] + text.ljust(size) + whole[8 + size :])

    for part, changes, words in [
        ("packed", {"dtype": "F32"}, r"is F32 .* of 4 or 8 bits"),
        ("scale", {"dtype": "I16"}, r"is I16 .* no scales of groups of 32 weights or more"),
        ("scale", {"shape": [480]}, r"is F16 \(480,\): no scales"),
        ("shape", {"dtype": "U64"}, "is not .*, which config.json means"),
        ("packed", {"name": "other"}, "lacks '.*weight_packed'"),
    ]:
        put(name + part, **changes)
        with pytest.raises(GemmaryError, match=words):
            open_checkpoint(made.path)
    begin = SafetensorsFile(made.path.parent / "whole.safetensors").entries[name + "shape"].begin
    path.write_bytes(whole[:begin] + b"\x01" + whole[begin + 1 :])
    with pytest.raises(GemmaryError, match="weight_shape' is not"):
        open_checkpoint(made.path)
    put(name + "scale", dtype="BF16")  # the same bytes are other numbers then
    with pytest.raises(GemmaryError, match=r"weight_scale' holds scales that float16, and so our blocks, cannot"):
        open_checkpoint(made.path).lookup("layers.1.down").dequantize()
