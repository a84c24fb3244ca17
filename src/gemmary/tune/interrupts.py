"""Ctrl-C that loses nothing: the step under way is finished first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_TOLD = b"\nFinishing this step, then writing a checkpoint (once more: leave at once)\n"


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether the run has been asked to end, by Ctrl-C or SIGTERM.

    The second time raises KeyboardInterrupt where it strikes. Outside of the main thread signals stay as they are.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        os.write(2, _TOLD)  # print might be interrupted in the midst of itself

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, ask) for number in _SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
