"""The tokenizer's algorithm (spec 2.1) in plain Python, written from its description: slow, and obvious.

It shares nothing with the code under test: no SentencePiece, no arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Set


class Oracle:
    def __init__(self, scores: Mapping[str, float], ids: Mapping[str, int], user_defined: Set[str]) -> None:
        """scores: of the normal pieces. user_defined: pieces that match in text before anything else."""
        self.scores = scores
        self.ids = ids
        self.user_defined = user_defined
        self.lengths: dict[str, list[int]] = {}
        for piece in user_defined:
            self.lengths.setdefault(piece[0], []).append(len(piece))
        for first, lengths in self.lengths.items():
            self.lengths[first] = sorted(set(lengths), reverse=True)

    def encode(self, text: str) -> list[int]:
        text = text.replace(" ", "\u2581")
        ids: list[int] = []
        plain: list[str] = []
        at = 0
        while at < len(text):
            match = self._user_defined_at(text, at)
            if match is None:
                plain.append(text[at])
                at += 1
                continue
            ids += self._merge(plain)
            ids.append(self.ids[match])
            plain = []
            at += len(match)
        return ids + self._merge(plain)

    def _user_defined_at(self, text: str, at: int) -> str | None:
        for length in self.lengths.get(text[at], ()):
            if text[at : at + length] in self.user_defined:
                return text[at : at + length]
        return None

    def _merge(self, symbols: list[str]) -> list[int]:
        symbols = list(symbols)
        while True:
            best, best_score = -1, float("-inf")
            for i in range(len(symbols) - 1):
                score = self.scores.get(symbols[i] + symbols[i + 1], float("-inf"))
                if score > best_score:
                    best, best_score = i, score
            if best < 0:
                break
            symbols[best : best + 2] = [symbols[best] + symbols[best + 1]]
        return [i for symbol in symbols for i in self._ids_of(symbol)]

    def _ids_of(self, symbol: str) -> list[int]:
        if symbol in self.scores:
            return [self.ids[symbol]]
        return [self.ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]


def decode(pieces: list[str]) -> str:
    """The text of a list of pieces: byte runs as UTF-8 (U+FFFD for each invalid byte), U+2581 as a space."""
    text, run = "", b""
    for piece in [*pieces, None]:
        if piece is not None and len(piece) == 6 and piece.startswith("<0x"):
            run += bytes.fromhex(piece[3:5])
            continue
        while run:
            size = next((n for n in (1, 2, 3, 4) if _is_character(run[:n])), 0)
            text += run[:size].decode() if size else "\ufffd"
            run = run[size or 1 :]
        text += "" if piece is None else piece.replace("\u2581", " ")
    return text


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode()) == 1
    except UnicodeDecodeError:
        return False
