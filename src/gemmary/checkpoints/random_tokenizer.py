"""A stand-in for Gemma's tokenizer, which random weights come without."""

from __future__ import annotations

from gemmary.config import Config
from gemmary.tokenizer import PieceType, Tokenizer
from gemmary.tokenizer.pieces import SPACE

_SPECIAL = {0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>"}
_FIRST_BYTE = {262_144: 238}
"""Where the pieces of the 256 bytes begin, by the size of the vocabulary; 217 in the older one."""
_FIRST_TURN = {262_144: 105}


def stand_in(config: Config) -> Tokenizer:
    """A tokenizer with as many pieces as the model has embeddings, the special ids and bytes where Gemma has them.

    Text becomes a token for each byte (the last id for a space; the real vocabulary is not ours to ship), and every
    other id is written as a word of its own, ` t1234`.
    """
    size = config.vocab_size
    pieces = [f"{SPACE}t{i}" for i in range(size)]
    types = [PieceType.NORMAL] * size
    byte, turn = _FIRST_BYTE.get(size, 217), _FIRST_TURN.get(size, 106)
    control = _SPECIAL | {turn: "<start_of_turn>", turn + 1: "<end_of_turn>"}
    if size == 262_144:
        control |= {255_999: "<start_of_image>", 256_000: "<end_of_image>"}
    for i, piece in control.items():
        pieces[i], types[i] = piece, PieceType.CONTROL
    for value in range(256):
        pieces[byte + value], types[byte + value] = f"<0x{value:02X}>", PieceType.BYTE
    if config.vision and size == 257_152:
        for i in range(1024):
            pieces[256_000 + i], types[256_000 + i] = f"<loc{i:04}>", PieceType.USER_DEFINED
        for i in range(128):
            pieces[257_024 + i], types[257_024 + i] = f"<seg{i:03}>", PieceType.USER_DEFINED
        pieces[255_999] = SPACE
    else:
        pieces[-1] = SPACE
    return Tokenizer.from_pieces(pieces, [-float(i) for i in range(size)], types)
