"""Rows from every kind of file, each with its place, and splits that stay what they are."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gemmary.errors import GemmaryError
from gemmary.tune.sources import Source, find_sources, read_rows

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": f"é {n}"}, {"role": "model", "content": "b"}], "n": n} for n in range(5)
]


def write_jsonl(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress("\n".join(json.dumps(row) for row in ROWS).encode()))
    return path


def write_parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="PyArrow is not installed")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=2)
    return path


def write_saved(path: Path) -> Path:
    """As `datasets` does in save_to_disk: streams of Arrow and the list of them."""
    pyarrow = pytest.importorskip("pyarrow", reason="PyArrow is not installed")
    path.mkdir()
    names = []
    for shard, rows in enumerate((ROWS[:3], ROWS[3:])):
        table = pyarrow.Table.from_pylist(rows)
        names.append({"filename": f"data-{shard:05d}-of-00002.arrow"})
        with pyarrow.ipc.new_stream(path / names[-1]["filename"], table.schema) as stream:
            stream.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": names, "_split": "train"}))
    (path / "dataset_info.json").write_text("{}")
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_gzip,
    "rows.parquet": write_parquet,
    "saved": write_saved,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    assert list(read_rows(path)) == ROWS
    (source,) = find_sources(str(path)).values()
    assert list(source) == [(row, f"{path}:{number}") for number, row in enumerate(ROWS, 1)]


def test_a_folder_of_splits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00000-of-00002.parquet")
    write_parquet(tmp_path / "train-00001-of-00002.parquet")
    write_jsonl(tmp_path / "validation.jsonl", ROWS[:2])
    write_saved(tmp_path / "test")
    (tmp_path / "README.md").write_text("not data")
    found = find_sources(str(tmp_path))
    assert {name: len(list(source)) for name, source in found.items()} == {"train": 10, "valid": 2, "test": 5}
    assert [place for _, place in found["train"]][4:6] == [
        f"{tmp_path / 'train-00000-of-00002.parquet'}:5",
        f"{tmp_path / 'train-00001-of-00002.parquet'}:1",
    ]
    other = write_jsonl(tmp_path / "other.jsonl", ROWS[:1])
    assert len(list(find_sources(str(tmp_path), validation=str(other))["valid"])) == 1


def test_fractions_part_the_rows_and_stay_when_rows_are_added(tmp_path: Path) -> None:
    def parts(count: int, seed: int = 0) -> dict[str, list[int]]:
        path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a", "n": n} for n in range(count)])
        found = find_sources(str(path), validation=0.2, test=0.1, seed=seed)
        return {name: [row["n"] for row, _ in source] for name, source in found.items()}

    small, large = parts(300), parts(400)
    assert sorted(n for part in small.values() for n in part) == list(range(300))
    assert all(large[name][: len(small[name])] == small[name] for name in small)
    assert {name: len(part) for name, part in small.items()} == {"train": 207, "valid": 60, "test": 33}
    assert parts(300, seed=1)["valid"] != small["valid"]


def test_a_row_keeps_its_line_in_every_split(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"n": n} for n in range(1, 30)])
    for source in find_sources(str(path), validation=0.5).values():
        assert [place for _, place in source] == [f"{path}:{row['n']}" for row, _ in source]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"text": "a",}', "not valid JSON: "),
        (b"", "not valid JSON: the line is empty"),
        (b'["a"]', 'a row is a JSON object such as {"text": "…"}, not list'),
        (b'"a"', "not str"),
        (b'{"text": "\xff"}', "not UTF-8 text"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not valid JSON: absurd numbers"),
    ],
)
def test_a_bad_line_is_told_with_its_place(tmp_path: Path, line: bytes, error: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n' + line + b'\n{"text": "b"}\n')
    with pytest.raises(GemmaryError) as told:
        list(Source((path,)))
    assert str(told.value).startswith(f"{path}:2: ")
    assert error in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet", "saved"])
@pytest.mark.parametrize("damage", ["cut", "garbage"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str, damage: str) -> None:
    path = WRITERS[name](tmp_path / name)
    file = path / "data-00001-of-00002.arrow" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if damage == "cut" else b"\0garbage" * 99)
    with pytest.raises(GemmaryError, match=r"^cannot read ") as told:
        list(read_rows(path))
    assert "\n" not in str(told.value)


def test_what_is_not_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match=r"there is no file or folder .*absent\.jsonl"):
        find_sources(str(tmp_path / "absent.jsonl"))
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(GemmaryError, match=r"rows\.csv is not a \.jsonl or \.parquet file, or a folder saved"):
        find_sources(str(tmp_path / "rows.csv"))
    with pytest.raises(GemmaryError, match=r"has no train\.jsonl"):
        find_sources(str(tmp_path))
    write_jsonl(tmp_path / "train.jsonl")
    write_gzip(tmp_path / "train.jsonl.gz")
    with pytest.raises(GemmaryError, match=r"has train\.jsonl and train\.jsonl\.gz: keep one of them"):
        find_sources(str(tmp_path))
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "state.json").write_text("{}")
    with pytest.raises(GemmaryError, match="lists no data files"):
        list(read_rows(saved))
    (saved / "state.json").write_text('{"_data_files": [{"filename": "../../secret.arrow"}]}')
    with pytest.raises(GemmaryError, match=r"cannot read .*saved/secret\.arrow"):
        list(read_rows(saved))
