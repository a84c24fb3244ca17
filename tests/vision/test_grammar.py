"""Objects that are written under the grammar: whatever the model prefers, the text parses."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.errors import GemmaryError
from gemmary.generate import Request, SamplingParams
from gemmary.generate.text import TextStream
from gemmary.tokenizer import Tokenizer
from gemmary.vision.grammar import ObjectGrammar
from gemmary.vision.objects import parse
from tests.tokenizer import small
from tests.vision.tiny_paligemma import CONFIG, tokenizer

LOCATION = len(small.PIECES)
SEPARATOR = " ; "


@lru_cache
def grammar(labels: tuple[str, ...], has_masks: bool, most: int) -> ObjectGrammar:
    return ObjectGrammar(tokenizer(), labels, has_masks=has_masks, most=most)


def written(labels: tuple[str, ...], has_masks: bool, most: int, seed: int, end: float = 0.0) -> Request:
    """A request that random logits have run to its end. end: how much the end token is preferred."""
    params = SamplingParams(seed=seed, max_tokens=most, top_k=0, top_p=1.0)
    allowed = grammar(labels, has_masks, most)
    text = TextStream(tokenizer().stream())
    request = Request([2], params, text, frozenset({tokenizer().eos_id}), seed=seed, allowed=allowed, max_tokens=most)
    rng = np.random.default_rng(seed)
    while request.finish_reason is None:
        logits = rng.standard_normal(CONFIG.vocab_size).astype(np.float32) * 4
        logits[tokenizer().eos_id] += end
        request.take(logits)
    return request


names = st.text(st.sampled_from("abcefhtu é日x"), min_size=1, max_size=9).filter(lambda name: name == name.strip())


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(names, min_size=1, max_size=4, unique=True).map(tuple),
    has_masks=st.booleans(),
    most=st.integers(1, 120),
    seed=st.integers(0, 999),
    end=st.sampled_from([-50.0, 0.0, 4.0]),
)
def test_every_text_parses(labels: tuple[str, ...], has_masks: bool, most: int, seed: int, end: float) -> None:
    request = written(labels, has_masks, most, seed, end)
    text = request.completion(request.unread).text
    objects, malformed = parse(text)
    assert not malformed
    assert {each.label for each in objects} <= set(labels)
    assert {len(each.codes) for each in objects} <= {16 if has_masks else 0}
    marks = ["".join(f"<loc{n:04}>" for n in o.locations) + "".join(f"<seg{n:03}>" for n in o.codes) for o in objects]
    assert text == SEPARATOR.join(f"{mark} {each.label}" for mark, each in zip(marks, objects, strict=True))
    if objects and end < 0:  # it went on for as long as one more object fitted
        shortest = min(len(tokenizer().encode(f" {label}")) for label in labels)
        another = len(tokenizer().encode(SEPARATOR)) + 4 + (16 if has_masks else 0) + shortest
        assert len(request.generated) - (request.generated[-1] == tokenizer().eos_id) + another > most


def test_the_model_may_end_at_once_or_must_where_nothing_fits() -> None:
    first = grammar(("cat",), False, 40)([])
    assert first[-1] == tokenizer().eos_id
    assert first[:-1].tolist() == list(range(LOCATION, LOCATION + 1023))
    assert grammar(("cat",), False, 6)([]).tolist() == [tokenizer().eos_id]


def test_boxes_are_not_empty() -> None:
    allowed = grammar(("cat",), False, 40)
    top, left = LOCATION + 1022, LOCATION + 500
    assert allowed([top, left]).tolist() == [LOCATION + 1023]
    assert allowed([top, left, LOCATION + 1023]).tolist() == list(range(left + 1, LOCATION + 1024))
    assert LOCATION + 1023 not in allowed([top])


def test_masks_have_sixteen_codes_before_the_label() -> None:
    allowed, codes = grammar(("cat",), True, 99), list(range(LOCATION + 1024, LOCATION + 1024 + 128))
    box = [LOCATION, LOCATION, LOCATION + 1, LOCATION + 1]
    assert allowed(box).tolist() == codes
    assert allowed(box + codes[:15]).tolist() == codes
    assert allowed(box + codes[:16]).tolist() == tokenizer().encode(" cat")[:1]


def test_a_label_that_begins_another() -> None:
    allowed = grammar(("a", "ab"), False, 60)
    box = [LOCATION, LOCATION, LOCATION + 1, LOCATION + 1]
    short, long = tokenizer().encode(" a"), tokenizer().encode(" ab")
    separated = tokenizer().encode(" a ; ")
    assert short[0] in allowed(box)
    assert long[0] in allowed(box)
    assert tokenizer().eos_id in allowed(box + short)
    assert separated[len(short)] in allowed(box + short)
    assert tokenizer().eos_id not in allowed([*box, *separated])


def test_a_separator_only_where_another_object_fits() -> None:
    tokens = [LOCATION, LOCATION, LOCATION + 1, LOCATION + 1, *tokenizer().encode(" abc")]
    another = len(tokenizer().encode(" abc ; ")) + 4
    end = tokenizer().eos_id
    assert len(grammar(("abc",), False, len(tokens) + another)(tokens)) == 2
    assert grammar(("abc",), False, len(tokens) + another - 1)(tokens).tolist() == [end]


@pytest.mark.parametrize("label", ["", " cat", "cat ", "cat;dog", "<loc0001>", "a<seg001>", "a\nb"])
def test_labels_that_could_not_be_read_back(label: str) -> None:
    with pytest.raises(GemmaryError, match="label"):
        ObjectGrammar(tokenizer(), [label], has_masks=False, most=9)


def test_a_tokenizer_without_locations() -> None:
    with pytest.raises(
        GemmaryError, match="this model writes no boxes or masks: this tokenizer has no piece '<loc0000>'"
    ):
        ObjectGrammar(small.build(), ["cat"], has_masks=False, most=9)


@pytest.mark.parametrize("kind", ["small", "PaliGemma's"])
def test_what_models_were_trained_to_write_is_allowed(kind: str, request: pytest.FixtureRequest) -> None:
    """The tokens of a whole training text, which is encoded in one piece."""
    found = tokenizer()
    if kind != "small":
        found = Tokenizer.from_folder(request.getfixturevalue("shared") / "tokenizers" / "paligemma")
    labels = ("cat", "red cat", "é 日", "catfish")
    box, codes = "<loc0000><loc0511><loc1023><loc0512>", "".join(f"<seg{n:03}>" for n in range(0, 128, 8))
    for marks in (box, box + codes):
        text = " ; ".join(f"{marks} {label}" for label in (*labels, "cat"))
        tokens = found.encode(text, eos=True)
        allowed = ObjectGrammar(found, labels, has_masks=marks != box, most=len(tokens))
        for at, token in enumerate(tokens):
            assert token in allowed(tokens[:at]), found.decode(tokens[: at + 1])
        assert 1 in allowed([])
