"""Gemma 3 and pictures: where they stand in a prompt or a conversation, and requests whose chunks cut through none."""

from __future__ import annotations

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk, uncut
from gemmary.chat import encode_chat
from gemmary.errors import GemmaryError
from gemmary.generate import Request, SamplingParams, Scheduler
from gemmary.generate.sight import Picture
from gemmary.generate.text import TextStream
from gemmary.vision.preprocess import pixels
from gemmary.vision.prompt import prompt_ids
from tests.runs import Array
from tests.vision.tiny_gemma3 import CONFIG, PICTURE, PLACE, SIZE, THREE_LINES, TOKENS, model, tokenizer
from tests.vision.tiny_paligemma import picture as colours

LINES = tokenizer().id("\n\n")


def words(text: str) -> list[int]:
    return tokenizer().encode(text)


def test_a_picture_stands_before_the_text_or_where_it_says() -> None:
    blank = [LINES, *PICTURE, LINES]
    assert prompt_ids(tokenizer(), CONFIG, "abc") == [2, *blank, *words("abc")]
    assert prompt_ids(tokenizer(), CONFIG, "abc", 0) == [2, *words("abc")]
    assert prompt_ids(tokenizer(), CONFIG, "ab<start_of_image>ef") == [2, *words("ab"), *blank, *words("ef")]
    both = [2, LINES, *PICTURE, *words("\n\n\n\n"), *PICTURE, LINES, *words("abc")]
    assert prompt_ids(tokenizer(), CONFIG, "abc", 2) == both
    with pytest.raises(GemmaryError, match="says <start_of_image> 2 times and there are 1 pictures"):
        prompt_ids(tokenizer(), CONFIG, "<start_of_image><start_of_image>")


def test_a_conversation_with_a_picture() -> None:
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "abc <start_of_image>"}]}]
    prompt = encode_chat(tokenizer(), messages, "gemma3", picture=PICTURE)
    start, end = tokenizer().turn_ids or (0, 0)
    head, tail = prompt.ids[: 2 + len(words("user"))], prompt.ids[-len(words("model\n")) - 3 :]
    assert head == [2, start, *words("user")]
    inner = prompt.ids[len(head) : len(head) + len(PICTURE) + 2]
    assert inner == [THREE_LINES, *PICTURE, LINES]  # the role's newline and the blank line are one piece
    assert prompt.ids.count(PICTURE[0]) == 1  # what the message says is no picture
    assert tail == [end, *words("\n"), start, *words("model\n")]
    with pytest.raises(GemmaryError, match="remove the image"):
        encode_chat(tokenizer(), messages, "gemma3")


def test_generate_and_chat_see() -> None:
    seeing, image = model(), colours(0)
    options = {"max_tokens": 3, "temperature": 0, "logprobs": 0}
    plain, other = seeing.generate("abc", image=image, **options), seeing.generate("abc", image=colours(1), **options)
    assert plain.stats.prompt_tokens == len(prompt_ids(tokenizer(), CONFIG, "abc"))
    assert (plain.width, plain.height) == (40, 30)
    assert len({each.logprobs[0].logprob for each in (plain, other, seeing.generate("abc", **options))}) == 3
    with pytest.warns(match="not instruction-tuned"):
        said = seeing.chat("abc", image=[image, colours(1)], **options)
    assert said.stats.prompt_tokens == len(words("user\nabc")) + 2 * len(PICTURE) + 2 + len(words("\nmodel\n")) + 5
    with pytest.raises(GemmaryError, match="has no words for this task"):
        seeing.caption(image)
    with pytest.raises(GemmaryError, match="has no words for this task"):
        seeing.detect(image, "cat")


def test_logits_of_a_long_text_with_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    seeing = model()
    ids = [2, *PICTURE, *words("abc"), *PICTURE]
    shown = np.stack([square(0), square(1)])
    whole = seeing.logits(ids, pixels=shown)
    monkeypatch.setattr("gemmary.scores.STEP_TOKENS", 3)
    np.testing.assert_allclose(seeing.logits(ids, pixels=shown), whole, atol=1e-4)


def square(seed: int) -> Array:
    from PIL import Image

    return pixels(Image.fromarray(colours(seed)), SIZE)


def test_where_a_chunk_may_end() -> None:
    ids = [1, 1, *[PLACE] * 8, 1, 1]
    assert [uncut(CONFIG, ids, 0, size) for size in (1, 2, 3, 9, 10, 11)] == [1, 2, 2, 2, 10, 11]
    assert [uncut(CONFIG, ids, 2, size) for size in (1, 4, 8, 9)] == [8, 8, 8, 9]
    assert uncut(CONFIG, ids, 10, 2) == 2
    with pytest.raises(ValueError, match="the chunk at 2 cuts through a picture's 4 tokens"):
        Batch.of(CONFIG, [Chunk(ids[2:5], 2, pictures=np.zeros((3, CONFIG.hidden_size), np.float32))])


def test_what_a_picture_among_text_sees() -> None:
    ids = [1, 1, 1, *[PLACE] * 4, 1]
    batch = Batch.of(CONFIG, [Chunk(ids, pictures=np.zeros((4, CONFIG.hidden_size), np.float32))])
    assert batch.visible["global"].tolist() == [[0, 0], [0, 1], [0, 2], *[[0, 6]] * 4, [0, 7]]
    assert batch.visible["local"].tolist() == [[0, 0], [0, 1], [0, 2], [0, 6], [1, 6], [2, 6], [3, 6], [4, 7]]


@pytest.mark.parametrize("step_tokens", [512, 7, 3, 1])
def test_requests_beside_others(step_tokens: int) -> None:
    pair = [Picture(square(seed), 40, 30) for seed in (0, 1)]

    def requests() -> list[Request]:
        made = []
        for text, pictures in (("abc", pair[:1]), ("a<start_of_image>b<start_of_image>", pair), ("fetch a", [])):
            prompt = prompt_ids(tokenizer(), CONFIG, text, len(pictures))
            params = SamplingParams.of({"temperature": 0, "max_tokens": 4, "logprobs": 0})
            stream = TextStream(tokenizer().stream())
            made.append(Request(prompt, params, stream, pictures=tuple(pictures)))
        return made

    def run(step_tokens: int, asked: list[Request]) -> list[list[float]]:
        scheduler = Scheduler(model().engine, step_tokens=step_tokens)
        for each in asked:
            scheduler.submit(each)
        sizes = []
        while computed := scheduler.step():
            sizes.append(computed)
        assert max(sizes) <= max(step_tokens, TOKENS + len(asked))
        return [[token.logprob for token in each.logprobs] for each in asked]

    alone = [run(512, [each])[0] for each in requests()]
    np.testing.assert_allclose(run(step_tokens, requests()), alone, atol=1e-4)
