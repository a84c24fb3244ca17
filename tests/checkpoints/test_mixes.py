"""Which block type a matrix gets, against a file that llama.cpp made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.checkpoints.mixes import ASKED, block_types, fallbacks
from gemmary.checkpoints.tensors import tensors
from tests.tiny import TINY


def test_the_mix_is_that_of_the_starter(starter_gguf: Path) -> None:
    """Its file is llama.cpp's Q4_K_M of Gemma 3 270M, whose rows of 640 blocks of 256 do not fit."""
    starter = open_checkpoint(starter_gguf)
    assert block_types(starter.config, "Q4_K_M") == {
        name: format for name, format in starter.formats().items() if format != "F32"
    }


@pytest.mark.parametrize("asked", ASKED)
def test_where_rows_divide_all_have_what_was_asked_for(asked: str) -> None:
    config = TINY["gemma3-q256"]
    found = block_types(config, asked)
    assert list(found) == [t.name for t in tensors(config) if not t.is_norm]
    assert set(found.values()) == ({"Q4_K", "Q6_K"} if asked == "Q4_K_M" else {asked})
    assert fallbacks(config, asked) == []


def test_the_mix_is_finer_at_both_ends() -> None:
    config = replace(TINY["gemma-q256"], num_layers=18, layer_types=("global",) * 18)
    found = block_types(config, "Q4_K_M")
    assert [i for i in range(18) if found[f"layers.{i}.down"] == "Q6_K"] == [0, 1, 4, 7, 10, 13, 15, 16, 17]
    assert found["embed"] == "Q6_K"
    assert {found[f"layers.{i}.{name}"] for i in range(18) for name in ("q", "k", "o", "gate", "up")} == {"Q4_K"}


def test_the_table_may_have_another() -> None:
    config = TINY["gemma3-q256"]
    found = block_types(config, "Q4_K", "Q8_0")
    assert (found["embed"], found["layers.1.up"]) == ("Q8_0", "Q4_K")
    assert "embed" not in fallbacks(TINY["gemma3-q32"], "Q4_K", "Q8_0")[0]
