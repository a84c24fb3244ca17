"""DeepMind's Gemma as Flax holds it: the names of its arrays, in every layout that was released, and what each becomes.

    transformer/layer_3/attn/q_einsum, w          flat: what the releases have, one key for a whole path
    transformer, layer_3, attn, q_einsum, w       nested: what Flax makes; `params` before it in a trainer's checkpoint
    transformer/stacked_layers/attention_type_k/… stacked: layers k, k + n, k + 2 n, … of n kinds on the first axis

Here a path is one name with slashes, from the transformer on. Norm weights are zero-centred, as ours. The released
Gemma 1 and 2 pad the embedding table to 256,128 rows. (Specification 4.4; the layouts are those that
google-deepmind/gemma reads in `gm/ckpts`.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from gemmary.checkpoints.einsums import Array, Entry, as_entry, tower_entries
from gemmary.checkpoints.fields import show
from gemmary.checkpoints.sizes import config_of
from gemmary.checkpoints.stored import Made, Stored, check_names
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config, Family
from gemmary.errors import GemmaryError

_TABLE_NAME = "embedder/input_embedding"
_ROOTS = ("", "params/", "rlx_networks/policy_network/")
"""What may stand before everything: nothing, a trainer's parameters, a model that reinforcement learning left."""
_TRAINER = re.compile(r"(opt_state|collections)/|step$")
"""What a trainer keeps beside its parameters. None of it is the model's."""
_UNUSED = ("embedder/mm_output_embedding", "embedder/mm_input_embedding_extra")
_STACKED = re.compile(r"stacked_layers/attention_type_(\d{1,3})/(.+)")
_MLP_LEAF = re.compile(r"(layer_\d+/mlp/(?:gating_einsum|linear))/w")
_MOST_LAYERS = 1024

_L, _T = "layers.{i}.", "layer_{i}/"
TOWER = "vision_encoder/"
"""Where the tower stands in a nested tree; beside the transformer in a flat one it is called:"""
FLAT_TOWER = "SigLiPFromPatches_0/"


def entries(*, joined: bool, gating: str, query_norms: bool, post_norms: bool, tower: bool) -> tuple[Entry, ...]:
    """The table. joined: queries, keys and values are one array, as where there are as many heads of each. gating:
    "transposed" where gate and up are stored [in, out], "same" where [out, in]."""
    qkv, first = (_T + "attn/qkv_einsum/w", 1) if joined else (_T + "attn/kv_einsum/w", 0)
    found = [
        as_entry("embed", _TABLE_NAME, "same"),
        as_entry("final_norm", "final_norm/scale", "same"),
        as_entry(_L + "attn_norm", _T + "pre_attention_norm/scale", "same"),
        as_entry(_L + "q", qkv if joined else _T + "attn/q_einsum/w", "queries", 0 if joined else None),
        as_entry(_L + "k", qkv, "keys", first),
        as_entry(_L + "v", qkv, "keys", first + 1),
        as_entry(_L + "o", _T + "attn/attn_vec_einsum/w", "heads out"),
        as_entry(_L + "ffn_norm", _T + "pre_ffw_norm/scale", "same"),
        as_entry(_L + "gate", _T + "mlp/gating_einsum", gating, 0),
        as_entry(_L + "up", _T + "mlp/gating_einsum", gating, 1),
        as_entry(_L + "down", _T + "mlp/linear", "transposed"),
    ]
    if query_norms:
        found.append(as_entry(_L + "q_norm", _T + "attn/_query_norm/scale", "same"))
        found.append(as_entry(_L + "k_norm", _T + "attn/_key_norm/scale", "same"))
    if post_norms:
        found.append(as_entry(_L + "post_attn_norm", _T + "post_attention_norm/scale", "same"))
        found.append(as_entry(_L + "post_ffn_norm", _T + "post_ffw_norm/scale", "same"))
    if tower:
        found.append(as_entry("vision.soft_norm", "embedder/mm_soft_embedding_norm/scale", "same"))
        found.append(as_entry("vision.projector", "embedder/mm_input_projection/w", "transposed"))
        found += tower_entries(TOWER + "siglip_encoder/", "encoderblock_{i}/")
    return tuple(found)


def expanded(config: Config, table: tuple[Entry, ...]) -> Iterator[tuple[str, str, Entry]]:
    """Every weight and bias of ours -> the path of its array, and its entry."""
    for entry in table:
        layers = 1
        if "{i}" in entry.name:
            is_tower = entry.name.startswith("vision.") and config.vision is not None
            layers = config.vision.num_layers if is_tower and config.vision else config.num_layers
        for i in range(layers):
            yield entry.name.format(i=i), entry.key.format(i=i), entry


