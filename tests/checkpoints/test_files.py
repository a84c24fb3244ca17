"""Writes are whole or nothing: a full disk, a failed rename, a body that raises."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary import files
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.errors import GemmaryError
from gemmary.files import PIECE, HashingFile, atomic_file, atomic_folder
from tests.checkpoints.sources import files_of, same_leaves, tiny


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after(calls: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, until the disk is full."""
    left = [calls]

    def call(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        return full() if left[0] < 0 else real(*args, **kwargs)

    return call


FAILURES: list[tuple[Any, str, int]] = [
    (HashingFile, "write", 0),
    (HashingFile, "write", 9),
    (os, "fsync", 0),
    (os, "replace", 0),
]


@pytest.mark.parametrize(("owner", "name", "calls"), FAILURES)
@pytest.mark.parametrize("format", ["gguf", "safetensors"])
def test_a_full_disk_changes_nothing(
    format: str, owner: Any, name: str, calls: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf" if format == "gguf" else tmp_path / "m"
    if format == "gguf":
        save_checkpoint(tiny("gemma", seed=1), path, format=format)
    before = {n: (tmp_path / n).read_bytes() for n in files_of(tmp_path)}
    monkeypatch.setattr(owner, name, full_after(calls, getattr(owner, name)))
    with pytest.raises(GemmaryError, match="No space left on device; nothing was changed"):
        save_checkpoint(tiny("gemma", seed=2), path, format=format)
    monkeypatch.undo()
    after = {n: (tmp_path / n).read_bytes() for n in files_of(tmp_path)}
    if name == "replace":  # the checksum goes before the rename: one that is missing is better than one that is wrong
        before.pop("m.gguf.sha256", None)
    assert after == before
    if format == "gguf":
        same_leaves(open_checkpoint(path), tiny_as_gguf(1))


def tiny_as_gguf(seed: int) -> Any:
    from tests.checkpoints.test_gguf import stored_as

    return stored_as(tiny("gemma", seed=seed), "F32")


def test_a_file_is_replaced_with_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "a" / "f.bin"
    for data in (b"one", b"two"):
        with atomic_file(path, checksum=True) as out:
            out.write(data)
            assert not path.exists() or path.read_bytes() == b"one"
        assert path.read_bytes() == data
        assert (tmp_path / "a" / "f.bin.sha256").read_text() == f"{hashlib.sha256(data).hexdigest()}  f.bin\n"
    assert files_of(tmp_path) == ["a/f.bin", "a/f.bin.sha256"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~files._umask()


def test_a_body_that_raises_leaves_nothing(tmp_path: Path) -> None:
    def half_a_file() -> None:
        with atomic_file(tmp_path / "f") as out:
            out.write(b"half")
            raise KeyboardInterrupt

    def half_a_folder() -> None:
        with atomic_folder(tmp_path / "d") as folder:
            (folder / "x").write_text("half")
            raise KeyboardInterrupt

    for half in (half_a_file, half_a_folder):
        with pytest.raises(KeyboardInterrupt):
            half()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").write_text("kept")
    with pytest.raises(GemmaryError, match="already exists"):
        save_checkpoint(tiny("gemma"), tmp_path / "m")
    assert files_of(tmp_path) == ["m/mine"]
    (tmp_path / "m" / "mine").unlink()
    save_checkpoint(tiny("gemma"), tmp_path / "m")  # an empty one is taken
    assert "m/config.json" in files_of(tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GemmaryError, match=r"cannot write .*nothing was changed"):
        save_checkpoint(tiny("gemma"), tmp_path / "file" / "m.gguf", format="gguf")


class Raw(io.RawIOBase):
    """A file that remembers how it was written."""

    def __init__(self) -> None:
        self.held, self.places = bytearray(), list[int]()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.places.append(len(self.held))
        self.held += memoryview(data).cast("B")
        return memoryview(data).nbytes


def test_writes_begin_where_pages_do() -> None:
    random = np.random.default_rng(1)
    parts = [random.integers(0, 256, size, dtype=np.uint8) for size in (100, PIECE, 3 * PIECE + 7, 0, 1, PIECE - 108)]
    raw = Raw()
    with io.BufferedWriter(raw, PIECE) as buffered:
        file = HashingFile(buffered)  # type: ignore[arg-type]
        for part in parts:
            file.write(part)
        buffered.flush()
        whole = b"".join(part.tobytes() for part in parts)
        assert bytes(raw.held) == whole
        assert file.hexdigest() == hashlib.sha256(whole).hexdigest()
        assert file.position == len(whole)
        assert raw.places == list(range(0, len(whole), PIECE))
