"""Options that are flags of a command and keys of a YAML file alike, each declared in one place."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from typing_extensions import Self

Convert = Callable[[Any], Any]
"""What a flag's text or a YAML value means. Raises ValueError with what it must be: "a whole number of at least 1"."""


@dataclass(frozen=True)
class Option:
    """All that a command line and a file need to know of one field."""

    name: str
    """Of the field, and of the key in a YAML file (which may have - for _)."""
    convert: Convert
    help: str
    default: Any
    """`dataclasses.MISSING` where the option must be given."""
    metavar: str | None
    choices: tuple[str, ...]
    is_positional: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Takes no value: `--rslora`, and `--no-rslora` for what a file has turned on."""
        return self.convert is switch

    def converted(self, value: Any, where: str) -> Any:
        """The field's value. where: what to call it in a GemmaryError."""
        if value is None and self.default is None:
            return None
        try:
            return self.convert(value)
        except ValueError as error:
            raise GemmaryError(f"{where} must be {error}, not {value!r}") from None


def option(
    convert: Convert,
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    metavar: str | None = None,
    choices: tuple[str, ...] = (),
    is_positional: bool = False,
) -> Any:
    """A field of an `Options` dataclass. One whose default is None may be None, and its help says what that means."""
    told = default is not None and default is not dataclasses.MISSING and convert is not switch
    said = f"{help} (default: {default})" if told else help
    about = {"convert": convert, "help": said, "metavar": metavar, "choices": choices, "is_positional": is_positional}
    return field(default=default, metadata=about)


def choice(*choices: str, **about: Any) -> Any:
    """An option that takes one of a few words."""

    def convert(value: Any) -> Any:
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value  # YAML reads on and off as bools
        if word not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return word

    return option(convert, choices=choices, **about)


class Options:
    """The base of a frozen dataclass all of whose fields are made by `option` or `choice`."""

    def __post_init__(self) -> None:
        for each in self.options():
            object.__setattr__(self, each.name, each.converted(getattr(self, each.name), each.name))

    @classmethod
    def options(cls) -> list[Option]:
        """What can be set, in the order of the fields."""
        return [Option(name=each.name, default=each.default, **each.metadata) for each in fields(cls)]  # type: ignore[arg-type]

    @classmethod
    def read(cls, path: str | Path | None = None, **flags: Any) -> Self:
        """Options from a YAML file (None: no file) and flags, which win; a flag that is None was not given.

        A path in the file is relative to the working directory, as in a flag. Raises GemmaryError, one line that names
        file and key, for an unknown key, one that stands twice, a bad value, or one that is missing.
        """
        known = {each.name: each for each in cls.options()}
        values: dict[str, Any] = {}
        for key, value in (_read_yaml(Path(path)) if path is not None else {}).items():
            name = str(key).replace("-", "_")
            if name not in known:
                raise GemmaryError(f"{path}: no option is called {key!r}{_nearest(name, known)}")
            if name in values:
                raise GemmaryError(f"{path}: {key} stands twice")
            values[name] = known[name].converted(value, f"{path}: {key}")
        for name, value in flags.items():
            if name not in known:
                raise GemmaryError(f"no option is called {name!r}{_nearest(name, known)}")
            if value is not None:
                values[name] = known[name].converted(value, known[name].flag)
        for each in known.values():
            if each.name not in values and each.default is dataclasses.MISSING:
                way = each.name.upper() if each.is_positional else each.flag
                file = f", or {each.name}: in {path}" if path is not None else ""
                raise GemmaryError(f"there is no {each.name}: give {way}{file}")
        return cls(**values)

    def to_yaml(self) -> str:
        """Every option as it stands, for `read` to read again."""
        values = {each.name: getattr(self, each.name) for each in self.options()}
        plain = {name: plain_value(value) for name, value in values.items()}
        text: str = _yaml().safe_dump(plain, sort_keys=False, allow_unicode=True)
        return text


def plain_value(value: Any) -> Any:
    """A field's value as YAML and JSON say it: lists for tuples, keys for the fields of a dataclass."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return list(value) if isinstance(value, tuple) else value


# What values mean -----------------------------------------------------------------------------------------------------


def text(value: Any) -> str:
    """A word, a name or a path."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("a text")
    return str(value)


def switch(value: Any) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def whole(low: int, high: int | None = None) -> Convert:
    """A whole number in a range, both ends included; digits may be grouped by , or _."""

    def convert(value: Any) -> int:
        if isinstance(value, str):
            grouped = value.replace(",", "").replace("_", "").strip()
            value = int(grouped) if grouped.removeprefix("-").isdecimal() else None
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        if not good or (high is not None and value > high):
            raise ValueError(f"a whole number {f'of at least {low}' if high is None else f'from {low} to {high}'}")
        return int(value)

    return convert


def number(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> Convert:
    """A number in a range, whose ends are included unless it must lie above the one or below the other."""

    def convert(value: Any) -> float:
        found = as_float(value)
        if found is None or not (low <= found <= high) or (above and found == low) or (below and found == high):
            upper = f" and {'below' if below else 'at most'} {high:g}" if high < math.inf else ""
            raise ValueError(f"a number {'above' if above else 'of at least'} {low:g}{upper}")
        return found

    return convert


def as_float(value: Any) -> float | None:
    """A finite number, also as text: YAML reads 1e-4 as text, for want of a point. None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


# Files ----------------------------------------------------------------------------------------------------------------


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise GemmaryError('YAML files need PyYAML: pip install "gemmary[tune]"') from None
    return yaml


def _read_yaml(path: Path) -> Mapping[Any, Any]:
    yaml = _yaml()
    try:
        source = path.read_text(encoding="utf-8")
        node = yaml.compose(source, Loader=yaml.SafeLoader)
        values = yaml.safe_load(source)
    except OSError as error:
        raise GemmaryError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise GemmaryError(f"{path}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise GemmaryError(f"{path}: not a list of `key: value` lines")
    if len(node.value) != len(values):  # a plain load would silently keep the last
        keys = [key.value for key, _ in node.value]
        raise GemmaryError(f"{path}: {next(key for key in keys if keys.count(key) > 1)} stands twice")
    return values


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else f": choose from {', '.join(known)}"
