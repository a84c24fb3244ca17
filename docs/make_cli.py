"""Writes docs/cli.md from the parser itself: `python docs/make_cli.py`. A test holds that the page is current."""

from __future__ import annotations

import argparse
from pathlib import Path

from gemmary.cli.parser import build_parser

PAGE = Path(__file__).with_name("cli.md")
HEAD = """\
# The command line

Made by `python docs/make_cli.py` from the parser: change that, not this page.

Text that a model writes goes to stdout and everything else to stderr. Exit codes: 0 done, 1 the models that `verify`
compared differ, 2 a mistake or a failure (told in one line), 130 Ctrl-C.
"""


def page() -> str:
    """The whole page."""
    parser = build_parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return HEAD + "".join(_command(name, sub) for name, sub in commands.choices.items())


def _command(name: str, parser: argparse.ArgumentParser) -> str:
    actions = [a for a in parser._actions if not isinstance(a, argparse._HelpAction)]
    positionals = " ".join(_bracketed(a) for a in actions if not a.option_strings)
    lines = [f"\n## gemmary {name}\n\n{parser.description}\n\n    gemmary {name} {positionals} [flags]".rstrip()]
    lines.append("\n\n| argument | meaning |\n|---|---|\n")
    lines += [f"| `{_spelling(action)}` | {action.help} |\n" for action in actions]
    return "".join(lines)


def _bracketed(action: argparse.Action) -> str:
    name = str(action.metavar)
    return {"?": f"[{name}]", "*": f"[{name} …]"}.get(str(action.nargs), name)


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return str(action.metavar)
    value = "" if action.nargs == 0 else f" {action.metavar or ','.join(map(str, action.choices or ()))}"
    return (", ".join(action.option_strings) + value).replace("|", "\\|")  # or else it would end the cell


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
