"""What is done of a long job, kept in a hidden folder beside its result until all of it is: a killed job goes on.

Each matrix is a file of its own, which has its name only once it is whole. `job.json` says what job they belong to; the
parts of another job are never used. One process at a time works on a result.
"""

from __future__ import annotations

import glob
import json
import mmap
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.files import atomic_file, only_one
from gemmary.quantize.blocks import row_bytes
from gemmary.quantize.leaves import Blocks, padded_columns

Bytes = npt.NDArray[np.uint8]


class Parts:
    """The matrices that are done. `open_parts` makes it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return sum(1 for _ in self._folder.glob("*.blocks"))

    def get(self, name: str, format: str, shape: tuple[int, int]) -> Blocks | None:
        """A matrix that is done, mapped; None where it is not."""
        width = row_bytes(format, padded_columns(format, shape[1]))
        path = self._folder / f"{name}.blocks"
        if not path.is_file() or path.stat().st_size != shape[0] * width:
            return None
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return Blocks(format, shape, np.frombuffer(mapped, np.uint8).reshape(shape[0], width))

    def put(self, name: str, format: str, shape: tuple[int, int], pieces: Iterable[Bytes]) -> Blocks:
        """Keeps a matrix, from its blocks row after row."""
        with atomic_file(self._folder / f"{name}.blocks") as file:
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).reshape(-1))
        done = self.get(name, format, shape)
        if done is None:
            raise AssertionError(f"the blocks of {name} do not fill it")
        return done


@contextmanager
def open_parts(out: Path, job: dict[str, Any]) -> Iterator[Parts]:
    """The parts of the result `out` that an earlier, killed run of the same job left; none after any other job. They
    are removed when the block ends well, and kept when it does not.

    Raises GemmaryError where another process is at work on them, or the place cannot be written.
    """
    folder = out.with_name(f".{out.name}.parts")
    with only_one(folder / "lock", f"another process is writing {out}: wait for it, or choose another name"):
        if _read(folder / "job.json") != job:
            for file in folder.iterdir():
                if file.name != "lock":
                    file.unlink()
            with atomic_file(folder / "job.json") as stated:
                stated.write(json.dumps(job).encode())
        for left in folder.glob(".*.tmp"):  # of a matrix that was being written
            left.unlink()
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):  # of the result
            shutil.rmtree(left, ignore_errors=True)
        yield Parts(folder)
        shutil.rmtree(folder)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
