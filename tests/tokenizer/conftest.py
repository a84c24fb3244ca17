"""The real vocabularies, loaded once."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.tokenizer import Tokenizer
from tests.tokenizer.starter import Arrays, read_arrays

CHAT_TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}"


@pytest.fixture(scope="session")
def gemma2(shared: Path) -> Tokenizer:
    """The 256,000 vocabulary, from its tokenizer.model."""
    return Tokenizer.from_folder(shared / "tokenizers" / "gemma2")


@pytest.fixture(scope="session")
def paligemma(shared: Path) -> Tokenizer:
    """The 257,152 vocabulary, from its tokenizer.model."""
    return Tokenizer.from_folder(shared / "tokenizers" / "paligemma")


@pytest.fixture(scope="session")
def starter_arrays(starter_gguf: Path) -> Arrays:
    return read_arrays(starter_gguf)


@pytest.fixture(scope="session")
def gemma3(starter_arrays: Arrays) -> Tokenizer:
    """The 262,144 vocabulary, from the starter's GGUF arrays."""
    a = starter_arrays
    return Tokenizer.from_arrays(a.blob, a.offsets, a.scores, a.types, **a.special_ids)


@pytest.fixture(scope="session")
def gemma2_folder(gemma2: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save` wrote. Read-only to the tests."""
    folder = tmp_path_factory.mktemp("gemma2")
    gemma2.save(folder, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def gemma3_folder(gemma3: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `save` wrote. Read-only to the tests."""
    folder = tmp_path_factory.mktemp("gemma3")
    gemma3.save(folder, chat_template=CHAT_TEMPLATE)
    return folder
