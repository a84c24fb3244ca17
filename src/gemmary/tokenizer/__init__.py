"""Gemma's tokenizer: SentencePiece BPE with byte fallback, read from any of the three files that carry it."""

from __future__ import annotations

from gemmary.tokenizer.decode import StreamDecoder
from gemmary.tokenizer.pieces import PieceType
from gemmary.tokenizer.tokenizer import InfillIds, Tokenizer

__all__ = ["InfillIds", "PieceType", "StreamDecoder", "Tokenizer"]
