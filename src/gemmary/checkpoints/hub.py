"""From a model's name to its files on this machine. Nothing here goes to the network; `download.pull` does.

A name is `starter`, `starter-vision`, a short name of the zoo (`gemma-2-2b-it`), a hub id (`org/name`), a folder or a
`.gguf` file. A hub id takes `@revision` (a branch, tag or commit) and, where a repository holds several GGUF files,
`:Q4_K_M` or `:file.gguf`; of several Orbax checkpoints `:folder`. `random:NAME` is no place: `random_weights.py` makes
what it means, and it is passed on as it is. Repositories lie in the cache that every tool of the Hugging Face hub
shares: HF_HUB_CACHE, or HF_HOME/hub.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gemmary import zoo
from gemmary.checkpoints import kept, starter
from gemmary.checkpoints.hub_layouts import choose_orbax, keras_files, keras_missing, listed_missing, orbax_folders
from gemmary.errors import GemmaryError
from gemmary.memory import size

RANDOM = "random:"
_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./+-]+))?", re.ASCII
)
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class HubName:
    """A repository of the hub, taken apart."""

    repo: str
    revision: str | None = None
    file: str | None = None
    """Part of a GGUF file's name, such as `Q4_K_M`, where one is meant; or the folder of an Orbax checkpoint."""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision else "") + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class LocalModel:
    """A model that is on this machine and known by a name."""

    name: str
    path: Path
    size: int
    """Bytes on disk."""
    complete: bool = True
    packed: int = 0
    """Bytes of its packed copies (`kept.py`)."""


def resolve(name: str | Path) -> Path:
    """The checkpoint folder or `.gguf` file that a name means.

    Raises GemmaryError where the name is unknown (it names near ones) or its files are not on this machine.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise unknown(name)
    if is_random(name):
        return Path(name)
    if isinstance(name, str):
        if name == starter.NAME:
            return starter.starter_path()
        if name == starter.VISION_NAME:
            return starter.vision_path()
        hub_name = parse(name)
        if hub_name is not None and not (hub_name.repo == name and Path(name).exists()):
            return _local(name, hub_name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _own_checkpoint(path)
    if path.exists() or path.suffix == ".npz":  # which may be in parts
        return path
    if isinstance(name, Path) or os.sep in name or name.endswith((".gguf", ".safetensors")):
        raise GemmaryError(f"no such file or folder: {name}")
    raise unknown(name)


def is_random(name: object) -> bool:
    """Whether a name means random weights (`random:NAME`)."""
    return isinstance(name, str | Path) and str(name).startswith(RANDOM)


def parse(name: str) -> HubName | None:
    """The repository that a short name or a hub id means; None for anything else (a path, a starter, a word)."""
    short, at, revision = name.partition("@")
    row = zoo.find(short)
    if row is not None and "/" not in short:
        name = row.hub_id + at + revision
    found = _HUB_ID.fullmatch(name)
    if found is None or name.endswith("/") or ".." in name or found["repo"].endswith(".gguf"):
        return None
    return HubName(found["repo"], found["revision"], found["file"])


def unknown(name: object) -> GemmaryError:
    """The error for a word that names nothing, with the nearest names."""
    known = (*starter.NAMES, *(row.name for row in zoo.ZOO))
    return GemmaryError(f"no model is called {name!r}{zoo.did_you_mean(str(name), known)}")


def list_local() -> list[LocalModel]:
    """The starter, where it is assembled, every Gemma repository in the hub's cache, and what else has packed copies,
    by name."""
    models, places = [], []
    if starter.is_assembled():
        path = starter.starter_path()
        places.append(path)
        models.append(LocalModel(starter.NAME, path, path.stat().st_size, packed=kept.bytes_of(path)))
    for folder in sorted(hub_cache().glob("models--*--*")):
        repo = "/".join(folder.name.split("--", 2)[1:])
        snapshot = _snapshot(folder, None)
        if snapshot is None or not _is_gemma(snapshot, repo):
            continue
        row = zoo.find(repo)
        name, complete = row.name if row else repo, not missing_files(snapshot)
        places.append(folder)
        models.append(LocalModel(name, snapshot, _disk_usage(folder), complete, kept.bytes_of(folder)))
    return models + [LocalModel(str(s), s, size, size > 0, held) for s, size, held in kept.others(places)]


def place_of(name: str) -> Path:
    """The file or folder in which all of a model lies, every revision of it; that it is here is not sure.

    Raises GemmaryError for an unknown name."""
    if name == starter.NAME:
        return starter.cache_folder() / starter.FILE
    hub_name = parse(name)
    if name != starter.VISION_NAME and hub_name is not None and repo_folder(hub_name.repo).is_dir():
        return repo_folder(hub_name.repo)
    return resolve(name)


def remove(name: str) -> int:
    """Deletes what `pull` fetched (every revision of it) and its packed copies, and returns the bytes that are free
    again.

    Raises GemmaryError where there is nothing, and for a folder or file of one's own, which Gemmary never deletes.
    """
    if name == starter.NAME:
        if not starter.is_assembled():
            raise GemmaryError("the starter is not in the cache: there is nothing to remove")
        return kept.remove(place_of(name)) + starter.remove()
    if name == starter.VISION_NAME:
        raise GemmaryError("starter-vision is a part of Gemmary: there is nothing to remove")
    hub_name = parse(name)
    if hub_name is None or (not repo_folder(hub_name.repo).is_dir() and Path(name).exists()):
        if Path(name).exists():
            copies = f" (`gemmary rm --packed {name}`: its packed copies)" if kept.bytes_of(Path(name)) else ""
            raise GemmaryError(f"{name} was not fetched by `gemmary pull`: remove it yourself{copies}")
        raise unknown(name)
    if hub_name.revision or hub_name.file:
        raise GemmaryError(f"give the name alone to remove all that was fetched of it: `gemmary rm {hub_name.repo}`")
    folder = repo_folder(hub_name.repo)
    if not folder.is_dir():
        raise GemmaryError(f"{name} is not on this machine: there is nothing to remove")
    freed = _disk_usage(folder) + kept.remove(folder)
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise GemmaryError(f"cannot remove {folder}: {error.strerror or error}") from error
    return freed


# The hub's cache --------------------------------------------------------------------------------------------------


def hub_cache() -> Path:
    """The folder of the hub's cache, by the environment variables that huggingface_hub reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if value := os.environ.get(variable):
            return Path(os.path.expandvars(value)).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or os.path.join(base, "huggingface")
    return Path(os.path.expandvars(home)).expanduser() / "hub"


