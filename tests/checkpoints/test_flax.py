"""The trees of DeepMind's Gemma, in memory: every layout becomes the same leaves, and what is no Gemma is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.config_json import write_config
from gemmary.checkpoints.flax import read_tree
from gemmary.checkpoints.stored import Stored, leaves_of
from gemmary.errors import GemmaryError
from tests.checkpoints import flax_trees
from tests.checkpoints.flax_trees import Tree, paths
from tests.checkpoints.sources import same_leaves, tiny

FAMILIES = ["gemma", "gemma-mha", "gemma2", "gemma2-head-scale", "gemma3", "gemma3-mqa"]
LAYOUTS: dict[str, Callable[[Tree], Tree]] = {
    "nested": lambda tree: tree,
    "below params": lambda tree: {"params": tree, "step": np.zeros((), np.int32), "opt_state": {"0": {"mu": tree}}},
    "transformer": lambda tree: {"transformer": tree},
    "flat": flax_trees.flat,
    "stacked": lambda tree: flax_trees.stacked(tree, 3),
    "of a policy": lambda tree: {"rlx_networks": {"policy_network": tree}},
}


def in_memory(arrays: dict[str, npt.NDArray[Any]], dot: str = ".") -> dict[str, Stored]:
    """As a store lists them: the last part of the path behind a dot, as Orbax does with flat trees."""
    return {
        dot.join(name.rsplit("/", 1)): Stored(array.shape, array.dtype.name, array.__getitem__)
        for name, array in arrays.items()
    }


def read(folder: Path, arrays: dict[str, npt.NDArray[Any]], like: str) -> Checkpoint:
    """A checkpoint of arrays in memory, with the config.json of a tiny model beside it."""
    source = tiny(like)
    (folder / "config.json").write_text(json.dumps(write_config(source.config, "float32", [1])))
    config, made = read_tree(folder, folder, in_memory(arrays), [])
    assert config == source.config
    leaves = leaves_of(folder, config, made)
    return Checkpoint(folder, "orbax", config, "tiny", leaves, lambda: None, lambda: None)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_is_the_same_model(name: str, layout: str, tmp_path: Path) -> None:
    source = tiny(name)
    tree = flax_trees.nested(source.config, source.lookup, transposed=name.startswith("gemma3"))
    same_leaves(read(tmp_path, paths(LAYOUTS[layout](tree)), name), source)


def test_either_gating_is_told_by_its_shape(tmp_path: Path) -> None:
    source = tiny("gemma2")
    for transposed in (False, True):
        tree = flax_trees.nested(source.config, source.lookup, transposed=transposed)
        same_leaves(read(tmp_path, paths(tree), "gemma2"), source)


def test_rows_that_pad_the_table_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny("gemma")
    rows = source.config.vocab_size
    monkeypatch.setattr("gemmary.checkpoints.sizes.PADDED_ROWS", {rows + 3: rows})
    same_leaves(read(tmp_path, paths(flax_trees.nested(source.config, source.lookup, padding=3)), "gemma"), source)


def test_what_a_config_json_does_not_say_is_a_released_models(tmp_path: Path) -> None:
    from gemmary.zoo import GEMMA2_27B

    empty = lambda index: np.zeros(0)  # noqa: E731
    c = GEMMA2_27B
    shapes = {
        "attn/q_einsum/w": (c.num_heads, c.hidden_size, c.head_dim),
        "attn/kv_einsum/w": (2, c.num_kv_heads, c.hidden_size, c.head_dim),
        "attn/attn_vec_einsum/w": (c.num_heads, c.head_dim, c.hidden_size),
        "mlp/gating_einsum/w": (2, c.intermediate_size, c.hidden_size),
        "mlp/linear/w": (c.intermediate_size, c.hidden_size),
        **{f"{norm}/scale": (c.hidden_size,) for norm in ("pre_attention_norm", "post_attention_norm")},
        **{f"{norm}/scale": (c.hidden_size,) for norm in ("pre_ffw_norm", "post_ffw_norm")},
    }
    tree = {f"transformer/layer_{i}/{key}": shape for i in range(c.num_layers) for key, shape in shapes.items()}
    tree |= {
        "transformer/embedder/input_embedding": (256_128, c.hidden_size),
        "transformer/final_norm/scale": (c.hidden_size,),
    }
    stored = {name: Stored(shape, "bfloat16", empty) for name, shape in tree.items()}
    notices: list[str] = []
    config, made = read_tree(tmp_path, tmp_path, stored, notices)
    assert config == c
    assert "is that of gemma-2-27b" in notices[0]
    assert len(leaves_of(tmp_path, config, made)) == 2 + 46 * 11
    odd = {name: Stored((*s.shape[:-1], 7), s.dtype, s.read) if "/linear" in name else s for name, s in stored.items()}
    with pytest.raises(GemmaryError, match=r"'layer_0/mlp/linear' has shape \(36864, 7\)"):
        leaves_of(tmp_path, *read_tree(tmp_path, tmp_path, odd, []))


Arrays = dict[str, npt.NDArray[Any]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if "embedding" not in k}, "has no embedder/input_embedding"),
        (lambda a: a | {"params/embedder/input_embedding": a["embedder/input_embedding"]}, "has two embedder"),
        (lambda a: {k: v for k, v in a.items() if k != "layer_2/mlp/linear"}, "lacks 'layer_2/mlp/linear'"),
        (lambda a: {k: v for k, v in a.items() if "layer_1/" not in k}, "not numbered from 0"),
        (lambda a: a | {"layer_0/more/w": np.zeros(3, np.float32)}, "holds 'layer_0/more/w', which this model"),
        (lambda a: a | {"final_norm/scale": np.zeros(3, np.float32)}, "'final_norm/scale' has shape (3,)"),
        (lambda a: a | {"final_norm/scale": np.zeros(42, np.int8)}, "'final_norm/scale' is 'int8'"),
        (lambda a: a | {"layer_0/attn/q_einsum/w": np.zeros((6, 42), np.float32)}, "another number of axes"),
        (lambda a: a | {"layer_0/mlp/linear/w": a["layer_0/mlp/linear"]}, "holds 'layer_0/mlp/linear' twice"),
        (lambda a: {k: v for k, v in a.items() if "post_attention_norm" not in k}, "lacks 'layer_0/post_attention"),
        (lambda a: a | {"layer_1/mlp/gating_einsum": np.zeros((1, 42, 59), np.float32)}, "not 2 matrices"),
        (lambda a: a | {"layer_0/mlp/linear": np.zeros((42, 42), np.float32)}, "which way gating_einsum lies"),
        (lambda a: a | {"layer_0/mlp/linear": np.zeros((60, 42), np.float32)}, "but"),
        (lambda a: a | {"stacked_layers/attention_type_0/x/w": np.zeros((2000, 1), np.float32)}, "is not of layers"),
    ],
)
def test_other_trees_are_refused(change: Callable[[Arrays], Arrays], words: str, tmp_path: Path) -> None:
    source = tiny("gemma2")
    arrays = change(paths(flax_trees.nested(source.config, source.lookup)))
    with pytest.raises(GemmaryError) as caught:
        read(tmp_path, arrays, "gemma2")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    source = tiny("gemma2")
    with pytest.raises(GemmaryError, match=r"no released gemma2 has these sizes \(num_layers 4, hidden_size 42"):
        read_tree(tmp_path, tmp_path, in_memory(paths(flax_trees.nested(source.config, source.lookup))), [])
