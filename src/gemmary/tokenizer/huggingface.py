"""The tokenizer files of a Hugging Face folder: `tokenizer.json` read and written, `tokenizer_config.json` written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.tokenizer.pieces import MAX_PIECES, PLACEHOLDERS, SPACE, Pieces, PieceType, pack

_MAX_JSON_BYTES = 1 << 28
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
_TAB_BYTE = "<0x09>"
_TURN_MARKERS = ("<start_of_turn>", "<end_of_turn>")
_NO_LIMIT = int(1e30)
"""transformers' word for "no maximum length"."""


def read_limited(path: Path, limit: int) -> bytes:
    """A file's contents. Raises GemmaryError when it cannot be read or is larger than `limit` bytes."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise GemmaryError(f"{path} is no tokenizer: {size:,} bytes are more than {limit:,}")
        return path.read_bytes()
    except OSError as error:
        raise GemmaryError(f"cannot read {path}: {error.strerror}") from None


def read_tokenizer_json(path: Path) -> Pieces:
    """The vocabulary of a Gemma `tokenizer.json`, with the scores and types of the original SentencePiece file.

    The file has no scores: a piece's score is its rank among the normal pieces, negated (spec 2.3), which is right
    only when the merges stand in the vocabulary's order, so that is checked. Raises GemmaryError.
    """
    try:
        document = json.loads(read_limited(path, _MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise GemmaryError(f"{path} is not JSON: {str(error).partition(chr(10))[0]}") from None
    try:
        return _pieces(document)
    except _NotGemmaError as error:
        raise GemmaryError(f"{path} is not a Gemma tokenizer: {error}") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__} {error}".partition("\n")[0][:120]
        raise GemmaryError(f"{path} is not a Gemma tokenizer: {reason}") from None


class _NotGemmaError(Exception):
    pass


def _require(condition: bool, why: str) -> None:
    if not condition:
        raise _NotGemmaError(why)


def _pieces(document: dict[str, Any]) -> Pieces:
    model, normalizer = document["model"], document["normalizer"]
    vocab: dict[str, int] = model["vocab"]
    _require(model["type"] == "BPE" and model["byte_fallback"] is True, "it is not BPE with byte fallback")
    _require(
        (normalizer["type"], normalizer["pattern"], normalizer["content"]) == ("Replace", {"String": " "}, SPACE),
        f"it does more to the text than to write spaces as {SPACE}",
    )
    by_id = dict(zip(vocab.values(), vocab, strict=True))
    added = {item["id"]: (item["content"].replace(" ", SPACE), item["special"]) for item in document["added_tokens"]}
    by_id.update({index: content for index, (content, _) in added.items()})
    count = len(by_id)
    _require(0 < count <= MAX_PIECES and all(type(i) is int for i in by_id), "its ids are not whole numbers")
    _require(min(by_id) == 0 and max(by_id) == count - 1, "its ids have gaps or stand twice")
    strings = [by_id[i] for i in range(count)]
    ids = {piece: i for i, piece in enumerate(strings)}
    special = {name: ids.get(f"<{name}>", -1) for name in ("bos", "eos", "pad", "unk")}
    _require(min(special.values()) >= 0, "it lacks <bos>, <eos>, <pad> or <unk>")
    if _TAB_BYTE not in ids:  # the converter of the 256,000 vocabulary spells the tab's byte piece as a tab
        strings[ids["\t"]] = _TAB_BYTE

    types = np.full(count, PieceType.NORMAL, np.int32)
    types[[i for i, piece in enumerate(strings) if len(piece) == 6 and _BYTE_PIECE.fullmatch(piece)]] = PieceType.BYTE
    for index, (content, is_special) in added.items():
        placeholder = content in PLACEHOLDERS or (is_special and index >= len(vocab))
        types[index] = PieceType.CONTROL if placeholder else PieceType.USER_DEFINED
    types[[special["bos"], special["eos"], special["pad"]]] = PieceType.CONTROL
    types[special["unk"]] = PieceType.UNKNOWN
    normal = np.flatnonzero(types == PieceType.NORMAL)
    _require(len(normal) > 0, "it has no pieces but special ones")
    scores = np.zeros(count, np.float32)
    scores[normal] = -(normal - normal[0]).astype(np.float32)

    products = _merge_products(model["merges"], vocab)
    products = products[types[products] == PieceType.NORMAL]
    _require(bool((np.diff(products) >= 0).all()), "its merges do not stand in the order of its vocabulary")
    packed = pack([piece.encode() for piece in strings])
    return Pieces(*packed, scores, types, special["bos"], special["eos"], special["pad"], special["unk"])


def _merge_products(merges: list[str] | list[list[str]], vocab: dict[str, int]) -> NDArray[np.int64]:
    """The ids that the merges make, in order. A merge is "left right" or ["left", "right"]; pieces hold no spaces."""
    return np.array([vocab["".join(m).replace(" ", "")] for m in merges], np.int64)


def write_tokenizer_json(path: Path, pieces: Pieces) -> None:
    """Writes what transformers and the `tokenizers` library load: vocabulary, merges, added tokens, BOS in front.

    Raises GemmaryError when the pieces are not text or the file cannot be written.
    """
    strings, types = pieces.strings(), pieces.types.tolist()
    if "\t" not in strings and _TAB_BYTE in strings:
        strings[strings.index(_TAB_BYTE)] = "\t"
    added = [
        {"id": i, "content": strings[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": types[i] != PieceType.USER_DEFINED or strings[i] in _TURN_MARKERS}
        for i in np.flatnonzero(np.isin(types, [PieceType.CONTROL, PieceType.UNKNOWN, PieceType.USER_DEFINED])).tolist()
    ]
    bos, unk = strings[pieces.bos_id], strings[pieces.unk_id]
    start: list[dict[str, Any]] = [{"SpecialToken": {"id": bos, "type_id": 0}}] if pieces.add_bos else []
    single: list[dict[str, Any]] = [*start, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{kind: fields | {"type_id": 1} for kind, fields in part.items()} for part in single]
    second[-1]["Sequence"]["id"] = "B"
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single + second,
            "special_tokens": {bos: {"id": bos, "ids": [pieces.bos_id], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unk,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: i for i, piece in enumerate(strings)},
            "merges": _merges(strings, pieces.scores),
        },
    }
    with atomic_file(path) as file:
        file.write(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode())


def _merges(strings: list[str], scores: NDArray[np.float32]) -> list[str]:
    """Every way to make a piece from two others, best score first, then longest left part, then longest right part: the
    order in which merging by rank chooses as SentencePiece's merging by score does."""
    known = set(strings)
    cuts = [
        (index, cut, len(piece))
        for index, piece in enumerate(strings)
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    index, cut, length = np.array(cuts, np.int64).reshape(-1, 3).T
    order = np.lexsort((cut - length, -cut, -scores[index]))
    rows = zip(index[order].tolist(), cut[order].tolist(), strict=True)
    return [f"{strings[i][:at]} {strings[i][at:]}" for i, at in rows]


def write_tokenizer_config(path: Path, pieces: Pieces, chat_template: str | None) -> None:
    """Writes `tokenizer_config.json`: the class, the special tokens, the BOS policy and the chat template, if any."""
    ids = {"bos": pieces.bos_id, "eos": pieces.eos_id, "pad": pieces.pad_id, "unk": pieces.unk_id}
    strings = {f"{name}_token": pieces.piece_bytes(index).decode() for name, index in ids.items()}
    config: dict[str, Any] = {
        "add_bos_token": pieces.add_bos,
        "add_eos_token": False,
        **strings,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _NO_LIMIT,
        "spaces_between_special_tokens": False,
        "tokenizer_class": "GemmaTokenizer",
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    with atomic_file(path) as file:
        file.write((json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode())
