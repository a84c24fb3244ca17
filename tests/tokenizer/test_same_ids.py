"""Every reader gives the ids of the original tokenizer, on more than 10,000 lines for both base vocabularies."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from gemmary.tokenizer import PieceType, Tokenizer
from tests.tokenizer import corpus
from tests.tokenizer.oracle import Oracle, decode
from tests.tokenizer.starter import Arrays


def normal_pieces(tokenizer: Tokenizer) -> list[str]:
    pieces = tokenizer.to_pieces()
    strings = pieces.strings()
    return [strings[i] for i in np.flatnonzero(pieces.types == PieceType.NORMAL).tolist()]


def assert_equal_ids(lines: list[str], ours: list[list[int]], others: list[list[int]]) -> None:
    different = [f"{line!r}: {a} != {b}" for line, a, b in zip(lines, ours, others, strict=True) if a != b]
    assert not different, f"{len(different)} of {len(lines)} lines differ, first {different[0]}"


@pytest.mark.parametrize(("name", "stride"), [("gemma2", 1), ("paligemma", 4)])
def test_model_and_json_and_gguf_arrays_agree_with_the_tokenizers_library(
    shared: Path, tmp_path: Path, name: str, stride: int, request: pytest.FixtureRequest
) -> None:
    """PaliGemma's vocabulary is the 256,000 with location and mask pieces behind it, so a quarter of the lines do."""
    model: Tokenizer = request.getfixturevalue(name)
    source = shared / "tokenizers" / name / "tokenizer.json"
    shutil.copy(source, tmp_path)
    from_json = Tokenizer.from_folder(tmp_path)
    a = model.to_arrays()
    from_gguf = Tokenizer.from_arrays(
        a.blob, a.offsets, a.scores, a.types, bos_id=a.bos_id, eos_id=a.eos_id, pad_id=a.pad_id, unk_id=a.unk_id
    )
    lines = corpus.lines(normal_pieces(model))[::stride]
    assert len(set(lines)) >= 10_000 // stride
    ours = [model.encode(line) for line in lines]
    assert_equal_ids(lines, ours, [from_json.encode(line) for line in lines])
    assert_equal_ids(lines, ours, [from_gguf.encode(line) for line in lines])
    library = tokenizers.Tokenizer.from_file(str(source))
    encoded = library.encode_batch_fast(lines, add_special_tokens=False)
    assert_equal_ids(lines, ours, [encoding.ids for encoding in encoded])


def test_the_starters_vocabulary_agrees_with_the_algorithm_in_plain_python(
    gemma3: Tokenizer, starter_arrays: Arrays
) -> None:
    a = starter_arrays
    spelled = [piece.replace(" ", "\u2581") for piece in a.pieces]
    by_type = {kind: np.flatnonzero(a.types == kind).tolist() for kind in PieceType}
    matched = {*by_type[PieceType.USER_DEFINED], *by_type[PieceType.CONTROL]} - set(a.special_ids.values())
    oracle = Oracle(
        scores={spelled[i]: float(a.scores[i]) for i in by_type[PieceType.NORMAL]},
        ids={piece: i for i, piece in enumerate(spelled)},
        user_defined={spelled[i] for i in matched},
    )
    lines = corpus.lines([spelled[i] for i in by_type[PieceType.NORMAL]])
    assert len(set(lines)) >= 10_000
    ours = [gemma3.encode(line) for line in lines]
    assert_equal_ids(lines, ours, [oracle.encode(line) for line in lines])
    for line, ids in zip(lines, ours, strict=True):
        assert gemma3.decode(ids) == line.replace("\u2581", " ") == decode([spelled[i] for i in ids])


def test_what_is_saved_loads_in_the_tokenizers_library_and_here(
    gemma3: Tokenizer, gemma3_folder: Path, tmp_path: Path
) -> None:
    lines = corpus.lines(normal_pieces(gemma3))
    ours = [gemma3.encode(line) for line in lines]
    library = tokenizers.Tokenizer.from_file(str(gemma3_folder / "tokenizer.json"))
    encoded = library.encode_batch_fast(lines, add_special_tokens=False)
    assert_equal_ids(lines, ours, [encoding.ids for encoding in encoded])
    assert library.encode("hi").ids == gemma3.encode("hi", bos=True)
    from_model = Tokenizer.from_folder(gemma3_folder)
    assert_equal_ids(lines, ours, [from_model.encode(line) for line in lines])
    shutil.copy(gemma3_folder / "tokenizer.json", tmp_path)
    from_json = Tokenizer.from_folder(tmp_path)
    assert_equal_ids(lines, ours, [from_json.encode(line) for line in lines])
    read, original = from_json.to_pieces(), gemma3.to_pieces()
    assert read.blob == original.blob
    np.testing.assert_array_equal(read.types, original.types)
    normal = original.types == PieceType.NORMAL  # only the order of the scores counts, and all that the file can tell
    np.testing.assert_array_equal(np.argsort(read.scores[normal]), np.argsort(original.scores[normal]))


def test_one_long_text_gives_the_same_ids_as_the_tokenizers_library(gemma2: Tokenizer, shared: Path) -> None:
    lines = corpus.lines(normal_pieces(gemma2))
    text = "\n".join(random.Random(5).sample(lines, 3000))
    library = tokenizers.Tokenizer.from_file(str(shared / "tokenizers" / "gemma2" / "tokenizer.json"))
    assert gemma2.encode(text) == library.encode(text, add_special_tokens=False).ids