def read_tree(
    path: Path, folder: Path, stored: Mapping[str, Stored], notices: list[str]
) -> tuple[Config, dict[str, Made]]:
    """The model of a tree's arrays and what each of its weights and biases (`.bias` after the name) is made of.

    stored: by name, its parts joined by dots or slashes. folder: where a `config.json` may lie. Raises GemmaryError
    where the tree is not one of Gemma's, whole.
    """
    tree = from_transformer(path, stored)
    config, table = _config(path, folder, tree, notices)
    made: dict[str, Made] = {}
    halves = Counter(entry.key for entry in table)
    for name, key, entry in expanded(config, table):
        if key in tree:
            if entry.half is not None and tree[key].shape[:1] != (halves[entry.key],):
                raise GemmaryError(f"{path}: {show(key)} has shape {tree[key].shape}, not {halves[entry.key]} matrices")
            part = tree[key] if entry.half is None else tree[key].part(entry.half)
            made[name] = Made(key, part, partial(_ours, entry, config), config.vocab_size if name == "embed" else None)
    check_names(path, tree, {key for _, key, _ in expanded(config, table)})
    wanted = {tensor.name for tensor in tensors(config)}
    check_names(path, wanted & made.keys(), wanted)
    return config, made


def _ours(entry: Entry, config: Config, array: Array) -> Array:
    return entry.ours(array, config)


def from_transformer(path: Path, stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The arrays by their paths from the transformer on, unstacked; what is not the model's is left out."""
    stored = _unique(path, ((name.replace(".", "/"), array) for name, array in stored.items()))
    roots = [root + inner for root in _ROOTS for inner in ("", "transformer/") if root + inner + _TABLE_NAME in stored]
    if len(roots) != 1:
        raise GemmaryError(
            f"{path} is no Gemma of Flax's: it has {'no' if not roots else 'two'} embedder/input_embedding"
        )
    root = roots[0]
    beside = root.removesuffix("transformer/") + FLAT_TOWER
    tree: list[tuple[str, Stored]] = []
    stacks: list[tuple[int, str, Stored]] = []
    for name, array in stored.items():
        if name.startswith(beside):
            key = TOWER + name.removeprefix(beside)
        elif name.startswith(root) and not (root == "" and _TRAINER.match(name)):
            key = name.removeprefix(root)
        elif _TRAINER.match(name):
            continue
        else:
            raise GemmaryError(f"{path} holds {show(name)} beside the transformer, which is not known")
        if found := _STACKED.fullmatch(key):
            stacks.append((int(found[1]), found[2], array))
        elif key not in _UNUSED:
            tree.append((key, array))
    kinds = 1 + max((kind for kind, _, _ in stacks), default=0)
    for kind, rest, array in stacks:
        if not array.shape or array.shape[0] * kinds > _MOST_LAYERS + kinds:
            raise GemmaryError(f"{path}: the stack {show(rest)} has shape {array.shape}, which is not of layers")
        tree += [(f"layer_{place * kinds + kind}/{rest}", array.part(place)) for place in range(array.shape[0])]
    return _unique(path, ((_MLP_LEAF.sub(r"\1", key), array) for key, array in tree))


def _unique(path: Path, found: Iterable[tuple[str, Stored]]) -> dict[str, Stored]:
    tree: dict[str, Stored] = {}
    for key, array in found:
        if key in tree:
            raise GemmaryError(f"{path} holds {show(key)} twice")
        tree[key] = array
    return tree


def _config(
    path: Path, folder: Path, tree: Mapping[str, Stored], notices: list[str]
) -> tuple[Config, tuple[Entry, ...]]:
    """The shape of the model, and the table of its layout."""

    def shape(key: str, axes: int) -> tuple[int, ...]:
        if key not in tree or len(tree[key].shape) != axes:
            raise GemmaryError(f"{path} is no Gemma of Flax's: {key} is missing or has another number of axes")
        return tree[key].shape

    numbers = {int(found[1]) for key in tree if (found := re.match(r"layer_(\d{1,4})/", key))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise GemmaryError(f"{path} is no Gemma of Flax's: its layers are not numbered from 0 on")
    joined = "layer_0/attn/qkv_einsum/w" in tree
    if joined:
        _, heads, width, head_dim = shape("layer_0/attn/qkv_einsum/w", 4)
        kv_heads = heads
    else:
        heads, width, head_dim = shape("layer_0/attn/q_einsum/w", 3)
        kv_heads = shape("layer_0/attn/kv_einsum/w", 4)[1]
    ffn = shape("layer_0/mlp/linear", 2)[0]
    gating = shape("layer_0/mlp/gating_einsum", 3)[1:]
    if ffn == width:
        raise GemmaryError(f"{path}: width and MLP are both {ffn}, so nobody can tell which way gating_einsum lies")
    query_norms = "layer_0/attn/_query_norm/scale" in tree
    post_norms = "layer_0/post_ffw_norm/scale" in tree
    tower = any(key.startswith(TOWER) for key in tree)
    sizes = {
        "num_layers": len(numbers),
        "hidden_size": width,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": ffn,
        "vocab_size": shape(_TABLE_NAME, 2)[0],
    }
    family: Family = "gemma3" if query_norms else "gemma2" if post_norms else "gemma"
    config = config_of(path, folder, family, sizes, tower=tower, notices=notices)
    table = entries(
        joined=joined,
        gating="same" if gating == (ffn, width) else "transposed",
        query_norms=query_norms,
        post_norms=post_norms,
        tower=tower,
    )
    return config, table
