"""Layouts of a hub repository other than Hugging Face's own, told by the names of its files: Orbax (Flax), KerasHub."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from gemmary.errors import GemmaryError

KERAS_SINGLE, KERAS_INDEX = "model.weights.h5", "model.weights.json"
_KERAS = re.compile(
    r"(config|metadata)\.json|model\.weights\.(h5|json)|model_\d{5}\.weights\.h5|assets/tokenizer/[^/]+"
)
_ITEMS = ("default", "params")
"""Where the arrays may be below a checkpoint's folder (orbax.py)."""
_MARKS = ("manifest.ocdbt", "_METADATA")
_OLD_TABLE = re.compile(r"(transformer/)?[^/]*embedder[^/]*/\.zarray")
_OTHER = re.compile(
    r"\.git[^/]*|[^/]+\.(md|ckpt|bin|pth?|h5|msgpack|safetensors|gguf|zip|tar|tgz|gz|png|jpg|pdf)", re.IGNORECASE
)
"""At the top of a repository, beside the arrays of a checkpoint there."""


def keras_files(files: Iterable[str]) -> list[str]:
    """The files of a KerasHub preset; none where there is no such preset."""
    found = [file for file in files if _KERAS.fullmatch(file)]
    return found if {KERAS_SINGLE, KERAS_INDEX} & set(found) else []


def orbax_folders(files: Iterable[str]) -> list[str]:
    """The Orbax checkpoints among the files: `""` where the repository is one, else the folders at its top that are."""
    names = set(files)
    found = set()
    for name in names:
        folder, _, last = name.rpartition("/")
        below = f"{folder}/" if folder else ""
        is_old = last == "checkpoint" and any(
            each.startswith(below) and _OLD_TABLE.fullmatch(each[len(below) :]) for each in names
        )
        if last in _MARKS or is_old:
            parts = folder.split("/") if folder else []
            if parts and parts[-1] in _ITEMS:
                parts.pop()
            if len(parts) < 2 and not "".join(parts).startswith("ocdbt.process_"):
                found.add("".join(parts))
    return [""] if "" in found else sorted(found)


def choose_orbax(folders: list[str], wanted: str | None, name: str) -> str:
    """The checkpoint that `wanted` means, or the only one there is. Raises GemmaryError that lists the choices."""
    if wanted in folders:
        return wanted
    if wanted is None and len(folders) == 1:
        return folders[0]
    what = "has several checkpoints" if wanted is None else f"has no checkpoint {wanted!r}"
    if folders == [""]:
        raise GemmaryError(f"{name} {what}: it is one by itself")
    raise GemmaryError(f"{name} {what}: choose one, such as `{name}:{folders[0]}` (there are {', '.join(folders)})")


def orbax_files(files: Iterable[str], folder: str) -> list[str]:
    """Every file of one checkpoint."""
    if folder:
        return [file for file in files if file.startswith(f"{folder}/")]
    return [file for file in files if not _OTHER.fullmatch(file)]


def keras_missing(snapshot: Path) -> list[str]:
    """Files that a preset's index names and the folder does not hold. (A bad index is for the reader to judge.)"""
    try:
        places = json.loads((snapshot / KERAS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        shards = {str(each) for place in places for each in (place if isinstance(place, list) else [place])}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []
    return sorted(shard for shard in shards if not (snapshot / shard).is_file())


# What was asked for ---------------------------------------------------------------------------------------------------
#
# Nothing in a checkpoint of Orbax's names its files, so `pull` keeps their names beside the snapshot before it fetches
# the first of them: what is missing of a download that was broken off can be told.


def list_of(snapshot: Path) -> Path:
    """Where the names are kept: in the repository's own folder of the cache."""
    return snapshot.parent.parent / f"{snapshot.name}.gemmary-files.json"


def listed_missing(snapshot: Path) -> list[str]:
    """Files of the last pull that are not here; none where it left no list."""
    try:
        names = json.loads(list_of(snapshot).read_text(encoding="utf-8"))
        return [name for name in map(str, names) if not (snapshot / name).is_file()]
    except (OSError, ValueError, TypeError):
        return []
