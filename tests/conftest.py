"""What several rooms of the tests share: data that the repository does not hold, or the reason for its absence."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before numpy and torch start threads: the workers have the processors already
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from gemmary.tokenizer import Tokenizer
from tests.tokenizer.starter import Arrays, read_arrays

COMPILES = ("test_linear_native.py", "test_threads.py")
"""Files that spend minutes in a compiler."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that no worker is left with it alone at the end."""
    items.sort(key=lambda item: item.path.name not in COMPILES)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data beside the repository; skips where there is none."""
    path = Path(__file__).resolve().parents[2] / "shared"
    if not path.is_dir():
        pytest.skip("the shared data folder (../shared) is not here")
    return path


@pytest.fixture(scope="session")
def starter_gguf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The starter model, assembled for this run in a cache of its own; skips where its package is not installed."""
    from gemmary.checkpoints import starter

    if importlib.util.find_spec(starter.PACKAGE) is None:
        pytest.skip(f"the starter's package ({starter.PACKAGE}) is not installed")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # all workers': the first one assembles it, under the cache's own lock
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMARY_HOME", str(folder / "starter"))
        yield starter.starter_path()


@pytest.fixture(scope="session")
def gemma2(shared: Path) -> Tokenizer:
    """The 256,000 vocabulary, from its tokenizer.model."""
    return Tokenizer.from_folder(shared / "tokenizers" / "gemma2")


@pytest.fixture(scope="session")
def starter_arrays(starter_gguf: Path) -> Arrays:
    return read_arrays(starter_gguf)


@pytest.fixture(scope="session")
def gemma3(starter_arrays: Arrays) -> Tokenizer:
    """The 262,144 vocabulary, from the starter's GGUF arrays."""
    a = starter_arrays
    return Tokenizer.from_arrays(a.blob, a.offsets, a.scores, a.types, **a.special_ids)
