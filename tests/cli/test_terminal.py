"""Which terminals are shown a picture, and in which words."""

from __future__ import annotations

import base64
import re

from gemmary.cli.terminal import sequence

PNG = bytes(range(256)) * 40


def test_kitty_gets_it_in_pieces() -> None:
    for environment in ({"TERM": "xterm-kitty"}, {"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}):
        parts = re.findall(r"\033_G(.*?);(.*?)\033\\", sequence(PNG, environment))
        assert base64.b64decode("".join(data for _, data in parts)) == PNG
        assert all(len(data) <= 4096 for _, data in parts)
        assert [keys for keys, _ in parts] == ["a=T,f=100,m=1", *["m=1"] * (len(parts) - 2), "m=0"]
    assert sequence(b"x", {"TERM": "xterm-kitty"}).startswith("\033_Ga=T,f=100,m=0;")


def test_iterm_gets_it_whole() -> None:
    found = sequence(PNG, {"TERM_PROGRAM": "iTerm.app"})
    head, data = found.removesuffix("\a\n").split(":")
    assert head.startswith("\033]1337;File=inline=1;size=10240")
    assert base64.b64decode(data) == PNG


def test_others_get_nothing() -> None:
    for environment in ({}, {"TERM": "xterm-256color"}, {"TERM_PROGRAM": "WezTerm", "TMUX": "/tmp/x"}):
        assert sequence(PNG, environment) == ""
