"""The Config of a checkpoint that holds arrays and no words: what their shapes say, and who knows the rest.

Windows, caps, the query scale and RoPE's bases stand in no array. A `config.json` beside the weights says them, or the
released model that has these sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from gemmary import zoo
from gemmary.checkpoints.config_json import read_config
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.tensors import PADDED_ROWS
from gemmary.config import Config, Family
from gemmary.errors import GemmaryError


def config_of(
    path: Path, folder: Path, family: Family, sizes: Mapping[str, int], *, tower: bool, notices: list[str]
) -> Config:
    """path: the checkpoint, for messages. folder: where a `config.json` may lie. sizes: fields of Config, of which
    vocab_size counts the stored rows. tower: whether a picture tower is stored.

    Raises GemmaryError where nobody knows a model of these sizes.
    """
    sizes = {**sizes, "vocab_size": PADDED_ROWS.get(sizes["vocab_size"], sizes["vocab_size"])}
    file = folder / "config.json"
    data = read_json(file) if file.is_file() else {}
    if "model_type" in data:  # Kaggle's own config.json is another
        config = read_config(data, notices)
        for field, size in {**sizes, "family": family}.items():
            if getattr(config, field) != size:
                raise GemmaryError(f"{file} says {field} = {getattr(config, field)}, but {path.name} holds {size}")
    else:
        row = next((row for row in zoo.ZOO if _fits(row.config, family, sizes, tower)), None)
        if row is None:
            shape = ", ".join(f"{field} {size}" for field, size in sizes.items())
            raise GemmaryError(
                f"{path}: no released {family} has these sizes ({shape}): put its Hugging Face config.json beside it"
            )
        config = row.config
        notices.append(f"what its arrays do not say (windows, caps, scales, context) is that of {row.name}")
    if tower and config.vision is None:
        raise GemmaryError(f"{path} holds a picture tower, of which {file} says nothing")
    return config if tower or config.vision is None else replace(config, vision=None)


def _fits(config: Config, family: Family, sizes: Mapping[str, int], tower: bool) -> bool:
    same = all(getattr(config, field) == size for field, size in sizes.items())
    return same and config.family == family and (config.vision is not None or not tower)


def beside(path: Path, names: Iterable[str], folders: Iterable[Path]) -> Path:
    """The folder, of those that are looked into, that holds one of the files.

    Raises GemmaryError, for a tokenizer, where none does.
    """
    names = tuple(names)
    for folder in folders:
        if any((folder / name).is_file() for name in names):
            return folder
    raise GemmaryError(f"{path} has no tokenizer: put {' or '.join(names)} beside it")
