"""Reads KerasHub's presets of Gemma 1, 2 and 3: `config.json`, weights in HDF5 (one file, or shards with an index), and
`assets/tokenizer/vocabulary.spm`.

Query, key and value kernels have their heads apart, the other kernels are [in, out], norm weights are zero-centred. The
MLP of the first two generations is told at twice its width (gate and up together). (Specification 4.6.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary import zoo
from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.einsums import KINDS, Array
from gemmary.checkpoints.fields import Fields, periodic, show
from gemmary.checkpoints.hdf5 import read_files
from gemmary.checkpoints.hub_layouts import KERAS_INDEX, KERAS_SINGLE
from gemmary.checkpoints.huggingface import read_chat_template
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.stored import Made, Stored, check_names, formats_of, leaves_of
from gemmary.checkpoints.tensors import PADDED_ROWS, tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.zoo import alternating

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

_SHARD = re.compile(r"model_\d{5}\.weights\.h5")
_VOCABULARY = "assets/tokenizer/vocabulary.spm"
_MOST_SHARDS = 1024
_OLD_ROOT = "_layer_checkpoint_dependencies/"
"""What the first releases of Keras 3 called `layers/`."""
_TOWER = "layers/gemma3_vision_encoder/"

_BLOCKS = {"GemmaBackbone": "gemma_decoder_block", "Gemma3Backbone": "gemma3_decoder_block"}
"""What the layers are called, by the class of the model."""
_OUTER = {"embed": ("reversible_embedding", "same"), "final_norm": ("rms_normalization", "same")}
_LAYER = {
    "attn_norm": ("pre_attention_norm", "same"),
    "q": ("attention/query_dense", "queries"),
    "k": ("attention/key_dense", "keys"),
    "v": ("attention/value_dense", "keys"),
    "o": ("attention/output_dense", "heads out"),
    "q_norm": ("attention/query_norm", "same"),
    "k_norm": ("attention/key_norm", "same"),
    "post_attn_norm": ("post_attention_norm", "same"),
    "ffn_norm": ("pre_ffw_norm", "same"),
    "gate": ("gating_ffw", "transposed"),
    "up": ("gating_ffw_2", "transposed"),
    "down": ("ffw_linear", "transposed"),
    "post_ffn_norm": ("post_ffw_norm", "same"),
}
"""Our name -> theirs, and how the one becomes the other (`einsums.py`)."""


def is_keras(path: Path) -> bool:
    """Whether a folder is a KerasHub preset."""
    return (path / KERAS_SINGLE).is_file() or (path / KERAS_INDEX).is_file()


def open_keras(path: Path, name: str | None = None) -> Checkpoint:
    """Raises GemmaryError, one line, where the folder is not a Gemma preset whole and sound, or h5py is missing."""
    notices: list[str] = []
    config, block = read_config(read_json(path / "config.json"), notices)
    stored = {place.replace(_OLD_ROOT, "layers/", 1): each for place, each in read_files(_files(path)).items()}
    if any(place.startswith(_TOWER) for place in stored):
        stored = {place: each for place, each in stored.items() if not place.startswith(_TOWER)}
        notices.append("the preset's picture tower is set aside: it reads text only")
    return open_stored(path, name, config, block, stored, notices)


def open_stored(
    path: Path, name: str | None, config: Config, block: str, stored: dict[str, Stored], notices: list[str]
) -> Checkpoint:
    """The model of arrays by their places in the files (`layers/rms_normalization/vars/0`)."""
    made: dict[str, Made] = {}
    for tensor in tensors(config):
        number, _, last = tensor.name.removeprefix("layers.").partition(".")
        theirs, kind = _LAYER[last] if last else _OUTER[tensor.name]
        layer = f"{block}{'' if number == '0' else '_' + number}/" if last else ""
        place = f"layers/{layer}{theirs}/vars/0"
        ours = partial(_ours, KINDS[kind][0], config)
        if place in stored:
            made[tensor.name] = Made(place, stored[place], ours, config.vocab_size if tensor.name == "embed" else None)
        else:
            check_names(path, (), (place,))
    check_names(path, stored, (one.name for one in made.values()))
    return Checkpoint(
        path,
        "keras_hub",
        config,
        name or path.resolve().name,
        leaves_of(path, config, made),
        partial(_tokenizer, path),
        partial(read_chat_template, path),
        notices,
        made_formats=formats_of(config, made),
        weight_files=tuple(_files(path)),
    )


def _ours(kind: Callable[[Array, Config], Array], config: Config, array: Array) -> Array:
    return kind(array, config)


def _files(path: Path) -> list[Path]:
    """The files of weights: one, or those that the index names."""
    if not (path / KERAS_INDEX).is_file():
        return [path / KERAS_SINGLE]
    places = read_json(path / KERAS_INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise GemmaryError(f"{path / KERAS_INDEX} has no weight_map")
    found: set[str] = set()
    for files in places.values():
        for file in files if isinstance(files, list) else [files]:
            if not isinstance(file, str) or not _SHARD.fullmatch(file):
                raise GemmaryError(f"{path / KERAS_INDEX} names {show(file)}, which is no shard of this folder")
            if not (path / file).is_file():
                raise GemmaryError(f"{path} lacks the shard {file} that its index names")
            found.add(file)
    if len(found) > _MOST_SHARDS:
        raise GemmaryError(f"{path / KERAS_INDEX} names more than {_MOST_SHARDS} files")
    return [path / file for file in sorted(found)]


def read_config(data: dict[str, Any], notices: list[str]) -> tuple[Config, str]:
    """The Config of a preset's `config.json`, and what its layers are called.

    Raises GemmaryError for another kind of model.
    """
    kind, said = data.get("class_name"), data.get("config")
    if kind not in _BLOCKS or not isinstance(said, dict):
        raise GemmaryError(f"config.json is of {show(kind)}: of KerasHub's only {' and '.join(_BLOCKS)} can be read")
    third = kind == "Gemma3Backbone"
    post_norms, query_norms = bool(said.get("use_post_ffw_norm")), bool(said.get("use_query_key_norm"))
    if bool(said.get("use_post_attention_norm")) != post_norms or (third and not (post_norms and query_norms)):
        raise GemmaryError("config.json: its norms are those of no Gemma")
    if said.get("is_embedding_model") or said.get("use_bidirectional_attention"):
        raise GemmaryError("config.json is of an embedding model: take EmbeddingGemma's Hugging Face folder")
    get = Fields("config.json", {key: value for key, value in said.items() if value is not None})

    def cap(key: str) -> float | None:
        return None if said.get(key) is None else get.number(key)

    layers, width = get.size("num_layers", most=1024), get.size("hidden_dim")
    heads, head_dim = get.size("num_query_heads"), get.size("head_dim")
    windowed = bool(said.get("use_sliding_window_attention", False))
    if get.number("local_rope_scaling_factor", 1.0) != 1.0:
        raise GemmaryError("config.json: RoPE scaling of the local layers is not known")
    rows = get.size("vocabulary_size", most=1 << 22)
    config = get.config(
        family="gemma3" if third else "gemma2" if post_norms else "gemma",
        num_layers=layers,
        hidden_size=width,
        num_heads=heads,
        num_kv_heads=get.size("num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=get.size("intermediate_dim") // (1 if third else 2),
        vocab_size=PADDED_ROWS.get(rows, rows),
        context_length=_context(layers, width, third, notices),
        layer_types=(periodic(6, layers) if third else alternating(layers)) if windowed else periodic(1, layers),
        # As trained, and as the preset says; KerasHub's own blocks (0.32) take head_dim whatever it says.
        query_pre_attn_scalar=head_dim if said.get("query_head_dim_normalize", True) else width // heads,
        sliding_window=get.size("sliding_window_size", 4096, most=1 << 30) if windowed else None,
        rope_theta=1_000_000.0 if third else 10_000.0,
        rope_scaling_factor=get.number("global_rope_scaling_factor", 1.0) if third else 1.0,
        attn_logit_softcap=cap("attention_logit_soft_cap"),
        final_logit_softcap=cap("final_logit_soft_cap"),
        post_norms=post_norms,
        qk_norm=third,
        rms_norm_eps=get.number("layer_norm_epsilon", 1e-6),
    )
    return config, _BLOCKS[kind]


def _context(layers: int, width: int, third: bool, notices: list[str]) -> int:
    """Tokens that the released model of these sizes was trained for, which the preset does not say."""
    known = (row.config.context_length for row in zoo.ZOO if (row.config.num_layers, row.config.hidden_size) ==
             (layers, width) and row.config.qk_norm == third)  # fmt: skip
    found = next(known, None)
    if found is None:
        found = 32_768 if third else 8192
        notices.append(f"the preset does not say its context: {found:,} tokens, the least of its generation")
    return found


def _tokenizer(path: Path) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    if not (path / _VOCABULARY).is_file():
        raise GemmaryError(f"{path} has no tokenizer: it lacks {_VOCABULARY}")
    return Tokenizer.from_model_bytes((path / _VOCABULARY).read_bytes())
