"""Ids to text as they come: whole characters, held back wherever a stop string could still begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """`gemmary.tokenizer.StreamDecoder`: joined, the texts of `push` and `finish` are the text of all the ids."""

    def push(self, token_id: int) -> str: ...

    def finish(self) -> str: ...


class StopScanner:
    """Passes text on up to the first stop string. The result does not depend on how the text is cut into pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""

    def push(self, text: str) -> str:
        """What is certain now: no stop string begins in it. Empty once stopped."""
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        text = self._held + text
        # The string that is complete first counts, so that the same characters end alike however they are cut.
        found = [(begin + len(stop), begin) for stop in self.stops if (begin := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        keep = max(_overlap(text, stop) for stop in self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


class TextStream:
    """A decoder and a scanner behind one another."""

    def __init__(self, decoder: Decoder, stops: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._scanner = StopScanner(stops)

    @property
    def stopped(self) -> bool:
        return self._scanner.stopped

    def push(self, token_id: int) -> str:
        return self._scanner.push(self._decoder.push(token_id))

    def finish(self) -> str:
        if self.stopped:
            return ""
        return self._scanner.push(self._decoder.finish()) + self._scanner.finish()


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins (shorter than `stop`)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
