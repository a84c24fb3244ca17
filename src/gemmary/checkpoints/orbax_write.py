"""Writes an Orbax checkpoint of DeepMind's Gemma, in the layout of the releases, for what reads those.

A flat tree in an OCDBT database: matrices as the released model of that shape has them (queries, keys and values joined
where there are as many heads of each; gate and up turned in Gemma 2 9B and 27B and in Gemma 3; the tables of Gemma 1
and 2 padded to 256,128 rows). Beside the arrays lie the tokenizer and `config.json`, which Orbax does not look at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gemmary.checkpoints.checkpoint import Source
from gemmary.checkpoints.convert import Meter, Progress
from gemmary.checkpoints.einsums import Array, Entry
from gemmary.checkpoints.flax import FLAT_TOWER, TOWER, entries, expanded
from gemmary.checkpoints.huggingface_write import write_around
from gemmary.checkpoints.orbax import tensorstore
from gemmary.checkpoints.tensors import PADDED_ROWS, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.files import atomic_folder
from gemmary.quantize.leaves import FLOATS, Affine

_DTYPES = {"F32": "float32", "BF16": "bfloat16"}
_FAMILIES = ("gemma", "gemma2", "gemma3")
_TURNED_WIDTH = 3584
"""From this width on (9B) Gemma 2 has gate and up as [out, in]."""
_PADDED = {tokens: rows for rows, tokens in PADDED_ROWS.items() if rows == 256_128}
_LEAF_KEYS = ("mlp/gating_einsum", "mlp/linear")
"""Arrays that the flat tree has one level further down, as `w`."""


def save_orbax(source: Source, path: Path, format: str | None, progress: Progress | None = None) -> list[str]:
    """Writes the folder `path`, atomically. format: F32, BF16, or None: bfloat16 where every matrix is, else float32.

    Returns what a user should be told. Raises GemmaryError for a model that DeepMind's code does not know, where the
    folder holds something, the disk refuses, or TensorStore is missing.
    """
    config = source.config
    if config.family not in _FAMILIES:
        raise GemmaryError(f"{source.name} is no Gemma 1, 2 or 3, the models that Orbax checkpoints are read as")
    if format not in (None, *_DTYPES):
        raise GemmaryError(f"Orbax checkpoints are written as {' or '.join(_DTYPES.values())}, not {format}")
    if format is None:
        stored = {source.lookup(t.name).format for t in tensors(config) if not t.is_norm}
        format = "BF16" if stored == {"BF16"} else "F32"
    ts, notices = tensorstore(), list[str]()
    meter = Meter(config.total_parameters * FLOATS[format].itemsize, progress)
    with atomic_folder(path) as folder:
        base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{folder.resolve()}/"}}
        names: list[tuple[str, str]] = []
        for key, parts in _grouped(config):
            name = flat_name(key)
            names.append(name)
            array = _array(source, parts, format)
            _write(ts, {**base, "path": ".".join(name) + "/"}, array)
            for _ in meter.watch(iter([array.reshape(-1).view(np.uint8)])):
                pass
        metadata = {
            "tree_metadata": {str(name): _said(name) for name in names},
            "use_ocdbt": True,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        (folder / "_METADATA").write_text(json.dumps(metadata), encoding="utf-8")
        write_around(source, folder, _DTYPES[format], notices)
    return notices


def flat_name(key: str) -> tuple[str, str]:
    """The two keys that a path has in a flat tree: all but its last part, and that."""
    key += "/w" if key.endswith(_LEAF_KEYS) else ""
    key = FLAT_TOWER + key.removeprefix(TOWER) if key.startswith(TOWER) else "transformer/" + key
    before, _, last = key.rpartition("/")
    return before, last


def _grouped(config: Config) -> Iterator[tuple[str, list[tuple[str, Entry]]]]:
    """The path of every array, and what of ours is in it."""
    turned = config.qk_norm or (config.post_norms and config.hidden_size >= _TURNED_WIDTH)
    table = entries(
        joined=config.num_heads == config.num_kv_heads,
        gating="same" if turned else "transposed",
        query_norms=config.qk_norm,
        post_norms=config.post_norms,
        tower=config.vision is not None,
    )
    groups: dict[str, list[tuple[str, Entry]]] = {}
    for name, key, entry in expanded(config, table):
        groups.setdefault(key, []).append((name, entry))
    return iter(groups.items())


def _array(source: Source, parts: list[tuple[str, Entry]], format: str) -> Array:
    found = [entry.theirs(_values(source, name), source.config).astype(FLOATS[format]) for name, entry in parts]
    if (rows := _PADDED.get(len(found[0]))) is not None and parts[0][0] == "embed":
        found[0] = np.pad(found[0], ((0, rows - len(found[0])), (0, 0)))
    return np.ascontiguousarray(found[0] if len(found) == 1 else np.stack(found))


def _values(source: Source, name: str) -> Array:
    if name.endswith(".bias"):
        leaf = source.lookup(name.removesuffix(".bias"))
        assert isinstance(leaf, Affine)
        return leaf.bias
    return source.lookup(name).dequantize()


def _write(ts: Any, place: dict[str, Any], array: Array) -> None:
    """One array in one chunk. Zeros are written like any number: a chunk that is not there is a fault (`orbax.py`)."""
    spec = {
        "driver": "zarr",
        "kvstore": place,
        "metadata": {"chunks": list(array.shape), "compressor": {"id": "zstd", "level": 1}},
        "store_data_equal_to_fill_value": True,
    }
    try:
        ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result().write(array).result()
    except (ValueError, OSError) as error:
        raise GemmaryError(f"the checkpoint cannot be written: {' '.join(str(error).split())[:200]}") from None


def _said(name: tuple[str, str]) -> dict[str, Any]:
    """What Orbax's `_METADATA` says of an array: its keys, of a dictionary each (2), and that numpy may hold it."""
    return {
        "key_metadata": [{"key": key, "key_type": 2} for key in name],
        "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
    }
