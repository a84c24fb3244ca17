"""The real vocabularies as folders, and those that only the tokenizer's tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.tokenizer import Tokenizer

CHAT_TEMPLATE = "{{ bos_token }}{{ messages[0]['content'] }}"


@pytest.fixture(scope="session")
def paligemma(shared: Path) -> Tokenizer:
    """The 257,152 vocabulary, from its tokenizer.model."""
    return Tokenizer.from_folder(shared / "tokenizers" / "paligemma")


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
