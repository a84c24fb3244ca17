"""Packed copies of models that were run, kept so that a later load maps one and packs nothing.

They lie in `packed/KEY/` of Gemmary's cache folder. The key is a digest of all that decides what a copy holds: the
source's files with their sizes and times, the format that was asked for, and who packed it in which layout. So a
source that was changed never meets an old copy. A copy holds the weights as `packed.py` writes them, `tokenizer.model`
where the source has a tokenizer, `kept.json`, which says of what it is a copy, and SHA256SUMS. What is small is not in
it: config, chat template and notices are read from the source each time (other formats say more than a packed folder's
config.json can), so the model is the same but for the time.

A copy is trusted while its files have the sizes and times that they were written with; to read them all through would
take longer than packing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints import starter
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.npz import parts_of
from gemmary.errors import GemmaryError
from gemmary.files import atomic_folder, only_one

if TYPE_CHECKING:
    from gemmary.checkpoints.checkpoint import Checkpoint
    from gemmary.checkpoints.convert import Progress
    from gemmary.quantize.leaves import Leaf

VARIABLE = "GEMMARY_KEEP_PACKED"
LEAST_BYTES = 100_000_000
"""Packing less takes a fraction of what Python's start takes."""
ROOM = 4
"""Times a copy's bytes that the disk must have free for one that nobody asked for."""
_KEY = re.compile(r"[0-9a-f]{32}")
_RECORD = "kept.json"
_TOKENIZER = "tokenizer.model"


@dataclass(frozen=True)
class PackedCopy:
    """The copy of one source in one format: where it lies, or would lie."""

    folder: Path
    made_from: dict[str, Any]
    """All that decides what it holds."""

    def open(self, checkpoint: Checkpoint, notices: list[str]) -> Checkpoint | None:
        """The checkpoint with its weights mapped from the copy; None where there is none. One that is not sound is
        thrown away, which `notices` is told."""
        from gemmary.checkpoints.huggingface import open_tokenizer
        from gemmary.checkpoints.packed import open_weights

        if not self.folder.is_dir():
            return None
        record: dict[str, Any] = {}
        with suppress(GemmaryError):
            record = read_json(self.folder / _RECORD, _MOST_RECORD)
        if record.pop("wrote", None) != _facts(self.folder) or record != self.made_from:
            notices.append(
                f"the packed copy of {checkpoint.name} {self._thrown_away()}: it is not what was written there"
            )
            return None
        try:
            leaves = open_weights(self.folder, checkpoint.config)
        except GemmaryError as error:  # of the system's making, since the files are as they were written
            notices.append(f"the packed copy of {checkpoint.name} was not used: {error}")
            return None
        if not (self.folder / _TOKENIZER).is_file():
            return replace(checkpoint, leaves=leaves)
        return replace(checkpoint, leaves=leaves, load_tokenizer=partial(open_tokenizer, self.folder))

    def _thrown_away(self) -> str:
        try:
            _discard(self.folder)
        except OSError as error:
            return f"should be deleted ({error.strerror or error})"
        return "was thrown away as unsound"

    def write(self, checkpoint: Checkpoint, lookup: Callable[[str], Leaf], progress: Progress | None = None) -> None:
        """Makes the copy, whole or not at all, and removes those of the same source as it was, and of sources that are
        gone. lookup: what gives panels. Nothing happens where the copy is there already.

        Raises GemmaryError where the disk refuses, another process is making a copy, or the source has changed since it
        was opened.
        """
        from gemmary.checkpoints.packed import write_weights

        with _locked():
            for old in copies():
                if old.is_stale(self):
                    remove(old.folder)
            _sweep()
            if self.folder.exists():
                return
            if _stamps(checkpoint) != self.made_from["files"]:
                raise GemmaryError(f"the files of {checkpoint.name} have changed since they were opened")
            with atomic_folder(self.folder) as folder:
                write_weights(checkpoint.config, lookup, folder, progress)
                _write_tokenizer(checkpoint, folder)
                record = {**self.made_from, "wrote": _facts(folder)}
                (folder / _RECORD).write_text(json.dumps(record, indent=1), encoding="ascii")  # whatever a path holds


@dataclass(frozen=True)
class Held:
    """A copy that lies there."""

    folder: Path
    record: dict[str, Any]
    size: int
    """Bytes on disk."""

    @property
    def source(self) -> Path:
        """The file or folder that it was made from; itself where it does not say."""
        return Path(self.record.get("source", self.folder))

    @property
    def source_size(self) -> int:
        """Bytes of the source's files that are still there."""
        return sum(os.path.getsize(file) for file, *_ in self.record.get("files", []) if os.path.exists(file))

    def is_of(self, place: Path) -> bool:
        """Whether its source lies at or below a place."""
        return self.source.is_relative_to(place.resolve())

    def is_stale(self, new: PackedCopy) -> bool:
        """Whether its source is gone; or is that of another copy now, which was made from it as it is."""
        if self.source_size == 0:
            return True
        same = [key for key in new.made_from if key not in ("quant", "dtype")]
        return self.record.get("source") == new.made_from["source"] and any(
            self.record.get(key) != new.made_from[key] for key in same
        )


