"""What is let go of a mapped file leaves memory and can still be read; nothing else is touched."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from gemmary.quantize import blocks
from gemmary.quantize.leaves import Affine, Blocks, Dense, Leaf, let_go, quantized, slices

SIZE = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(np.arange(SIZE // 4, dtype=np.int32).tobytes())
    return tmp_path / "weights.bin"


def resident(path: Path) -> int:
    """Bytes of the file that this process has in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = 0
    for line in lines:
        if line.endswith(str(path)):
            found += next(int(each.split()[1]) for each in lines if each.startswith("Rss:")) * 1024
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["dense", "blocks"])
def test_rows_leave_memory_and_stay_readable(path: Path, kind: str) -> None:
    with open(path, "rb") as file:
        view = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8).reshape(1024, -1)
    leaf: Leaf = Dense(view.view(np.float32)) if kind == "dense" else Blocks("Q8_0", (1024, 3840), view[:, : 34 * 120])
    before = view.copy()
    assert resident(path) > SIZE * 3 // 4
    leaf.release(0, 512)
    if kind == "dense":
        assert SIZE // 4 < resident(path) < SIZE * 5 // 8
        leaf.release(512, 1024)
        assert resident(path) < SIZE // 8
    assert np.array_equal(view, before)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_was_quantized_leaves_memory(path: Path) -> None:
    np.random.default_rng(0).standard_normal(SIZE // 4).astype(np.float32).tofile(path)
    with open(path, "rb") as file:
        array = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.float32).reshape(512, -1)
    made = quantized(Affine(Dense(array), np.ones(512, np.float32)), "Q8_0")
    assert resident(path) < SIZE // 8
    assert isinstance(made, Affine)
    assert np.array_equal(made.stored(0, 512), blocks.quantize("Q8_0", array).reshape(-1))
    assert np.array_equal(made.bias, np.ones(512, np.float32))


def test_other_memory_is_left_alone(path: Path) -> None:
    own = np.arange(SIZE, dtype=np.uint8)
    with open(path, "rb") as file:
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    mapped[:] = own  # pages of which there is no other copy
    anonymous = np.frombuffer(mmap.mmap(-1, SIZE), np.uint8)
    anonymous[:] = own
    for array in (own, mapped, anonymous, own[:0], own.reshape(2, -1)[:, 1:]):
        before = array.copy()
        let_go(array)
        assert np.array_equal(array, before)


@pytest.mark.parametrize("shape", [(1, 1), (100, 7), (40_000, 640), (17, 5_000_000)])
def test_slices_are_the_whole_in_panels(shape: tuple[int, int]) -> None:
    leaf = Dense(np.broadcast_to(np.float32(0), shape))
    bounds = list(slices(leaf))
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == shape[0]
    assert all(start % 16 == 0 for start, _ in bounds)
    assert all((stop - start) * shape[1] <= max(1 << 22, 16 * shape[1]) for start, stop in bounds)
