"""A vocabulary of a few hundred pieces, for tests that build many tokenizers."""

from __future__ import annotations

from gemmary.tokenizer import PieceType, Tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
CONTROL_IN_GGUF = ["<mask>", "<start_of_turn>", "<end_of_turn>"]
USER_DEFINED = ["\n", "\n\n", "  ", "   ", "<table>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NORMAL = ["▁a", "ab", "abc", "bc", "ef", "▁ab", "th", "▁th", *"abcefhtu日é▁"]

PIECES = SPECIAL + CONTROL_IN_GGUF + USER_DEFINED + BYTES + NORMAL
TYPES = (
    [PieceType.CONTROL] * 7
    + [PieceType.USER_DEFINED] * len(USER_DEFINED)
    + [PieceType.BYTE] * 256
    + [PieceType.NORMAL] * len(NORMAL)
)
SCORES = [-1000.0] * 12 + [0.0] * 256 + [-float(rank) for rank in range(len(NORMAL))]


def build() -> Tokenizer:
    return Tokenizer.from_pieces(PIECES, SCORES, TYPES)
