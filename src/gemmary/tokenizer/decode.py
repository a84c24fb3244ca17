"""Ids to text, one at a time, in whole characters."""

from __future__ import annotations

import codecs
from collections.abc import Callable

_ERRORS = "gemmary.each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for every byte that cannot be decoded, as SentencePiece does (Python's own handler writes one for all the
    bytes of a character that is cut off)."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(_ERRORS, _replace_each_byte)
_new_decoder = codecs.getincrementaldecoder("utf-8")


class StreamDecoder:
    """Decodes ids as they come. The texts of all `push` calls and of `finish`, joined, are `decode` of all the ids.

    A character that is spelled in byte pieces is held back until it is whole or can no longer become so.
    """

    def __init__(self, surface: Callable[[int], str | bytes]) -> None:
        """surface: an id's text, or its one byte when it is a byte piece."""
        self._surface = surface
        self._bytes = _new_decoder(errors=_ERRORS)
        self._pending = False

    def push(self, token_id: int) -> str:
        """The text that is certain once `token_id` is known (often empty inside a run of byte pieces).

        Raises GemmaryError when the id is outside the vocabulary.
        """
        surface = self._surface(token_id)
        if isinstance(surface, bytes):
            self._pending = True
            return self._bytes.decode(surface)
        return self.finish() + surface if self._pending else surface

    def finish(self) -> str:
        """What is still held back: an incomplete character, one U+FFFD for each of its bytes."""
        if not self._pending:
            return ""
        self._pending = False
        text = self._bytes.decode(b"", final=True)
        self._bytes.reset()
        return text
