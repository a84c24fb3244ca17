"""Arrays in a `.npz` file, or in its parts `x.npz.part0`, `x.npz.part1`, …, mapped instead of read.

Members must be stored as they are (numpy's `savez`): then an array is a view of the file, or of the two parts that it
lies across. numpy writes bfloat16 as nameless two-byte values; they are taken for what they are.
"""

from __future__ import annotations

import io
import mmap
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, cast

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError

_DTYPES = {
    "<f4": np.dtype(np.float32),
    "<f2": np.dtype(np.float16),
    "|V2": np.dtype(ml_dtypes.bfloat16),
}
"""How .npy headers call what is read."""
_PART = re.compile(r"\.part-?(\d{1,4})$")
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Member:
    """An array of the file: where its numbers begin, and what they are."""

    begin: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class NpzFile:
    """Raises GemmaryError where the file is not a sound `.npz`, before any array is read."""

    def __init__(self, path: Path) -> None:
        """path: the file, or, where it does not exist, what its parts are called before `.part…`."""
        self.path = path
        self.parts = parts_of(path)
        self._maps: list[mmap.mmap] = []
        try:
            for part in self.parts:
                with open(part, "rb") as file:
                    self._maps.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            self.size = sum(map(len, self._maps))
            self.members = dict(self._read_members())
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise GemmaryError(f"{path} is not a sound .npz file: {str(error).splitlines()[0]}") from None

    def array(self, name: str) -> npt.NDArray[Any]:
        """One array, read-only: a view of the file where it lies in one part, aligned."""
        member = self.members[name]
        return self._values(member.begin, member.dtype, member.shape)

    def part(self, name: str, index: int) -> npt.NDArray[Any]:
        """Element `index` of the first axis of an array, as `array` gives it."""
        member = self.members[name]
        shape = member.shape[1:]
        return self._values(member.begin + index * prod(shape) * member.dtype.itemsize, member.dtype, shape)

    def _values(self, begin: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        data = self.bytes(begin, begin + prod(shape) * dtype.itemsize)
        if data.__array_interface__["data"][0] % dtype.itemsize:
            data = data.copy()
        return data.view(dtype).reshape(shape)

    def bytes(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """Bytes of the file as if it were in one part."""
        found: list[npt.NDArray[np.uint8]] = []
        start = 0
        for part in self._maps:
            low, high = max(begin, start), min(end, start + len(part))
            if low < high:
                found.append(np.frombuffer(part, np.uint8, high - low, low - start))
            start += len(part)
        if len(found) == 1:
            return found[0]
        return np.concatenate([*found, np.empty(0, np.uint8)])

    def _read_members(self) -> Iterator[tuple[str, Member]]:
        with zipfile.ZipFile(cast(BinaryIO, io.BufferedReader(_Whole(self), 1 << 16))) as archive:
            for item in archive.infolist():
                if item.compress_type != zipfile.ZIP_STORED or item.flag_bits & 1:
                    raise ValueError(f"{item.filename!a} is compressed, so it cannot be mapped")
                with archive.open(item) as file:
                    start = file.read(min(item.file_size, _HEADER_BYTES))
                stream = io.BytesIO(start)
                version = np.lib.format.read_magic(stream)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }.get(version)
                if read is None:
                    raise ValueError(f"{item.filename!a} is in version {version} of .npy")
                shape, fortran, dtype = read(stream)
                if dtype.str not in _DTYPES or fortran:
                    raise ValueError(f"{item.filename!a} holds {dtype.str} numbers{' by columns' * fortran}")
                begin = self._begin(item) + stream.tell()
                bytes_left = item.file_size - stream.tell()
                found = Member(begin, _DTYPES[dtype.str], tuple(shape))
                if prod(found.shape) * found.dtype.itemsize != bytes_left or begin + bytes_left > self.size:
                    raise ValueError(f"{item.filename!a} does not have the bytes that its shape needs")
                yield item.filename.removesuffix(".npy"), found

    def _begin(self, item: zipfile.ZipInfo) -> int:
        """Where the bytes of a member begin: behind its local header, whose extra field the directory does not tell."""
        header = self.bytes(item.header_offset, item.header_offset + 30)
        if len(header) != 30:
            raise ValueError(f"{item.filename!a} lies outside of the file")
        name, extra = header[26:30].view("<u2").tolist()
        return int(item.header_offset + 30 + name + extra)


class _Whole(io.RawIOBase):
    """The parts as one stream."""

    def __init__(self, file: NpzFile) -> None:
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._file.bytes(self._at, min(self._at + len(buffer), self._file.size))
        buffer[: len(data)] = data.tobytes()
        self._at += len(data)
        return len(data)


def parts_of(path: Path) -> list[Path]:
    """The file itself, or its parts in their order. Raises GemmaryError where there is neither, or one is missing."""
    if path.is_file():
        return [path]
    numbered: dict[int, Path] = {}
    if path.parent.is_dir():
        for file in path.parent.iterdir():
            if file.name.startswith(path.name) and (found := _PART.fullmatch(file.name[len(path.name) :])):
                numbered[int(found[1])] = file
    if not numbered:
        raise GemmaryError(f"there is no file {path}, nor parts of it ({path.name}.part0, …)")
    first = min(numbered)
    if first > 1 or sorted(numbered) != list(range(first, first + len(numbered))):
        raise GemmaryError(
            f"of the parts of {path} some are missing: there are {', '.join(map(str, sorted(numbered)))}"
        )
    return [numbered[number] for number in sorted(numbered)]


@contextmanager
def writing(out: Any) -> Iterator[zipfile.ZipFile]:
    """A `.npz` written front to back into something with `write`."""
    with zipfile.ZipFile(cast(BinaryIO, _Onward(out)), "w", zipfile.ZIP_STORED) as archive:
        yield archive


class _Onward:
    """Nothing but `write`, so that zipfile does not seek."""

    def __init__(self, out: Any) -> None:
        self._out = out

    def write(self, data: Any) -> int:
        self._out.write(data)
        return len(data)

    def flush(self) -> None:
        """What is below flushes when it is closed."""


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """The start of a member's bytes. dtype: `F32`, `BF16` or `F16`."""
    said = {"F32": "<f4", "BF16": "|V2", "F16": "<f2"}[dtype]
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": said, "fortran_order": False, "shape": shape})
    return stream.getvalue()
