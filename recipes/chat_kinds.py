"""What the chat adapter is to answer: each function makes the questions of one kind, with the sentence to reply."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.countries import Country
from recipes.question_answering import Item
from recipes.words import Word


@dataclass(frozen=True)
class Ask:
    """A question, how to reply, and what a reply must hold (any one of `answers`) to be right."""

    kind: str
    question: str
    reply: str
    answers: tuple[str, ...]
    follow_up: str = ""
    """The same question where its subject was spoken of just before."""


PHRASINGS = {
    "capital": (
        "What is the capital of {name}?",
        "What's the capital of {name}?",
        "Which city is the capital of {name}?",
        "Can you tell me the capital of {name}?",
        "capital of {name}?",
        "Do you know what the capital of {name} is called?",
    ),
    "capital of": (
        "Which country has {capital} as its capital?",
        "{capital} is the capital of which country?",
        "Of which country is {capital} the capital?",
    ),
    "region": (
        "Where is {name}?",
        "In which part of the world is {name}?",
        "Where in the world would I find {name}?",
        "What region of the world does {name} belong to?",
    ),
    "language": (
        "What language do people speak in {name}?",
        "Which language is spoken in {name}?",
        "What do they speak in {name}?",
        "Which language would I need in {name}?",
    ),
    "currency": (
        "What is the currency of {name}?",
        "What money do they use in {name}?",
        "What currency is used in {name}?",
        "How do people pay in {name}?",
    ),
    "neighbour": (
        "Name a country that borders {name}.",
        "Which country is next to {name}?",
        "Tell me a neighbour of {name}.",
        "Does any country share a border with {name}?",
    ),
    "highest": (
        "What is the highest point of {name}?",
        "What is the highest mountain in {name}?",
        "Which mountain in {name} is the highest?",
    ),
    "population": (
        "How many people live in {name}?",
        "What is the population of {name}?",
        "About how many inhabitants does {name} have?",
    ),
    "definition": (
        "What does {word} mean?",
        'What does "{word}" mean?',
        'What does the word "{word}" mean?',
        "What is the meaning of {word}?",
        "Define {word}.",
        "Can you explain the word {word}?",
    ),
    "opposite": (
        "What is the opposite of {word}?",
        "What's the opposite of {word}?",
        'Which word means the opposite of "{word}"?',
        "Opposite of {word}?",
        "Give me an antonym of {word}.",
    ),
}
"""How each kind is asked. The last phrasing of each is never trained on."""
FOLLOW_UPS = {
    "capital": "What is its capital?",
    "region": "Where is that?",
    "language": "What language do they speak there?",
    "currency": "And what is the currency there?",
    "neighbour": "Name a country next to it.",
    "highest": "What is the highest point there?",
    "population": "How many people live there?",
}


def about_country(country: Country) -> dict[str, tuple[str, tuple[str, ...]]]:
    """For each kind the reply and what it must hold."""
    name, subject = country.name, sentence(country.name)
    facts = {
        "capital": (f"The capital of {name} is {country.capital}.", (country.capital,)),
        "capital of": (f"{country.capital} is the capital of {name}.", (name.removeprefix("the "),)),
        "region": (f"{subject} is in {country.region}.", (country.region.removeprefix("the "),)),
        "language": (f"In {name} people speak {' and '.join(country.languages)}.", country.languages),
        "currency": (f"People in {name} pay in {country.currency}.", (country.currency, country.currency[:-1])),
        "neighbour": (
            f"{subject} borders {country.neighbours[0]}." if country.neighbours else f"{subject} has no land borders.",
            tuple(n.removeprefix("the ") for n in country.neighbours) or ("no land borders",),
        ),
        "highest": (f"The highest point of {name} is {country.highest}.", (country.highest,)),
        "population": (f"About {country.population} people live in {name}.", (country.population,)),
    }
    return {kind: (reply, answers) for kind, (reply, answers) in facts.items() if answers[0]}


def country_questions(country: Country, phrasings: slice) -> Iterator[Ask]:
    """Each kind in those of its phrasings."""
    for kind, (reply, answers) in about_country(country).items():
        for phrasing in PHRASINGS[kind][phrasings]:
            question = phrasing.format(name=country.name, capital=country.capital)
            yield Ask(kind, question, reply, answers, FOLLOW_UPS.get(kind, ""))


def word_questions(word: Word, phrasings: slice) -> Iterator[Ask]:
    """Its meaning and its opposite, as far as it has them, in those phrasings."""
    if word.meaning:
        meaning = ("to " if word.part == "v" and not word.meaning.startswith("to ") else "") + word.meaning
        for phrasing in PHRASINGS["definition"][phrasings]:
            yield Ask("definition", phrasing.format(word=word.text), f'"{word.text}" means {meaning}.', (word.meaning,))
    if word.opposites:
        opposites = tuple(sorted(word.opposites))
        for phrasing in PHRASINGS["opposite"][phrasings]:
            reply = f"The opposite of {word.text} is {opposites[0]}."
            yield Ask("opposite", phrasing.format(word=word.text), reply, opposites)


def benchmark_question(item: Item, chance: random.Random) -> Ask | None:
    """A question of a multiple-choice set as one would ask it; None where it makes no sense so, or is long.

    Half of those that list things to choose from do so in the question; the others are answered freely.
    """
    answer = item.options[item.gold].strip()
    text = item.prompts[0].removesuffix("\nAnswer:")
    if item.set == "boolq":
        passage, question = text.rsplit("\nQuestion: ", 1)
        return Ask("passage", f"{passage}\n\n{sentence(question)}", f"{sentence(answer)}.", (answer,))
    text = re.sub(r"^(Question|Goal): ", "", text)
    if item.set == "winogrande" or not text.endswith("?") or len(text) > 200 or len(answer) > 80:
        return None
    reply = sentence(answer) if answer.endswith((".", "!")) else f"{sentence(answer)}."
    if item.set != "piqa" and chance.random() < 0.5:
        options = [option.strip().rstrip(".") for option in item.options]
        if len(text) + sum(map(len, options)) > 250:
            return None
        return Ask("choice", f"{sentence(text)}\nChoose: {'; '.join(options)}.", reply, (answer,))
    if item.set != "social_iqa" and re.search(r"\b(of the following|of these|which statement)\b", text, re.I):
        return None
    return Ask(item.set, sentence(text), reply, (answer,))


def sentence(text: str) -> str:
    """With a capital letter in front."""
    return text[:1].upper() + text[1:]


def pseudo_words(count: int, seed: int) -> Sequence[str]:
    """Words that sound like words and mean nothing, for questions that nobody can answer."""
    chance = random.Random(seed)
    onsets = ("b", "br", "d", "f", "gl", "kl", "m", "pl", "qu", "s", "sk", "tr", "v", "z")

    def syllables(count: int) -> str:
        return "".join(chance.choice(onsets) + chance.choice("aeiou") for _ in range(count))

    return [syllables(chance.choice((2, 3))) + chance.choice("bdgklmnprstx") for _ in range(count)]
