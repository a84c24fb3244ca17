"""Sixels: which terminals are asked and believed, on a pseudo-terminal, and that what is written is the picture."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from gemmary.cli import sixel, terminal

termios = pytest.importorskip("termios", reason="there are no pseudo-terminals here")


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[int, int, list[bytes]]]:
    """A pseudo-terminal that answers the question for its attributes: its two ends, and what it was asked."""
    terminal_end, program_end = os.openpty()
    asked: list[bytes] = []

    def answers() -> None:
        asked.append(os.read(terminal_end, 100))
        os.write(terminal_end, answer)

    thread = threading.Thread(target=answers, daemon=True)
    thread.start()
    try:
        yield terminal_end, program_end, asked
    finally:
        if not asked:
            os.write(program_end, b"-")  # never asked: lets the thread end
        thread.join(10)
        os.close(terminal_end)
        os.close(program_end)


@pytest.mark.parametrize(
    ("answer", "understood"),
    [
        (b"\033[?62;4;22c", True),
        (b"typed ahead\033[?4c", True),
        (b"\033[?62;22;44c", False),
        (b"\033[?1;2c", False),
    ],
)
def test_a_terminal_is_asked(answer: bytes, understood: bool) -> None:
    with answering(answer) as (_, end, asked):
        before = termios.tcgetattr(end)
        assert sixel.is_understood(end, end, patience=60) == understood
        assert asked == [b"\033[c"]
        assert termios.tcgetattr(end) == before


def test_silence_is_no() -> None:
    with answering(b"\033[?62;4") as (_, end, _asked):  # the answer breaks off
        before = termios.tcgetattr(end)
        assert not sixel.is_understood(end, end, patience=0.01)
        assert termios.tcgetattr(end) == before


def test_a_pipe_is_not_asked() -> None:
    reader, writer = os.pipe()
    with answering(b"\033[?4c") as (_, end, asked):
        assert not sixel.is_understood(reader, end)
        assert not sixel.is_understood(end, writer)
        assert not asked
    os.close(reader)
    os.close(writer)


def test_pictures_are_shown_where_sixels_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(np.full((7, 9, 3), (255, 0, 0), np.uint8))
    file = io.BytesIO()
    image.save(file, "PNG")
    with answering(b"\033[?62;4c") as (terminal_end, end, asked):
        with open(os.dup(end), encoding="utf-8") as keys, open(os.dup(end), "w", encoding="utf-8") as screen:
            monkeypatch.setattr(sys, "stdin", keys)
            monkeypatch.setattr(sys, "stdout", screen)
            for name in ("KITTY_WINDOW_ID", "TERM_PROGRAM"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("TERM", "dumb")
            terminal.show(file.getvalue())
            assert not asked
            monkeypatch.setenv("TERM", "xterm-256color")
            terminal.show(file.getvalue())
            monkeypatch.undo()
        assert asked == [b"\033[c"]
        assert os.read(terminal_end, 1000).startswith(b'\033Pq"1;1;9;7#0;2;100;0;0#0!9~-#0!9@\033\\')


def decoded(text: str) -> np.ndarray:
    """The colours [rows, columns, 3] in percent, -1 where nothing was written."""
    head = re.match(r'\033Pq"1;1;(\d+);(\d+)', text)
    assert head is not None
    assert text.endswith("\033\\\n")
    columns, rows = int(head[1]), int(head[2])
    picture = np.full((rows + 6, columns, 3), -1)
    colours: dict[int, list[int]] = {}
    top = left = colour = 0
    for token in re.finditer(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)(.)|([?-~])|([$-])", text[head.end() : -3]):
        if token[1]:
            colours[int(token[1])] = [int(token[n]) for n in (2, 3, 4)]
        elif token[5]:
            colour = int(token[5])
        elif token[9] == "$":
            left = 0
        elif token[8] == "-" or token[9] == "-":
            top, left = top + 6, 0
        else:
            count, char = (int(token[6]), token[7]) if token[6] else (1, token[8])
            for row in range(6):
                if (ord(char) - 63) >> row & 1:
                    picture[top + row, left : left + count] = colours[colour]
            left += count
    return picture[:rows]


def test_what_is_written_is_the_picture() -> None:
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (5, 3)).astype(np.uint8)
    pixels = np.repeat(rng.integers(0, 5, (17, 11)), 3, axis=1).astype(np.uint8)
    expected = np.rint(palette[pixels].astype(float) * 100 / 255)
    assert np.abs(decoded(sixel.encoded(pixels, palette)) - expected).max() == 0


def test_large_pictures_are_made_smaller() -> None:
    file = io.BytesIO()
    Image.fromarray(np.full((300, 1000, 3), 77, np.uint8)).save(file, "PNG")
    found = decoded(sixel.of_png(file.getvalue()))
    assert found.shape == (240, 800, 3)
    assert (found == 30).all()
