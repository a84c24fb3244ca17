"""Conversations as ids: the rendered text's, unless a message tries to forge structure."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemmary.chat import Style, continue_turn, encode_chat, render
from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer
from tests.tokenizer import small

USER = {"role": "user", "content": "What is 2+2?"}
MODEL = {"role": "assistant", "content": "It is 4."}
AGAIN = {"role": "user", "content": "\n\n And  3+3?\n"}
SYSTEM = {"role": "system", "content": "\nBe brief.\n"}

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MARKERS = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<bos>", "<eos>", "<unused3>", "[multimodal]"]


@pytest.fixture(params=["gemma1", "gemma3"])
def style(request: pytest.FixtureRequest) -> Style:
    name: Style = request.param
    return name


@pytest.fixture
def tokenizer(style: Style, request: pytest.FixtureRequest) -> Tokenizer:
    found: Tokenizer = request.getfixturevalue("gemma2" if style == "gemma1" else "gemma3")
    return found


def ids_of_text(tokenizer: Tokenizer, text: str) -> list[int]:
    assert text.startswith("<bos>")
    return tokenizer.encode(text.removeprefix("<bos>"), bos=True)


@pytest.mark.parametrize("messages", [[USER], [USER, MODEL, AGAIN], [SYSTEM, AGAIN], [SYSTEM, USER, MODEL]])
@pytest.mark.parametrize("prompt", [True, False])
def test_ids_are_those_of_the_rendered_text(
    tokenizer: Tokenizer, style: Style, messages: list[dict[str, str]], prompt: bool
) -> None:
    ids = encode_chat(tokenizer, messages, style, add_generation_prompt=prompt).ids
    assert ids == ids_of_text(tokenizer, render(messages, style, prompt))
    assert ids.count(tokenizer.bos_id) == 1


def test_the_first_ids_are_the_published_ones(gemma2: Tokenizer, gemma3: Tokenizer) -> None:
    ids = encode_chat(gemma2, [USER], "gemma1").ids
    assert ids[:2] + ids[-5:] == [2, 106, 107, 108, 106, gemma2.id("model"), 108]
    ids = encode_chat(gemma3, [USER], "gemma3").ids
    assert ids[:4] + ids[-5:] == [2, 105, 2364, 107, 106, 107, 105, 4368, 107]


def test_stop_ids(gemma2: Tokenizer, gemma3: Tokenizer) -> None:
    assert encode_chat(gemma2, [USER], "gemma1").stop_ids == {1, 107}
    assert encode_chat(gemma3, [USER], "gemma3").stop_ids == {1, 106}


def test_a_folded_system_message_is_said(gemma2: Tokenizer, gemma3: Tokenizer) -> None:
    (notice,) = encode_chat(gemma2, [SYSTEM, USER], "gemma1").notices
    assert "no system role" in notice
    assert encode_chat(gemma2, [USER], "gemma1").notices == ()
    assert encode_chat(gemma3, [SYSTEM, USER], "gemma3").notices == ()


def structural_ids(tokenizer: Tokenizer) -> set[int]:
    names = (*MARKERS, "<end_of_image>", "<mask>", "<pad>")
    return {i for name in names if (i := tokenizer.find(name)) is not None}


@SETTINGS
@given(parts=st.lists(st.sampled_from([*MARKERS, "<", "start_of_turn>", "user\n", "x", " ", "\n"]), max_size=8))
@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_no_message_forges_structure(tokenizer: Tokenizer, style: Style, role: str, parts: list[str]) -> None:
    content = "".join(parts)
    plain = {"system": [SYSTEM, USER], "user": [USER], "assistant": [USER, MODEL]}[role]
    at = 1 if role == "assistant" else 0
    messages = [*plain[:at], {"role": role, "content": content}, *plain[at + 1 :]]
    special = structural_ids(tokenizer)
    ids = encode_chat(tokenizer, messages, style).ids
    expected = [i for i in encode_chat(tokenizer, plain, style).ids if i in special]
    assert [i for i in ids if i in special] == expected
    assert tokenizer.decode(ids) == render(messages, style).removeprefix("<bos>")


@pytest.mark.parametrize("ended", [True, False])
def test_a_continuation_gives_the_ids_of_the_whole(tokenizer: Tokenizer, style: Style, ended: bool) -> None:
    prompt = encode_chat(tokenizer, [USER], style).ids
    answer = tokenizer.encode(MODEL["content"])
    assert tokenizer.turn_ids is not None
    in_cache = prompt + answer + [tokenizer.turn_ids[1]] * ended
    more = continue_turn(tokenizer, [AGAIN], style, ended=ended)
    assert in_cache + more.ids == encode_chat(tokenizer, [USER, MODEL, AGAIN], style).ids
    assert more.stop_ids == {tokenizer.eos_id, tokenizer.turn_ids[1]}
    assert tokenizer.bos_id not in more.ids


def test_a_continuation_cannot_bring_a_system_message(tokenizer: Tokenizer, style: Style) -> None:
    with pytest.raises(GemmaryError, match="can only open a conversation"):
        continue_turn(tokenizer, [SYSTEM, USER], style, ended=True)
    with pytest.raises(GemmaryError, match="must alternate"):
        continue_turn(tokenizer, [MODEL], style, ended=True)


def test_images_are_refused_and_not_dropped(gemma3: Tokenizer) -> None:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}
    with pytest.raises(GemmaryError, match="text only"):
        encode_chat(gemma3, [message], "gemma3")


def test_a_vocabulary_without_turn_markers_cannot_chat() -> None:
    renamed = [piece.replace("start_of_turn", "x") for piece in small.PIECES]
    tokenizer = Tokenizer.from_pieces(renamed, small.SCORES, small.TYPES)
    with pytest.raises(GemmaryError, match="cannot chat"):
        encode_chat(tokenizer, [USER], "gemma1")
