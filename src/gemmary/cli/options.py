"""Flags of a command whose settings are an `Options` class: each is declared there, and only there."""

from __future__ import annotations

import argparse
from typing import TypeVar

from gemmary.tune.options import Options

Chosen = TypeVar("Chosen", bound=Options)


def add_options(parser: argparse.ArgumentParser, kind: type[Options]) -> None:
    """A flag for every option, and a file of them: the command's argument where it has no other, or else `-c`.

    What is not given is None: the class knows the defaults.
    """
    told = "a YAML file with the same keys; flags win over it"
    if any(each.is_positional for each in kind.options()):
        parser.add_argument("-c", "--config", metavar="FILE", help=told)
    else:
        parser.add_argument("config", nargs="?", metavar="CONFIG", help=told)
    for each in kind.options():
        if each.is_positional:
            parser.add_argument(each.name, nargs="?", metavar=each.metavar, help=each.help)
        elif each.is_switch:
            parser.add_argument(each.flag, action=argparse.BooleanOptionalAction, help=each.help)
        else:
            parser.add_argument(each.flag, choices=each.choices or None, metavar=each.metavar, help=each.help)


def read_options(kind: type[Chosen], arguments: argparse.Namespace) -> Chosen:
    """The settings that flags and file together mean. Raises GemmaryError."""
    return kind.read(arguments.config, **{each.name: getattr(arguments, each.name) for each in kind.options()})
