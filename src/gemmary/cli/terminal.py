"""Pictures in a terminal that shows them: the inline protocols of kitty and of iTerm2, or sixels."""

from __future__ import annotations

import base64
import os
import sys
from collections.abc import Mapping

_KITTY = ("xterm-kitty", "xterm-ghostty")
_ITERM = ("iTerm.app", "WezTerm", "mintty", "vscode")
_PLAIN = ("dumb", "linux")
"""Terminals that are not asked: they would write the question down, or never answer."""
_CHUNK = 4096
"""Characters of one escape sequence, at most (kitty's protocol)."""


def show(png: bytes) -> None:
    """Shows a PNG file where stdout is a terminal that can; else does nothing."""
    if not sys.stdout.isatty():
        return
    shown = sequence(png, os.environ)
    if not shown and os.environ.get("TERM", "dumb") not in _PLAIN and sys.stdin.isatty():
        from gemmary.cli import sixel

        sys.stdout.flush()
        if sixel.is_understood(sys.stdin.fileno(), sys.stdout.fileno()):
            shown = sixel.of_png(png)
    sys.stdout.write(shown)
    sys.stdout.flush()


def sequence(png: bytes, environment: Mapping[str, str]) -> str:
    """What makes the terminal of this environment show a PNG file; empty for one that does not say that it can."""
    data = base64.standard_b64encode(png).decode()
    if environment.get("TERM") in _KITTY or "KITTY_WINDOW_ID" in environment:
        parts = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
        heads = ["a=T,f=100," if i == 0 else "" for i in range(len(parts))]
        more = [int(i + 1 < len(parts)) for i in range(len(parts))]
        return "".join(f"\033_G{h}m={m};{p}\033\\" for h, m, p in zip(heads, more, parts, strict=True)) + "\n"
    if environment.get("TERM_PROGRAM") in _ITERM and "TMUX" not in environment:
        return f"\033]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{data}\a\n"
    return ""
