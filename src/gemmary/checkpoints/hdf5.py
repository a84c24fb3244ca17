"""Reads the arrays of HDF5 files (`.h5`), with h5py, and nothing that such a file can reach beside its own bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gemmary.checkpoints.fields import show
from gemmary.checkpoints.stored import Array, Index, Stored
from gemmary.errors import GemmaryError

_MOST_ARRAYS = 20_000
_MOST_DEPTH = 12
_FILTERS = frozenset({1, 2, 3})
"""Deflate, shuffle and a checksum. Others are plug-ins."""


def h5py() -> Any:
    """The library. Raises GemmaryError where it is not installed."""
    try:
        import h5py
    except ImportError:
        raise GemmaryError('KerasHub presets need h5py: pip install "gemmary[keras]"') from None
    return h5py


def read_files(paths: Iterable[Path]) -> dict[str, Stored]:
    """The arrays of some files by their places in them; of two files none holds the same place.

    Raises GemmaryError for an unsound file, and one that links to others.
    """
    library = h5py()
    found: dict[str, Stored] = {}
    for path in paths:
        try:
            file = library.File(path, "r")
            try:
                arrays = dict(_arrays(path, library, file, "", 0))
            except BaseException:
                file.close()
                raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise GemmaryError(f"{path} is not a sound HDF5 file: {_line(error)}") from None
        if twice := sorted(arrays.keys() & found.keys()):
            raise GemmaryError(f"{path} holds {show(twice[0])}, which another file holds too")
        found |= arrays
        if len(found) > _MOST_ARRAYS:
            raise GemmaryError(f"{path} holds more than {_MOST_ARRAYS:,} arrays")
    return found


def _arrays(path: Path, library: Any, group: Any, before: str, depth: int) -> Iterator[tuple[str, Stored]]:
    if depth > _MOST_DEPTH or len(group) > _MOST_ARRAYS:
        raise ValueError("it is nested deeper, or wider, than a model is")
    for key in group:
        place = before + key
        if not isinstance(group.get(key, getlink=True), library.HardLink):
            raise ValueError(f"{place!a} is a link")
        item = group[key]
        if isinstance(item, library.Group):
            yield from _arrays(path, library, item, place + "/", depth + 1)
        elif isinstance(item, library.Dataset):
            yield place, _stored(path, item, place)


def _stored(path: Path, item: Any, place: str) -> Stored:
    plist = item.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if item.is_virtual or item.external or filters - _FILTERS:
        raise ValueError(f"{place!a} lies outside of the file or needs a plug-in")
    dtype = str(item.dtype)
    if dtype == "|V2" and item.attrs.get("dtype") == "bfloat16":
        dtype = "bfloat16"  # as Keras stores it
    return Stored(tuple(item.shape), dtype, partial(_read, path, item, dtype))


def _read(path: Path, item: Any, dtype: str, index: Index) -> Array:
    try:
        found: Array = item[index] if index else item[()]
    except (OSError, RuntimeError, ValueError) as error:
        raise GemmaryError(f"{path} is not a sound HDF5 file: {_line(error)}") from None
    return found.view(np.dtype(ml_dtypes.bfloat16)) if dtype == "bfloat16" else found


def _line(error: Exception) -> str:
    return ascii(" ".join(str(error).split()))[1:-1][:200]
