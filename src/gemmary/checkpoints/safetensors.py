"""The safetensors format: a strict reader of untrusted headers, and a writer that streams.

A file is: the header's length (uint64, little-endian), the header (JSON), the tensors' bytes. Strict means: every dtype
is known, no name stands twice, and the tensors fill the file from the header's end to its last byte with no hole and no
overlap. Tensors are views of the mapped file; nothing is copied (the `safetensors` package copies).
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import numpy.typing as npt

from gemmary.checkpoints.json_files import MAX_JSON_BYTES, parse_json
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile

MAX_HEADER_BYTES = MAX_JSON_BYTES
"""The largest Gemma, whole in one file, needs under 170 kB. The format allows 100 MB."""

_BITS = {
    "F64": 64,
    "F32": 32,
    "F16": 16,
    "BF16": 16,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "I64": 64,
    "I32": 32,
    "I16": 16,
    "I8": 8,
    "U64": 64,
    "U32": 32,
    "U16": 16,
    "U8": 8,
    "BOOL": 8,
}
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
"""The dtypes that a weight may have."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file. begin and end are bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """What the header of a file says."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def parse_header(start: bytes, file_size: int) -> Header:
    """The tensors of a file and its metadata, from its first bytes (at least its whole header) and its size.

    Raises GemmaryError with a line that says what is wrong, without the name of the file.
    """
    if len(start) < 8:
        raise GemmaryError("it is shorter than the length of a header")
    length = struct.unpack_from("<Q", start)[0]
    if length > MAX_HEADER_BYTES:
        raise GemmaryError(f"its header claims {length} bytes, more than the {MAX_HEADER_BYTES} that are read")
    if length > file_size - 8 or length > len(start) - 8:
        raise GemmaryError("it is truncated inside its header")
    header = parse_json(start[8 : 8 + length], "its header")
    base = 8 + length
    entries = {name: _entry(name, item, base) for name, item in header.items() if name != "__metadata__"}
    end = base
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != end:
            raise GemmaryError(f"tensor {show(name)} {'overlaps another' if entry.begin < end else 'follows a hole'}")
        end = entry.end
    if end != file_size:
        raise GemmaryError("it is truncated" if end > file_size else "something follows its last tensor")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(type(value) is str for value in metadata.values()):
        raise GemmaryError("its metadata are not texts by name")
    return Header(entries, metadata)


def _entry(name: str, item: Any, base: int) -> Entry:
    if not isinstance(item, dict) or item.keys() != {"dtype", "shape", "data_offsets"}:
        raise GemmaryError(f"the header's entry of tensor {show(name)} is malformed")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise GemmaryError(f"tensor {show(name)} has an unknown dtype")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(shape) > 8 or len(offsets) != 2:
        raise GemmaryError(f"tensor {show(name)} has a malformed shape or offset")
    if offsets[1] - offsets[0] != tensor_bytes(dtype, shape):
        raise GemmaryError(f"tensor {show(name)} does not have the bytes that its shape needs")
    return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor in a file."""
    return prod(shape) * _BITS[dtype] // 8


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in value)


def show(name: str) -> str:
    """A name out of a file, made fit for a message: one short printable line."""
    return ascii(name if len(name) <= 80 else name[:77] + "...")


class SafetensorsFile:
    """A mapped file. Raises GemmaryError when it is not sound, before any tensor is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = file.read(8)
                if len(start) == 8:
                    start += file.read(min(struct.unpack("<Q", start)[0], MAX_HEADER_BYTES, size))
                self.entries, self.metadata = parse_header(start, size)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except GemmaryError as error:
            raise GemmaryError(f"{path} is not a sound safetensors file: {error}") from None
        except OSError as error:
            raise GemmaryError(f"cannot read {path}: {error.strerror or error}") from error

    def in_large_pages(self) -> None:
        """Asks for 2 MiB pages. Linux gives them to what it has yet to read, on file systems with large folios; what it
        holds already stays as it lies."""
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)

    def array(self, name: str) -> npt.NDArray[Any]:
        """A tensor of one of `DTYPES`, as a read-only view of the file."""
        entry = self.entries[name]
        dtype = DTYPES[entry.dtype]
        flat = self.data(name)
        if entry.begin % dtype.itemsize:
            flat = flat.copy()  # a file may place a tensor at any byte; numpy and the kernels want it aligned
        return flat.view(dtype).reshape(entry.shape)

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a tensor, where they stand in the file."""
        entry = self.entries[name]
        return np.frombuffer(self._map, np.uint8, entry.end - entry.begin, entry.begin)


Plan = Sequence[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of each tensor of a file, in its order."""


def layout(tensors: Plan, metadata: dict[str, str] | None = None) -> tuple[bytes, int]:
    """The header of a file, and the bytes of the tensors after it, the first of which begins at a multiple of 64."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if metadata is None else metadata}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + tensor_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return struct.pack("<Q", len(text)) + text, end


def write(
    out: HashingFile,
    tensors: Plan,
    data: Iterable[Iterator[npt.NDArray[Any]]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a whole file: its header, then each tensor's pieces. metadata: None says what transformers wants."""
    header, total = layout(tensors, metadata)
    out.write(header)
    for pieces in data:
        for piece in pieces:
            out.write(np.ascontiguousarray(piece).view(np.uint8))
    if out.position != len(header) + total:
        raise AssertionError("the tensors' bytes do not match the header")
