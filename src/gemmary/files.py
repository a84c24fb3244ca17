"""Writing so that nothing on disk is ever half-written: a temporary sibling, fsync, rename, fsync of the folder.

A reader sees the old thing or the new thing. Checksums are in the format of `sha256sum`, so `sha256sum -c` checks them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from gemmary.errors import GemmaryError

PIECE = 1 << 21
"""Bytes of a large page. What is written in whole ones lies in them in the page cache, where the file system has large
folios (Linux: XFS, ext4 from 6.16), and is mapped in them."""


class HashingFile:
    """A binary file for writing that knows the SHA-256 of what was written. One that was opened with `buffering=PIECE`
    is written in whole pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.position = 0

    def write(self, data: Any) -> None:
        """Writes all of a bytes-like object (an array included)."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        while view:
            count = PIECE - self.position % PIECE
            self._file.write(view[:count])
            self.position += len(view[:count])
            view = view[count:]

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


@contextmanager
def atomic_file(path: Path, *, checksum: bool = False) -> Iterator[HashingFile]:
    """Opens a file that takes the place of `path` when the block ends well, and never existed when it does not.

    checksum: also write `<path>.sha256`. Raises GemmaryError where the disk is full or the folder cannot be written.
    """
    beside = path.with_name(path.name + ".sha256")
    with _plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(number, "wb") as file:
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                hashing = HashingFile(cast(BinaryIO, file))
                yield hashing
                file.flush()
                os.fsync(file.fileno())
            # An old checksum beside a new file would call it corrupt, so it goes first.
            beside.unlink(missing_ok=True)
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
    if checksum:
        with atomic_file(beside) as sums:
            sums.write(f"{hashing.hexdigest()}  {path.name}\n".encode())


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder that becomes `path` when the block ends well, with a `SHA256SUMS` of its files in it.

    Raises GemmaryError where `path` already holds something, the disk is full or the place cannot be written.
    """
    with _plain_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise GemmaryError(f"{path} already exists: choose another name or remove it")
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            _seal(temporary)
            os.replace(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def staged(target: Path, *, is_folder: bool) -> Iterator[Path]:
    """A hidden folder beside the target, whose contents move to where it stands when the block ends well: for what is
    checked or measured before it has its name.

    Raises GemmaryError where the target is something else than a file that is replaced, or an empty folder.
    """
    if target.exists() and (target.is_dir() != is_folder or (is_folder and any(target.iterdir()))):
        raise GemmaryError(f"{target} already exists: choose another name or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    except OSError as error:
        raise GemmaryError(f"cannot write {target}: {error.strerror or error}; nothing was changed") from error
    try:
        try:
            yield place
        except GemmaryError as error:
            raise GemmaryError(str(error).replace(str(place), str(target.parent))) from error
        try:
            around = [made for made in place.iterdir() if made.name != target.name]
            for made in around:  # an old checksum beside a new file would call it corrupt
                (target.parent / made.name).unlink(missing_ok=True)
            for made in (place / target.name, *around):
                os.replace(made, target.parent / made.name)
            fsync_folder(target.parent)
        except OSError as error:
            raise GemmaryError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def only_one(lock: Path, busy: str) -> Iterator[None]:
    """One process at a time has the lock, a file in a folder that is made where it is not there; a process that dies
    lets go.

    Raises GemmaryError: `busy` where another process has it, and where the place cannot be written or locked.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = open(lock, "wb")  # noqa: SIM115
    except OSError as error:
        raise GemmaryError(f"cannot write {lock.parent}: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GemmaryError(busy) from None
        except OSError as error:
            raise GemmaryError(f"cannot lock {lock}: {error.strerror or error}") from error
        yield


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder as durable as the files' contents."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _seal(folder: Path) -> None:
    """Writes the checksums of every file below `folder` and makes all of it durable."""
    lines = []
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        with open(file, "rb+") as stream:
            digest = _sha256(stream)
            os.fsync(stream.fileno())
        lines.append(f"{digest}  {file.relative_to(folder).as_posix()}\n")
    with open(folder / "SHA256SUMS", "w", encoding="utf-8") as sums:
        sums.writelines(lines)
        sums.flush()
        os.fsync(sums.fileno())
    for inner in [folder, *(p for p in folder.rglob("*") if p.is_dir())]:
        fsync_folder(inner)


def check_folder(path: Path) -> None:
    """Raises GemmaryError where the folder's files are not those of its `SHA256SUMS`, all of them and no others."""
    try:
        lines = (path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
        told = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        found = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        del found["SHA256SUMS"]
        for name in sorted(told.keys() | found.keys()):
            if name not in found or name not in told:
                raise GemmaryError(f"{path} is damaged: {name} is {'missing' if name in told else 'not its own'}")
            with open(found[name], "rb") as stream:
                if _sha256(stream) != told[name]:
                    raise GemmaryError(f"{path} is damaged: {name} is not what was written")
    except (OSError, UnicodeDecodeError) as error:
        raise GemmaryError(f"{path} is damaged: its SHA256SUMS or files cannot be read") from error


def _sha256(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := stream.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GemmaryError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
