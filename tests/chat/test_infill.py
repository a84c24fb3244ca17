"""CodeGemma's fill-in-the-middle prompt."""

from __future__ import annotations

import pytest

from gemmary.chat import fill_in_the_middle
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer
from tests.tokenizer import small

NAMES = ["<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|file_separator|>"]


def codegemma(gemma2: Tokenizer) -> Tokenizer:
    """The 256,000 vocabulary with the four pieces renamed, as Hugging Face's CodeGemma has them."""
    arrays = gemma2.to_arrays()
    strings = arrays.strings()
    strings[67:71] = NAMES
    return Tokenizer.from_pieces(strings, arrays.scores.tolist(), arrays.types.tolist())


def test_the_published_prompt(gemma2: Tokenizer) -> None:
    tokenizer = codegemma(gemma2)
    assert tokenizer.infill_ids == (67, 68, 69, 70)
    prompt = fill_in_the_middle(tokenizer, "def f(x):\n    return ", "\n\nprint(f(1))")
    before, after = tokenizer.encode("def f(x):\n    return "), tokenizer.encode("\n\nprint(f(1))")
    assert prompt.ids == [2, 67, *before, 69, *after, 68]
    text = "<|fim_prefix|>def f(x):\n    return <|fim_suffix|>\n\nprint(f(1))<|fim_middle|>"
    assert prompt.ids == tokenizer.encode(text, bos=True)
    assert prompt.stop_ids == {1, 67, 68, 69, 70}
    assert prompt.notices == ()


def test_markers_in_the_code_are_spelled_out(gemma2: Tokenizer) -> None:
    tokenizer = codegemma(gemma2)
    prompt = fill_in_the_middle(tokenizer, "x = '<|fim_middle|>'", "<|file_separator|><start_of_turn>")
    assert [i for i in prompt.ids if i < 108] == [2, 67, 69, 68]
    assert tokenizer.decode(prompt.ids[2:-1]) == "x = '<|fim_middle|>'<|fim_suffix|><|file_separator|><start_of_turn>"


def test_empty_sides(gemma2: Tokenizer) -> None:
    assert fill_in_the_middle(codegemma(gemma2), "", "").ids == [2, 67, 69, 68]


def test_unnamed_pieces_are_used_and_said(gemma2: Tokenizer) -> None:
    prompt = fill_in_the_middle(gemma2, "a", "b")
    assert prompt.ids == [2, 67, *gemma2.encode("a"), 69, *gemma2.encode("b"), 68]
    (notice,) = prompt.notices
    assert "only a CodeGemma checkpoint" in notice


def test_other_vocabularies_have_no_such_tokens(gemma3: Tokenizer) -> None:
    for tokenizer in (gemma3, small.build()):
        with pytest.raises(GemmaryError, match="use a CodeGemma checkpoint"):
            fill_in_the_middle(tokenizer, "a", "b")
