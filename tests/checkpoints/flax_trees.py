"""DeepMind's parameter trees of a tiny model, built from the einsums that their own model takes, in every layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.config import Config
from gemmary.quantize.leaves import Leaf

Array = npt.NDArray[Any]
Tree = dict[str, Any]


def nested(config: Config, lookup: Callable[[str], Leaf], *, transposed: bool = False, padding: int = 0) -> Tree:
    """{"embedder": {"input_embedding": …}, "layer_0": {"attn": …}, …}. transposed: gating_einsum is [2, F, D]. padding:
    rows of ones after those of the vocabulary."""
    c, d = config, config.hidden_size

    def get(name: str) -> Array:
        return lookup(name).dequantize()

    def heads(name: str, count: int) -> Array:
        """[N, D, H] of our [N * H, D]."""
        return np.stack(np.split(get(name), count)).swapaxes(1, 2)

    tree: Tree = {
        "embedder": {"input_embedding": np.concatenate([get("embed"), np.ones((padding, d), np.float32)])},
        "final_norm": {"scale": get("final_norm")},
    }
    for i in range(c.num_layers):
        one = f"layers.{i}."
        q, k, v = (heads(one + n, c.num_heads if n == "q" else c.num_kv_heads) for n in "qkv")
        joined = c.num_heads == c.num_kv_heads
        gating = np.stack([get(one + "gate"), get(one + "up")])
        attention: Tree = {"attn_vec_einsum": {"w": get(one + "o").T.reshape(c.num_heads, c.head_dim, d)}}
        attention |= {"qkv_einsum": {"w": np.stack([q, k, v])}} if joined else {}
        attention |= {} if joined else {"q_einsum": {"w": q}, "kv_einsum": {"w": np.stack([k, v])}}
        layer: Tree = {
            "attn": attention,
            "mlp": {"gating_einsum": gating if transposed else gating.swapaxes(1, 2), "linear": get(one + "down").T},
            "pre_attention_norm": {"scale": get(one + "attn_norm")},
            "pre_ffw_norm": {"scale": get(one + "ffn_norm")},
        }
        if c.qk_norm:
            layer["attn"] |= {
                "_query_norm": {"scale": get(one + "q_norm")},
                "_key_norm": {"scale": get(one + "k_norm")},
            }
        if c.post_norms:
            layer |= {
                "post_attention_norm": {"scale": get(one + "post_attn_norm")},
                "post_ffw_norm": {"scale": get(one + "post_ffn_norm")},
            }
        tree[f"layer_{i}"] = layer
    return tree


def paths(tree: Tree, before: str = "") -> dict[str, Array]:
    """Every array by its path, with slashes."""
    found: dict[str, Array] = {}
    for key, value in tree.items():
        found |= paths(value, f"{before}{key}/") if isinstance(value, dict) else {before + key: value}
    return found


def flat(tree: Tree) -> Tree:
    """As released: {"transformer/layer_0/attn/q_einsum": {"w": …}}."""
    found: Tree = {}
    for path, array in paths(tree).items():
        path += "/w" if path.endswith(("mlp/gating_einsum", "mlp/linear")) else ""
        before, _, last = path.rpartition("/")
        found.setdefault("transformer/" + before, {})[last] = array
    return found


def stacked(tree: Tree, kinds: int) -> Tree:
    """The same with the layers i, i + kinds, … of a kind on the first axis."""
    found: Tree = {}
    stacks: dict[tuple[str, str], list[Array]] = {}
    for key, arrays in flat(tree).items():
        before, layer, rest = key.partition("layer_")
        if not layer:
            found[key] = arrays
            continue
        number, _, rest = rest.partition("/")
        for last, array in arrays.items():
            name = f"{before}stacked_layers/attention_type_{int(number) % kinds}/{rest}"
            stacks.setdefault((name, last), []).append(array)  # the layers come in their order
    for (name, last), layers in stacks.items():
        found.setdefault(name, {})[last] = np.stack(layers)
    return found