def copy_of(
    checkpoint: Checkpoint, version: str, quant: str | None = None, dtype: str | None = None
) -> PackedCopy | None:
    """The copy that a version of Gemmary has of a checkpoint's weights, as they are or in `quant`, held as `dtype` (see
    `gemmary.load`). None where nothing is packed, or the user wants no copies (GEMMARY_KEEP_PACKED=0)."""
    if checkpoint.format in ("packed", "random") or wanted() is False or (stamps := _stamps(checkpoint)) is None:
        return None
    from gemmary import _core

    made_from = {
        "source": str(checkpoint.path.resolve()),
        "files": stamps,
        "quant": quant,
        "dtype": dtype,
        "layout": _core.PACKED_VERSION,
        "gemmary": version,
    }
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:32]
    return PackedCopy(home() / key, made_from)


def wanted() -> bool | None:
    """What the user has decided for good: GEMMARY_KEEP_PACKED=1 keeps a copy of whatever the command line runs, 0 keeps
    and uses none; None: nothing was said. Raises GemmaryError for anything else."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise GemmaryError(f"{VARIABLE} is 0 (no packed copies) or 1 (always), not {value!r}")
    return None if value == "" else value == "1"


def is_worthwhile(nbytes: int) -> bool:
    """Whether a copy of so many bytes is kept without being asked for: it saves time, and leaves the disk room."""
    if (said := wanted()) is not None:
        return said
    if nbytes < LEAST_BYTES:
        return False
    place = next(folder for folder in (home(), *home().parents) if folder.exists())
    return shutil.disk_usage(place).free >= ROOM * nbytes


def home() -> Path:
    """Where the copies lie."""
    return starter.cache_folder() / "packed"


def copies() -> list[Held]:
    """Every copy that is here."""
    found = []
    for folder in sorted(home().glob("*")):
        if _KEY.fullmatch(folder.name) is None or not folder.is_dir():  # somebody else's
            continue
        record: dict[str, Any] = {}
        with suppress(GemmaryError):
            record = read_json(folder / _RECORD, _MOST_RECORD)
        with suppress(FileNotFoundError):  # another process deletes it
            found.append(Held(folder, record, sum(file.stat().st_size for file in folder.iterdir())))
    return found


def bytes_of(place: Path) -> int:
    """Bytes of the copies of what lies at or below a place."""
    return sum(held.size for held in copies() if held.is_of(place))


def others(places: list[Path]) -> list[tuple[Path, int, int]]:
    """Sources of copies that lie at or below none of these places, the bytes of each, and those of its copies."""
    found: dict[Path, list[Held]] = {}
    for held in copies():
        if not any(held.is_of(place) for place in places):
            found.setdefault(held.source, []).append(held)
    return [(source, held[0].source_size, sum(each.size for each in held)) for source, held in found.items()]


def remove(place: Path | None = None) -> int:
    """Deletes the copies of what lies at or below a place, or that lie there themselves; None: all. Returns the bytes
    that are free again. A process that has mapped one goes on with it. Raises GemmaryError where the disk refuses."""
    freed = 0
    try:
        for held in copies():
            if place is None or held.folder == place or held.is_of(place):
                _discard(held.folder)
                freed += held.size
        if place is None and home().is_dir():
            with suppress(GemmaryError), _locked():
                _sweep()
    except OSError as error:
        raise GemmaryError(f"cannot remove packed copies in {home()}: {error.strerror or error}") from error
    return freed


# Files --------------------------------------------------------------------------------------------------------------

_MOST_RECORD = 1 << 22
"""Bytes of a `kept.json`: a folder of Orbax's may have thousands of files."""


def _files(checkpoint: Checkpoint) -> list[Path]:
    """Every file that the model may come from, but for hidden ones and copies."""
    path, tower = checkpoint.path, checkpoint.tower_path
    if path.is_dir():
        below = [file for file in path.rglob("[!.]*") if file.is_file() and not file.is_relative_to(home())]
        files = sorted(f for f in below if not any(part.startswith(".") for part in f.relative_to(path).parts))
    else:
        files = list(parts_of(path)) if checkpoint.format == "big_vision" else [path]
    return [*dict.fromkeys([*files, *checkpoint.weight_files, *([] if tower is None else [tower])])]


def _stamps(checkpoint: Checkpoint) -> list[list[Any]] | None:
    """What tells a source from any other at its place: the times of change, too, which no program sets. None while
    files come and go."""
    with suppress(FileNotFoundError):
        return [[str(file.resolve()), *_stamp(file), file.stat().st_ctime_ns] for file in _files(checkpoint)]
    return None


def _stamp(file: Path) -> list[int]:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _facts(folder: Path) -> dict[str, list[int]]:
    """Sizes and times of what a copy holds beside `kept.json`."""
    with suppress(OSError):
        return {f.name: _stamp(f) for f in sorted(folder.iterdir()) if f.name not in (_RECORD, "SHA256SUMS")}
    return {}


def _write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """As the file that is read soonest; where a checkpoint has none, or one that such a file cannot say, nothing."""
    with suppress(GemmaryError):
        tokenizer = checkpoint.tokenizer
        if tokenizer.add_bos:
            (folder / _TOKENIZER).write_bytes(tokenizer.to_model_bytes())


def _discard(folder: Path) -> None:
    """Takes a copy out of sight at once, and then away."""
    hidden = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    os.replace(folder, hidden)
    shutil.rmtree(hidden)


def _sweep() -> None:
    """Removes what a killed process left. Only called under the lock."""
    for left in home().glob(".*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _locked() -> AbstractContextManager[None]:
    """Held while copies are made or swept."""
    return only_one(home() / ".lock", "another process is making a packed copy just now")
