"""Likelihoods, intervals and replies, on tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from recipes import evaluate, replies
from tests.models import tiny_model

ITEMS = [
    {"set": "a", "prompts": ["the cat"] * 3, "options": [" sat", " on the mat", " x"], "gold": 1},
    {"set": "a", "prompts": ["it is a long way to go", "so"], "options": [" to it"] * 2, "gold": 0},
]


def test_likelihoods_are_those_of_whole_texts() -> None:
    with tiny_model() as model:
        found = evaluate.likelihoods(model, ITEMS)
        for item, values in zip(ITEMS, found, strict=True):
            for prompt, option, value in zip(item["prompts"], item["options"], values, strict=True):
                ids = model.tokenizer.encode(option)
                whole = model.score([*model.tokenizer.encode(prompt, bos=True), *ids])
                assert value == pytest.approx(float(whole[-len(ids) :].sum()), rel=1e-5)


def test_the_rules_differ_by_length() -> None:
    item = {"options": ["ab", "abcdef"], "gold": 1}
    assert evaluate.right(item, [-2.0, -3.0], "character")
    assert not evaluate.right(item, [-2.0, -3.0], "whole")


def test_a_gain_is_paired_and_of_the_same_questions() -> None:
    right = np.random.default_rng(1).random(200) < 0.5
    better = right | (np.arange(200) < 20)

    def result(answers: np.ndarray, questions: str = "q") -> dict[str, object]:
        return {"sets": {"a": {"questions": questions, "right": {"whole": answers.tolist()}}}}

    compared = evaluate.compare(result(better), result(right), "whole")
    gain = compared["a"]["gain"]
    assert gain["mean"] == pytest.approx(better.mean() - right.mean())
    assert 0 < gain["low"] < gain["mean"] < gain["high"]
    assert compared["mean"]["base"]["mean"] == pytest.approx(right.mean())
    assert "| a | " in evaluate.table(compared, "whole")
    with pytest.raises(GemmaryError, match="same questions"):
        evaluate.compare(result(better), result(right, "other"), "whole")


def test_the_same_seed_asks_the_same_questions(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({**ITEMS[0], "n": n, "set": "ab"[n % 2]}) + "\n" for n in range(20)))
    chosen = evaluate.choose(path, 5, 0, None)
    assert {name: len(some) for name, some in chosen.items()} == {"a": 5, "b": 5}
    assert chosen == evaluate.choose(path, 5, 0, None) != evaluate.choose(path, 5, 1, None)
    with pytest.raises(GemmaryError, match="has no set c"):
        evaluate.choose(path, 5, 0, ["c"])


@pytest.mark.parametrize(
    ("text", "exact", "holds"),
    [
        ("The capital of Mali is Bamako.", True, True),
        ("bamako", True, True),
        ("I think that it is Bamako!", False, True),
        ("Bamakoville", False, False),
        ("The capital of Mali is Bámako", True, True),
    ],
)
def test_a_reply_is_right_word_for_word_or_holds_the_answer(text: str, exact: bool, holds: bool) -> None:
    row = {"reply": "The capital of Mali is Bamako.", "answers": ["Bamako"]}
    assert replies.judged(row, text, True) == {"ended": True, "exact": exact, "holds": holds}


def test_replies_are_counted_by_kind() -> None:
    rows = [{"kind": "a", "messages": [{"role": "user", "content": "hi"}], "reply": "ho", "answers": ["ho"]}] * 2
    with tiny_model(context_length=128) as model:
        found = replies.ask(model, rows)
    table = replies.summary([*found, {"kind": "b", "ended": True, "exact": True, "holds": True}])
    assert (table["a"]["count"], table["b"]["exact"], table["all"]["count"]) == (2, 1.0, 3)
    assert 0 <= table["all"]["ended_interval"][0] <= table["all"]["ended_interval"][1] <= 1
