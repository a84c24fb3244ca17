"""Common words, their meanings and their opposites, from WordNet 3.0 (Debian `wordnet-base`)."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from recipes.packages import debian_files

_PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
_CODES = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}
"""Parts of speech in `cntlist.rev`; 5 is an adjective close to another."""
_LONGEST = 70


@dataclass
class Word:
    """A word in its most frequent sense."""

    text: str
    part: str
    """"n", "v", "a" or "r"."""
    count: int
    """How often that sense stands in the texts that WordNet's authors tagged."""
    meaning: str = ""
    opposites: set[str] = field(default_factory=set)


def words(package: Path, least: int = 2) -> list[Word]:
    """Words of one piece whose most frequent sense was tagged at least so often, by text."""
    with debian_files(package) as archive:

        def lines(name: str) -> list[str]:
            file = archive.extractfile(f"./usr/share/wordnet/{name}")
            assert file is not None
            return file.read().decode("ascii").splitlines()

        found = _frequent(lines("cntlist.rev"), least)
        for part, file in _PARTS.items():
            synsets = {line[:8]: line for line in lines(f"data.{file}") if not line.startswith(" ")}
            for line in lines(f"index.{file}"):
                fields = line.split()
                word = found.get(fields[0])
                if word and word.part == part and not line.startswith(" "):
                    first = fields[-int(fields[2])]  # the synsets stand last, the most frequent first
                    meaning = _meaning(synsets[first])
                    word.meaning = "" if word.text[:5] in meaning else meaning  # no word by itself
                    word.opposites = _opposites(synsets, synsets[first], word.text)
    return sorted(found.values(), key=lambda word: word.text)


def _frequent(lines: list[str], least: int) -> dict[str, Word]:
    """By text: the part of speech in which a word's first sense was tagged most often."""
    found: dict[str, Word] = {}
    total: dict[str, int] = defaultdict(int)
    for line in lines:
        key, sense, count = line.split()
        text, code = key.split("%")
        total[text] += int(count)
        word = Word(text, _CODES[code[0]], int(count))
        if sense == "1" and re.fullmatch("[a-z]{3,}", text) and word.count >= least:
            found[text] = max(word, found.get(text, word), key=lambda each: each.count)
    return {text: word for text, word in found.items() if 2 * word.count > total[text]}  # the sense that one thinks of


def _meaning(synset: str) -> str:
    """The gloss without examples and remarks; empty where it is long or unclear without them."""
    gloss = synset.split("| ", 1)[1].split('"')[0].split(";")[0].strip(" ,")
    return gloss if re.fullmatch(r"[a-z][a-z' ,-]+", gloss) and 10 < len(gloss) <= _LONGEST else ""


def _opposites(synsets: dict[str, str], synset: str, text: str) -> set[str]:
    """The words that its antonym pointers (`!`) name."""
    names = _names(synset)
    place = 1 + next((i for i, name in enumerate(names) if name == text), -1)
    pointers = re.findall(r"! (\d{8}) (\w) (\w\w)(\w\w)", synset.split("|")[0])
    found = {
        _names(synsets[at])[int(to, 16) - 1]
        for at, _, source, to in pointers
        if int(source, 16) == place and at in synsets
    }
    return {name for name in found if name.isalpha()}


def _names(synset: str) -> list[str]:
    fields = synset.split()
    return [re.sub(r"\(.*", "", name).lower() for name in fields[4 : 4 + 2 * int(fields[3], 16) : 2]]
