"""The two real vocabularies that chat: 256,000 (Gemma 1 and 2) and 262,144 (Gemma 3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.tokenizer import Tokenizer
from tests.tokenizer.starter import read_arrays


@pytest.fixture(scope="session")
def gemma2(shared: Path) -> Tokenizer:
    return Tokenizer.from_folder(shared / "tokenizers" / "gemma2")


@pytest.fixture(scope="session")
def gemma3(starter_gguf: Path) -> Tokenizer:
    a = read_arrays(starter_gguf)
    return Tokenizer.from_arrays(a.blob, a.offsets, a.scores, a.types, **a.special_ids)
