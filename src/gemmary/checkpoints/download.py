"""Fetching a model from the hub into its shared cache, each weight file resumable to the byte.

`huggingface_hub` finds, authenticates and lays out the files. Large files (those that the hub keeps under their
SHA-256) are fetched here first, because the library starts a broken-off file from its beginning: into a partial file
beside the cache's blobs, under the library's own lock, checked against that SHA-256, then named. `snapshot_download`
finds them there and does the rest.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from gemmary.checkpoints import hub, starter
from gemmary.checkpoints.hub import HubName
from gemmary.checkpoints.hub_errors import plain_errors
from gemmary.checkpoints.hub_files import select_files
from gemmary.checkpoints.hub_layouts import list_of, orbax_folders
from gemmary.checkpoints.starter import Progress
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.memory import size

_WORKERS = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOCK = 1 << 20


def pull(name: str, progress: Progress | None = None) -> Path:
    """Fetches what is missing of a model and returns where it lies, as `hub.resolve` does.

    Broken off at any point (Ctrl-C, a lost connection, kill -9), the next call fetches only the rest. Raises
    GemmaryError that tells apart: no token, licence not accepted, no network, not found, disk full.
    """
    if name == starter.NAME:
        return starter.starter_path(progress)
    if name == starter.VISION_NAME:
        return starter.vision_path()
    hub_name = hub.parse(name)
    if hub_name is None:
        if name and Path(name).exists():
            raise GemmaryError(f"{name} is a file or folder of this machine: there is nothing to fetch")
        raise hub.unknown(name)
    with plain_errors(hub_name), _quiet_library():
        _fetch(hub_name, progress)
    return hub.resolve(str(hub_name))


def fetch_file(url: str, path: Path, sha256: str, size: int) -> None:
    """Fetches one small file that lies outside the hub, unless it is there; broken off, it goes on where it was.

    It takes its name once its SHA-256 is the one that is expected. Raises GemmaryError, one line.
    """
    from huggingface_hub.file_download import http_get

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".gemmary-partial")
    with _locked(path.with_name(path.name + ".lock")):
        if path.is_file():
            return
        try:
            with _quiet_library(), open(partial, "ab") as stream:
                if stream.tell() > size:
                    stream.truncate(0)
                http_get(url, stream, resume_size=stream.tell(), expected_size=size)
        except Exception as error:  # the library's errors differ from one of its versions to the next
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GemmaryError(f"cannot fetch {url} ({first}): fetch it elsewhere and put it at {path}") from error
        if _sha256(partial) != sha256:
            partial.unlink()
            raise GemmaryError(f"{url} arrived damaged (SHA-256 differs): try again")
        os.replace(partial, path)


def _fetch(hub_name: HubName, progress: Progress | None) -> None:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi(library_name="gemmary").model_info(hub_name.repo, revision=hub_name.revision, files_metadata=True)
    siblings = {file.rfilename: file for file in info.siblings or ()}
    files = select_files({name: int(file.size or 0) for name, file in siblings.items()}, hub_name)
    folder = hub.repo_folder(hub_name.repo)
    if orbax_folders(files):
        with atomic_file(list_of(folder / "snapshots" / str(info.sha))) as listed:
            listed.write(json.dumps(files).encode())
    large = [
        _Large(name, str(info.sha), lfs.sha256, lfs.size, folder)
        for name in files
        if (lfs := siblings[name].lfs) is not None
    ]
    _check_space(hub_name, large)
    meter = _Meter(f"fetching {hub_name}", sum(int(siblings[name].size or 0) for name in files), progress)
    _fetch_large(hub_name.repo, [file for file in large if _SHA256.fullmatch(file.sha256)], meter)
    snapshot_download(
        hub_name.repo,
        revision=hub_name.revision,
        cache_dir=hub.hub_cache(),
        allow_patterns=files,
        library_name="gemmary",
    )
    meter.finish()


# Large files -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Large:
    """A file that the hub keeps under its SHA-256."""

    name: str
    commit: str
    sha256: str
    size: int
    folder: Path

    @property
    def blob(self) -> Path:
        return self.folder / "blobs" / self.sha256

    @property
    def partial(self) -> Path:
        return self.blob.with_name(self.sha256 + ".gemmary-partial")

    @property
    def present(self) -> int:
        """Bytes of it that are on disk."""
        if self.blob.exists():
            return self.size
        return self.partial.stat().st_size if self.partial.is_file() else 0


def _fetch_large(repo: str, files: list[_Large], meter: _Meter) -> None:
    pool = ThreadPoolExecutor(max_workers=_WORKERS)
    try:
        for future in as_completed([pool.submit(_fetch_one, repo, file, meter) for file in files]):
            future.result()
    finally:
        meter.stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch_one(repo: str, file: _Large, meter: _Meter) -> None:
    """Fetches the rest of one file, unless another process is just doing so: then waits and looks again."""
    file.blob.parent.mkdir(parents=True, exist_ok=True)
    with _locked(hub.hub_cache() / ".locks" / file.folder.name / f"{file.sha256}.lock"):
        if not file.blob.exists():
            with open(file.partial, "ab") as stream:
                _complete(repo, file, _Sink(stream, file.name, meter))
                stream.flush()
                os.fsync(stream.fileno())
            if _sha256(file.partial) != file.sha256:
                file.partial.unlink()
                raise GemmaryError(f"{file.name} of {repo} arrived damaged (SHA-256 differs): pull it again")
            os.replace(file.partial, file.blob)
    meter.at(file.name, file.size)


def _complete(repo: str, file: _Large, sink: _Sink) -> None:
    """Appends what is missing. Signed addresses expire, so a refusal after some progress asks for a fresh one."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(repo, file.name, revision=file.commit)
    while True:
        headers = build_hf_headers(library_name="gemmary")
        metadata = get_hf_file_metadata(url)
        if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
            headers.pop("authorization", None)  # the token is for the hub alone, not for the host that stores the bytes
        if sink.tell() > file.size:
            sink.truncate(0)
        begin = sink.tell()
        sink.meter.at(file.name, begin)
        try:
            http_get(metadata.location, sink, resume_size=begin, headers=headers, expected_size=file.size)  # type: ignore[arg-type]
            return
        except HfHubHTTPError:
            if sink.tell() == begin:
                raise


