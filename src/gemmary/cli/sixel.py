"""Pictures in sixels, the protocol of DEC's VT340: six rows of pixels to a character, a colour at a time.

Whether a terminal understands them it says itself, when it is asked for its attributes (DA1): 4 is among them.
"""

from __future__ import annotations

import io
import os
import re
import select
import time
from itertools import groupby

import numpy as np
import numpy.typing as npt

COLOURS = 128
WIDEST = 800
"""Pixels of a picture's longer side: what is larger is shown smaller."""
PATIENCE = 0.5
"""Seconds that a terminal has to answer. All that are in use do so at once."""
_ASK = b"\033[c"
_ANSWER = re.compile(rb"\033\[\?([\d;]*)c")


def is_understood(reader: int, writer: int, patience: float = PATIENCE) -> bool:
    """Asks the terminal at two file descriptors. False where it says no or nothing, where either is no terminal, and in
    a background job, which may not ask. What is typed meanwhile is lost; the terminal's settings are put back."""
    if not (os.isatty(reader) and os.isatty(writer)):
        return False
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    try:
        if os.tcgetpgrp(reader) != os.getpgrp():
            return False
    except OSError:
        pass  # not the terminal that this process was started from: nothing stops it
    before = termios.tcgetattr(reader)
    try:
        tty.setcbreak(reader, termios.TCSADRAIN)
        os.write(writer, _ASK)
        answer = _ANSWER.search(_read(reader, patience))
    except (OSError, termios.error):
        return False
    finally:
        termios.tcsetattr(reader, termios.TCSADRAIN, before)
    return answer is not None and b"4" in answer[1].split(b";")


def _read(reader: int, patience: float) -> bytes:
    """What comes up to an answer's end, or within the time."""
    found, end = b"", time.monotonic() + patience
    while not _ANSWER.search(found):
        if not select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            break
        read = os.read(reader, 1024)
        if not read:
            break
        found += read
    return found


def of_png(png: bytes) -> str:
    """What shows a PNG file, in `COLOURS` colours."""
    from PIL import Image

    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.thumbnail((WIDEST, WIDEST))
    flat = image.quantize(COLOURS, dither=Image.Dither.NONE)
    palette = np.array(flat.getpalette(), np.uint8).reshape(-1, 3)
    return encoded(np.asarray(flat), palette)


def encoded(pixels: npt.NDArray[np.uint8], palette: npt.NDArray[np.uint8]) -> str:
    """pixels: [rows, columns] numbers of colours. palette: [colours, 3]"""
    rows, columns = pixels.shape
    colours = ((int(n), *(round(int(part) * 100 / 255) for part in palette[n])) for n in np.unique(pixels))
    named = "".join(f"#{n};2;{red};{green};{blue}" for n, red, green, blue in colours)
    bands = "-".join(_band(pixels[top : top + 6]) for top in range(0, rows, 6))
    return f'\033Pq"1;1;{columns};{rows}{named}{bands}\033\\\n'


def _band(band: npt.NDArray[np.uint8]) -> str:
    """Six rows, each colour over the ones before it."""
    lines = []
    weights = 1 << np.arange(len(band))
    for colour in np.unique(band):
        bits = weights @ (band == colour)
        runs = ((chr(63 + int(bit)), len(list(run))) for bit, run in groupby(bits))
        lines.append(f"#{colour}" + "".join(f"!{count}{char}" if count > 3 else char * count for char, count in runs))
    return "$".join(lines)
