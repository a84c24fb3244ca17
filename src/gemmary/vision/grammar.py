"""What a model may write where it is asked for objects, so that its text always parses (`objects.py`).

    text    = "" | object { " ; " object }          then the end token
    object  = location * 4, [code * 16,] " " label

with one of the labels that were asked for, the bottom below the top and the right beyond the left. A separator is
allowed only where the tokens that are left hold one more object: a text that ends for its length is whole too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer
from gemmary.vision.masks import NUM_CODES
from gemmary.vision.objects import CODES, LOCATIONS

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ObjectTokens:
    """The tokens that objects are written with."""

    locations: Ids
    """[1024], from the top or the left."""
    codes: Ids
    """[128]"""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ObjectTokens:
        """Raises GemmaryError for a tokenizer that has none."""
        try:
            locations = [tokenizer.id(f"<loc{number:04}>") for number in range(LOCATIONS)]
            codes = [tokenizer.id(f"<seg{number:03}>") for number in range(NUM_CODES)]
        except GemmaryError as error:
            raise GemmaryError(f"this model writes no boxes or masks: {error}; use a PaliGemma model") from None
        return cls(np.array(locations), np.array(codes))


@dataclass
class _Node:
    """A place in the labels' tokens."""

    following: dict[int, _Node] = field(default_factory=dict)
    need: int = 0
    """Tokens to the end of a whole text from here, at least, the end token aside."""


class ObjectGrammar:
    """Which tokens may come next: `Request.allowed`.

    labels: those that were asked for. has_masks: each object has 16 codes. most: tokens that may be written in all.

    Raises GemmaryError for a label that could not be told from what is around it.
    """

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str], *, has_masks: bool, most: int) -> None:
        self._tokens = ObjectTokens.of(tokenizer)
        self._place = {int(token): number for number, token in enumerate(self._tokens.locations)}
        self._end = tokenizer.eos_id
        self._most = most
        self._codes = CODES if has_masks else 0
        self._labels = _Node()
        self._next_object = _Node()
        for label in labels:
            check_label(label)
            # As the model was trained: a text is cut at its locations, so separator and label are encoded together.
            self._add([*tokenizer.encode(f" {label}", escape_markers=True), self._end], _Node())
            self._add(tokenizer.encode(f" {label} ; ", escape_markers=True), self._next_object)
        self._next_object.need = 4 + self._codes + self._shortest(self._labels)
        self._count(self._labels)

    def __call__(self, tokens: Sequence[int]) -> Ids:
        left = self._most - len(tokens)
        start = self._object_start(tokens)
        begun = tokens[start:]
        if not begun:
            if start:
                return self._tokens.locations[:-1]
            fits = self._next_object.need <= left
            return np.append(self._tokens.locations[:-1] if fits else self._tokens.locations[:0], self._end)
        if len(begun) < 4:
            smallest = self._place[begun[len(begun) - 2]] + 1 if len(begun) > 1 else 0
            return self._tokens.locations[smallest : LOCATIONS - (len(begun) == 1)]
        if len(begun) < 4 + self._codes:
            return self._tokens.codes
        node = self._labels
        for token in begun[4 + self._codes :]:
            node = node.following[token]
        return np.array([token for token, after in node.following.items() if 1 + after.need <= left])

    def _object_start(self, tokens: Sequence[int]) -> int:
        """Where the object that is being written begins; the end of the tokens where the next one is to begin."""
        for at in range(len(tokens) - 1, -1, -1):
            if tokens[at] in self._place and (at == 0 or tokens[at - 1] not in self._place):
                return len(tokens) if self._ends(tokens[at + 4 + self._codes :]) else at
        return 0

    def _ends(self, label: Sequence[int]) -> bool:
        """Whether these tokens are a label and the separator behind it."""
        node: _Node | None = self._labels
        for token in label:
            node = node.following.get(token) if node else None
        return node is self._next_object

    def _add(self, tokens: Sequence[int], last: _Node) -> None:
        node = self._labels
        for token in tokens[:-1]:
            node = node.following.setdefault(token, _Node())
        node.following[tokens[-1]] = last

    def _shortest(self, node: _Node) -> int:
        """Tokens of the shortest label."""
        if self._end in node.following:
            return 0
        return min((1 + self._shortest(after) for after in node.following.values()), default=self._most)

    def _count(self, node: _Node) -> None:
        for token, after in node.following.items():
            if after is not self._next_object and token != self._end:
                self._count(after)
        ends = self._end in node.following
        node.need = 0 if ends else min(1 + after.need for after in node.following.values())


def check_label(label: str) -> None:
    """Raises GemmaryError for a label that could not be read back from a text."""
    if not isinstance(label, str) or not label or label != label.strip():
        raise GemmaryError(f"a label is a text without spaces around it, not {label!r}")
    if ";" in label or "\n" in label or "<loc" in label or "<seg" in label:
        raise GemmaryError(
            f"the label {label!r} has what separates objects in it: leave out `;`, `<loc`, `<seg` and lines"
        )