def repo_folder(repo: str) -> Path:
    return hub_cache() / ("models--" + repo.replace("/", "--"))


def snapshot_of(hub_name: HubName) -> Path | None:
    """The folder of a repository's files at a revision (`main` where none is given); None where it was not fetched."""
    return _snapshot(repo_folder(hub_name.repo), hub_name.revision)


def _snapshot(folder: Path, revision: str | None) -> Path | None:
    revision = revision or "main"
    with_ref = folder / "refs" / revision
    try:
        commit = with_ref.read_text(encoding="utf-8").strip() if with_ref.is_file() else revision
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if re.fullmatch(r"[\w.-]+", commit) and snapshot.is_dir() else None


def _local(name: str, hub_name: HubName) -> Path:
    snapshot = snapshot_of(hub_name)
    if snapshot is None:
        row = zoo.find(hub_name.repo)
        cost = f" (about {size(row.config.weight_bytes())})" if row else ""
        raise GemmaryError(f"{name} is not on this machine: `gemmary pull {name}` fetches it{cost}")
    if lost := missing_files(snapshot):
        raise GemmaryError(f"{name} is only partly here ({lost[0]} is missing): `gemmary pull {name}` fetches the rest")
    return _checkpoint_in(snapshot, hub_name.file, hub_name.repo)


def _checkpoint_in(folder: Path, wanted: str | None, name: str) -> Path:
    """The folder itself if it is a checkpoint, else the one GGUF file, or folder of Orbax's, that is meant."""
    if wanted is None and ((folder / "config.json").is_file() or any(folder.glob("*.safetensors"))):
        return folder
    files = _names_in(folder)
    folders = orbax_folders(files)
    if any(file.endswith(".gguf") for file in files) or (wanted is not None and not folders):
        return folder / choose_gguf(files, wanted, name)
    return folder / choose_orbax(folders, wanted, name) if folders else folder


def _own_checkpoint(folder: Path) -> Path:
    """The same of a folder of the user's, in which a file is meant by its path."""
    files = [path.name for path in folder.glob("*.gguf") if path.is_file()]
    if not files or (folder / "config.json").is_file():
        return folder
    return folder / choose_gguf(files, None, str(folder), between="/")


def choose_gguf(files: Iterable[str], wanted: str | None, name: str, between: str = ":") -> str:
    """The one file that `wanted` means (part of its name, whatever the case), or the only one there is.

    between: what stands between the name and that of a file where one is chosen. Raises GemmaryError that lists the
    choices where it is not one.
    """
    models = sorted(f for f in files if f.endswith(".gguf") and not Path(f).name.startswith("mmproj"))
    whole = [f for f in models if not _SPLIT.search(f)]
    if models and not whole:
        raise GemmaryError(f"{name} holds a GGUF cut into several files: merge them first with llama.cpp's gguf-split")
    found = whole if wanted is None else [f for f in whole if Path(f).name.lower() == wanted.lower() or f == wanted]
    if wanted is not None and not found:
        part = re.compile(rf"(?<![a-z0-9]){re.escape(wanted.lower())}(?![a-z0-9_])")
        found = [f for f in whole if part.search(Path(f).name.lower())]
    if len(found) == 1:
        return found[0]
    if not whole:
        raise GemmaryError(f"{name} holds no GGUF file")
    example = f"{name}{between}{Path(whole[0]).name}"
    what = "has several GGUF files" if len(found) > 1 else f"has no GGUF file {wanted!r}"
    raise GemmaryError(f"{name} {what}: choose one, such as `{example}` (there are {_names(whole)})")


def missing_files(snapshot: Path) -> list[str]:
    """Weights that the snapshot should hold and does not (a download that was broken off)."""
    try:
        index = json.loads((snapshot / _INDEX).read_text(encoding="utf-8"))
        shards = sorted({str(file) for file in index["weight_map"].values()})
    except FileNotFoundError:
        if lost := [*listed_missing(snapshot), *keras_missing(snapshot)]:
            return lost
        files = _names_in(snapshot)
        known = any(file.endswith(".gguf") or ("/" not in file and file.endswith(".safetensors")) for file in files)
        return [] if known or keras_files(files) or orbax_folders(files) else ["model.safetensors"]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return []  # a bad index is for the checkpoint's reader to judge
    return [shard for shard in shards if not (snapshot / shard).is_file()]


def _names_in(folder: Path) -> list[str]:
    """Every file below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _is_gemma(snapshot: Path, repo: str) -> bool:
    if "gemma" in repo.lower() and (any(snapshot.rglob("*.gguf")) or orbax_folders(_names_in(snapshot))):
        return True
    try:
        config = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
        return "gemma" in str(config.get("model_type", config.get("class_name", ""))).lower()
    except (OSError, ValueError, AttributeError):
        return False


def _disk_usage(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _names(files: list[str]) -> str:
    shown = ", ".join(Path(f).name for f in files[:6])
    return shown + (f" and {len(files) - 6} more" if len(files) > 6 else "")
