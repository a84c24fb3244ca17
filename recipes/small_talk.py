"""Greetings, thanks, who is speaking, what was said before, and what a small model cannot know."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path


def small_talk() -> dict[str, tuple[str, ...]]:
    """By reply, what is said to get it."""
    found: dict[str, list[str]] = {}
    reply = ""
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("= "):
            reply = line.removeprefix("= ")
        elif line and not line.startswith("#"):
            found.setdefault(reply, []).append(line)
    return {reply: tuple(said) for reply, said in found.items()}


TALK = small_talk()
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ivy", "Jack")
NEW_NAMES = ("Maria", "Noah", "Olivia", "Paul", "Viktor")
"""Never trained on."""
PLACES = ("Berlin", "London", "Madrid", "Paris", "Rome", "Tokyo", "Boston", "Cairo", "Delhi", "Lagos", "Oslo", "Sydney")
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "black", "white", "pink", "brown")
ANIMALS = ("dog", "cat", "horse", "rabbit", "parrot", "hamster", "goat", "pony")
FOODS = ("rice", "pizza", "soup", "pasta", "bread", "cheese", "apples", "fish", "salad", "chocolate")

TOLD = (
    ("My name is {name}.", "Nice to meet you, {name}!", "What is my name?", "Your name is {name}.", "name"),
    ("I'm {name}.", "Nice to meet you, {name}!", "Do you remember my name?", "Your name is {name}.", "name"),
    ("I live in {place}.", "{place}, how nice!", "Where do I live?", "You live in {place}.", "place"),
    ("I love {colour}.", "{colour} is a fine colour.", "Which colour do I love?", "You love {colour}.", "colour"),
    ("My {animal} is called {name}.", "Say hello to {name}!", "What is my {animal} called?", "{name}.", "name"),
    ("I like {food} best.", "Enjoy your {food}!", "What do I like best?", "You like {food} best.", "food"),
)
"""What a user tells, the reply to that, a later question about it, the reply to that, and what it must hold."""


def told(chance: random.Random, names: Sequence[str]) -> tuple[str, ...]:
    """One of `TOLD`, filled in."""
    lists = {"name": names, "place": PLACES, "colour": COLOURS, "animal": ANIMALS, "food": FOODS}
    words = {key: chance.choice(some) for key, some in lists.items()}
    *texts, answer = chance.choice(TOLD)
    filled = [text.format_map(words) for text in texts]
    return *(text[0].upper() + text[1:] for text in filled), words[answer]
