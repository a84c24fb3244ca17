"""Corrupt and hostile tokenizer files: one line, never a crash."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.tokenizer import Tokenizer, proto
from tests.tokenizer import small

PROBE = "abc <mask>\n\n日x <0x41> é\0 <start_of_turn>"


def use(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(PROBE, bos=True, escape_markers=True)
    tokenizer.decode(ids)
    tokenizer.to_arrays()


def refused_or_usable(make: Callable[[], Tokenizer]) -> bool:
    """Whether it was refused. Anything but a one-line GemmaryError fails the test."""
    try:
        use(make())
    except GemmaryError as error:
        message = str(error)
    else:
        return False
    assert "\n" not in message
    assert len(message) < 400
    return True


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out)) if rng.random() < 0.7 else max(0, len(out) - 1 - rng.randrange(120))
        change = rng.randrange(4)
        if change == 0:
            out[at] = rng.randrange(256)
        elif change == 1:
            del out[at : at + rng.randint(1, 20)]
        elif change == 2:
            out[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            del out[at + 1 :]
    return bytes(out)


def test_mutated_model_files() -> None:
    rng, good = random.Random(7), small.build().to_model_bytes()
    refused = sum(refused_or_usable(lambda: Tokenizer.from_model_bytes(mutate(rng, good))) for _ in range(3000))
    assert 1500 < refused < 3000


def test_model_files_with_mutated_fields() -> None:
    """The same file with well-formed but wrong pieces, types, scores and switches."""
    rng, good = random.Random(8), list(proto._fields(small.build().to_model_bytes()))
    values: list[int | bytes] = [0, 1, 2, 3, 4, 5, 6, 99, 1 << 31, 1 << 63, b"", b"abc", b"<unk>", b"\xff\xfe", b"a\0"]
    values += [np.float32(x).tobytes() for x in (np.nan, np.inf, -1e38)]

    def make() -> Tokenizer:
        fields = list(good)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(fields)) if rng.random() < 0.6 else len(fields) - 1 - rng.randrange(2)
            number, body = fields[at]
            assert isinstance(body, bytes)
            inner = dict(proto._fields(body))
            inner[rng.choice([*inner, 9])] = rng.choice(values)
            fields[at] = number, b"".join(_field(key, value, number) for key, value in inner.items())
        return Tokenizer.from_model_bytes(b"".join(proto._field(number, value) for number, value in fields))

    assert sum(refused_or_usable(make) for _ in range(800)) > 400


def _field(number: int, value: int | bytes, section: int) -> bytes:
    if section == 1 and number == 2 and isinstance(value, bytes) and len(value) == 4:
        return proto._varint(number << 3 | 5) + value
    return proto._field(number, value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has no pieces"),
        (b"not a model", "tokenizer.model is corrupt"),
        (b"\x0a\x05ab", "ends in the middle"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "ends in the middle|cut off"),
        (b"\x0a" + b"\xff" * 30, "cut off"),
    ],
)
def test_short_model_files(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(GemmaryError, match=message):
        Tokenizer.from_folder(tmp_path)


def _with_specs(trainer: bytes, normalizer: bytes) -> bytes:
    pieces = b"".join(proto._field(n, v) for n, v in proto._fields(small.build().to_model_bytes()) if n == 1)
    return pieces + proto._field(2, trainer) + proto._field(3, normalizer)


@pytest.mark.parametrize(
    ("trainer", "normalizer", "message"),
    [
        (b"\x18\x01\x98\x02\x01", b"\x18\x00\x20\x00", "not BPE"),
        (b"\x18\x02", b"\x18\x00\x20\x00", "byte fallback"),
        (b"\x18\x02\x98\x02\x01", b"", "adds or removes spaces"),
        (b"\x18\x02\x98\x02\x01", b"\x18\x00\x20\x00\x12\x04abcd", "table for Unicode normalisation"),
    ],
)
def test_other_models_are_not_gemmas(trainer: bytes, normalizer: bytes, message: str) -> None:
    with pytest.raises(GemmaryError, match=message):
        Tokenizer.from_model_bytes(_with_specs(trainer, normalizer))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("small")
    small.build().save(folder)
    loaded: dict[str, Any] = json.loads((folder / "tokenizer.json").read_bytes())
    return loaded


def _break(document: dict[str, Any], *path: str, value: object) -> bytes:
    changed = copy.deepcopy(document)
    at: Any = changed
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(changed).encode()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("model", "type"), "Unigram", "not BPE with byte fallback"),
        (("model", "byte_fallback"), False, "not BPE with byte fallback"),
        (("model", "vocab"), {"a": 0}, "."),
        (("model", "vocab"), {"a": "0"}, "not whole numbers"),
        (("model", "vocab"), [["a", 0.0]], "AttributeError"),
        (("model", "vocab", "abc"), 100_000, "gaps or stand twice"),
        (("model", "vocab", "abc"), 1, "gaps or stand twice"),
        (("model", "vocab", "\ud800"), 285, "UnicodeEncodeError"),
        (("model", "merges"), ["x y"], "KeyError"),
        (("model", "merges"), [1], "TypeError"),
        (("model", "merges"), ["t h", "a b"], "not stand in the order"),
        (("normalizer",), None, "TypeError"),
        (("normalizer",), {"type": "NFKC"}, "KeyError"),
        (("added_tokens",), [{"id": 0}], "KeyError"),
        (("added_tokens",), [], "."),
    ],
)
def test_json_files_that_are_not_gemmas(
    tmp_path: Path, document: dict[str, Any], path: tuple[str, ...], value: object, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(_break(document, *path, value=value))
    if message == ".":
        assert refused_or_usable(lambda: Tokenizer.from_folder(tmp_path)) or path == ("added_tokens",)
        return
    with pytest.raises(GemmaryError, match=message):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model": {}}'])
def test_json_files_that_are_something_else(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(GemmaryError, match=r"tokenizer\.json is not") as caught:
        Tokenizer.from_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_mutated_json_files(tmp_path: Path, document: dict[str, Any]) -> None:
    rng, good = random.Random(9), json.dumps(document).encode()
    file = tmp_path / "tokenizer.json"

    def make() -> Tokenizer:
        file.write_bytes(mutate(rng, good))
        return Tokenizer.from_folder(tmp_path)

    assert sum(refused_or_usable(make) for _ in range(1000)) > 500


def _arrays() -> dict[str, Any]:
    a = small.build().to_arrays()
    return {
        name: getattr(a, name)
        for name in ("blob", "offsets", "scores", "types", "bos_id", "eos_id", "pad_id", "unk_id")
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.update(blob=a["blob"][:-1]), "empty or longer"),
        (lambda a: a.update(blob=b"\xff" + a["blob"][1:]), "not UTF-8"),
        (lambda a: a["offsets"].__setitem__(5, 1 << 62), "empty or longer"),
        (lambda a: a["offsets"].__setitem__(0, -(1 << 62)), "empty or longer"),
        (lambda a: a["offsets"].__setitem__(-1, 1 << 40), "empty or longer"),
        (lambda a: a.update(offsets=a["offsets"][:-1]), "as many of each"),
        (
            lambda a: a.update(offsets=np.zeros(1, np.int64), scores=a["scores"][:0], types=a["types"][:0]),
            "as many of each",
        ),
        (lambda a: a["scores"].__setitem__(9, np.nan), "not a finite number"),
        (lambda a: a["types"].__setitem__(9, 7), "unknown type"),
        (lambda a: a.update(bos_id=-1), "bos id -1"),
        (lambda a: a.update(unk_id=1 << 40), "unk id"),
        (lambda a: a.update(pad_id=1), "four different ids"),
        (lambda a: a["types"].__setitem__(300 - 20, 6), "corrupt"),
    ],
)
def test_hostile_arrays(change: Callable[[dict[str, Any]], None], message: str) -> None:
    arrays = _arrays()
    change(arrays)
    with pytest.raises(GemmaryError, match=message):
        Tokenizer.from_arrays(**arrays)


def test_arrays_may_lie_inside_a_larger_buffer() -> None:
    arrays = _arrays()
    arrays["blob"] = memoryview(b" \xff " + arrays["blob"] + b" \xff")
    arrays["offsets"] = arrays["offsets"] + 3
    assert Tokenizer.from_arrays(**arrays).to_model_bytes() == small.build().to_model_bytes()


def test_duplicate_pieces_are_refused() -> None:
    pieces = [*small.PIECES[:-1], "ab"]
    with pytest.raises(GemmaryError, match="ab is already defined"):
        Tokenizer.from_pieces(pieces, small.SCORES, small.TYPES)


def test_long_pieces_round_trip() -> None:
    """Lengths of 127 and 128 bytes and more need longer varints, inside and outside."""
    tail = ["x" * n for n in (118, 119, 120, 127, 128, 129, 300, 4096)]
    pieces = [*small.PIECES, *tail]
    types, scores = [*small.TYPES, *[1] * len(tail)], [*small.SCORES, *[-99.0] * len(tail)]
    tokenizer = Tokenizer.from_pieces(pieces, scores, types)
    read = Tokenizer.from_model_bytes(tokenizer.to_model_bytes()).to_arrays()
    assert read.strings() == pieces
    assert read.types.tolist() == types
    with pytest.raises(GemmaryError, match="longer than 4096 bytes"):
        Tokenizer.from_pieces([*pieces, "x" * 4097], [*scores, -99.0], [*types, 1])