class _Sink:
    """The partial file as `http_get` sees it: tells the meter, and stops where another file failed."""

    def __init__(self, stream: BinaryIO, name: str, meter: _Meter) -> None:
        self._stream = stream
        self._name = name
        self.meter = meter

    def write(self, data: bytes) -> int:
        if self.meter.stopped.is_set():
            raise GemmaryError("stopped")
        written = self._stream.write(data)
        self.meter.at(self._name, self._stream.tell())
        return written

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def truncate(self, length: int | None = None) -> int:
        return self._stream.truncate(length)


class _Meter:
    """Sums the bytes of files that arrive at the same time."""

    def __init__(self, what: str, total: int, progress: Progress | None) -> None:
        self.stopped = threading.Event()
        self._what, self._total, self._progress = what, total, progress
        self._lock = threading.Lock()
        self._done: dict[str, int] = {}

    def at(self, name: str, done: int) -> None:
        with self._lock:
            self._done[name] = done
            if self._progress and not self.stopped.is_set():
                self._progress(self._what, min(sum(self._done.values()), self._total), self._total)

    def finish(self) -> None:
        if self._progress:
            self._progress(self._what, self._total, self._total)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock that huggingface_hub takes for the same blob."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _check_space(hub_name: HubName, files: list[_Large]) -> None:
    needed = sum(file.size - min(file.present, file.size) for file in files)
    place = hub.hub_cache()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if needed > free:
        raise GemmaryError(
            f"{hub_name} needs {size(needed)} of disk and {place} has {size(free)} free: set HF_HOME elsewhere"
        )


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Turns off the library's own progress bars and warnings while ours tell the same."""
    from huggingface_hub import utils
    from huggingface_hub.utils import logging as library_logging

    library: Any = utils
    bars = not library.are_progress_bars_disabled()
    level = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.ERROR)
    if bars:
        library.disable_progress_bars()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library.enable_progress_bars()
