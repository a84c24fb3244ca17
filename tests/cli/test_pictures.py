"""`gemmary run` with pictures: tables, COCO's JSON, drawings, folders and videos, and one line for each mistake."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gemmary
from tests.cli.conftest import Gemmary
from tests.vision import tiny_paligemma
from tests.vision.tiny_paligemma import picture

QUICK = ("--engine", "reference", "--max-tokens", 40)


@pytest.fixture(scope="session")
def seer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_paligemma.write_folder(tmp_path_factory.mktemp("models") / "seer")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    Image.fromarray(picture()).save(tmp_path / "room.png")
    return tmp_path / "room.png"


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Six pictures, the third of them broken, and what is no picture."""
    (tmp_path / "album" / "more").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.JPG", "d.webp", "more/e.png", "more/f.png")):
        Image.fromarray(picture(seed)).save(tmp_path / "album" / name)
    (tmp_path / "album" / "c.png").write_bytes(b"no picture")
    (tmp_path / "album" / "notes.txt").write_text("nor this")
    return tmp_path / "album"


def test_text_comes_as_it_is(gemmary_command: Gemmary, seer: Path, room: Path) -> None:
    done = gemmary_command("run", seer, "caption en", "--image", room, *QUICK)
    assert done.out == gemmary.load(seer, engine="reference").caption(room, max_tokens=40) + "\n"
    assert done.code == 0
    assert "seer · reference engine" in done.err
    both = gemmary_command("run", seer, "caption en", "--image", room, "--image", room, *QUICK, "--json")
    assert json.loads(both.out)["stats"]["prompt_tokens"] > 2 * tiny_paligemma.PATCHES


def test_objects_are_a_table(gemmary_command: Gemmary, seer: Path, room: Path) -> None:
    done = gemmary_command("run", seer, "detect cat ;ab", "--image", room, *QUICK)
    expected = gemmary.load(seer, engine="reference").detect(room, ["cat", "ab"], max_tokens=40)
    header, *rows = done.out.splitlines()
    assert header.split() == ["label", "score", "left", "top", "right", "bottom"]
    assert [row.split()[0] for row in rows] == [each.label for each in expected]
    assert [float(cell) for cell in rows[0].split()[2:]] == [round(side, 1) for side in expected[0].xyxy]


def test_json_is_as_coco_has_it(gemmary_command: Gemmary, seer: Path, room: Path, tmp_path: Path) -> None:
    from tests.vision.test_masks import random_arrays

    np.savez(seer / "mask_codec.npz", **random_arrays())
    try:
        done = gemmary_command("run", seer, "segment cat", "--image", room, *QUICK, "--json")
        found = json.loads(done.out)
        (mask,) = gemmary.load(seer, engine="reference").segment(room, "cat", max_tokens=40)
        table = gemmary_command("run", seer, "segment cat", "--image", room, *QUICK).out
    finally:
        (seer / "mask_codec.npz").unlink()
    assert found["images"] == [{"id": 1, "file_name": str(room), "width": 40, "height": 30}]
    assert found["categories"] == [{"id": 1, "name": "cat"}]
    (entry,) = found["annotations"]
    assert (entry["id"], entry["image_id"], entry["category_id"], entry["iscrowd"]) == (1, 1, 1, 0)
    left, top, width, height = entry["bbox"]
    assert (left, top, left + width, top + height) == pytest.approx(mask.box)
    assert entry["area"] == mask.array.sum()
    assert entry["segmentation"]["size"] == [30, 40]
    assert entry["score"] == pytest.approx(mask.score)
    assert found["malformed"] == []
    assert table.splitlines()[0].split()[-1] == "pixels"


def test_raw_is_free_and_says_what_is_malformed(
    gemmary_command: Gemmary, seer: Path, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = gemmary_command("run", seer, "detect cat", "--image", room, *QUICK, "--raw")
    model = gemmary.load(seer, engine="reference")
    written = model.generate("detect cat", image=room, max_tokens=40)
    assert free.out.splitlines()[0] == written.text
    assert [line for line in free.err.splitlines() if line.startswith("note: no object: ")] == [
        f"note: no object: {each.text} ({each.reason})" for each in written.malformed
    ]


def test_boxes_are_drawn(gemmary_command: Gemmary, seer: Path, room: Path, tmp_path: Path) -> None:
    done = gemmary_command("run", seer, "detect cat", "--image", room, *QUICK, "--save", tmp_path / "out.png")
    assert done.code == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (30, 40, 3)
    assert (drawn != picture()).any()
    assert "\033" not in done.out
    assert (
        "end its name in .png"
        in gemmary_command("run", seer, "detect cat", "--image", room, "--save", tmp_path / "out.gif").error
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_folder_becomes_lines_and_goes_on(gemmary_command: Gemmary, seer: Path, album: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    command = ("run", seer, "detect cat", "--images", album, "--out", out, *QUICK)
    done = gemmary_command(*command)
    assert done.code == 0
    assert "pictures: 5 answered, 1 broken" in done.err
    found = rows(out)
    assert [row["image"] for row in found] == ["a.png", "b.JPG", "c.png", "d.webp", "more/e.png", "more/f.png"]
    assert found[2]["error"].endswith("c.png is not a JPEG, PNG or WebP file")
    boxes = gemmary.load(seer, engine="reference").detect(album / "d.webp", ["cat"], max_tokens=40)
    assert [each["category"] for each in found[3]["annotations"]] == ["cat"] * len(boxes)
    assert found[3]["annotations"][0]["bbox"][:2] == pytest.approx(boxes[0].xyxy[:2])

    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4]) + lines[4][:30])  # killed while it wrote the fifth
    again = gemmary_command(*command)
    assert "pictures: 4 there already, 2 answered" in again.err
    assert [row["image"] for row in rows(out)] == [row["image"] for row in found]
    assert [row["text"] for row in rows(out) if "text" in row] == [row["text"] for row in found if "text" in row]

    assert (
        "holds answers to 'detect cat'"
        in gemmary_command("run", seer, "ocr", "--images", album, "--out", out, *QUICK).error
    )
    out.write_text("something else\n")
    assert "line 1 of" in gemmary_command(*command).error


def test_lines_go_to_stdout_where_no_file_is_named(gemmary_command: Gemmary, seer: Path, album: Path) -> None:
    done = gemmary_command("run", seer, "ocr", "--images", album, *QUICK)
    assert json.loads(done.out.splitlines()[0])["image"] == "a.png"
    assert len(done.out.splitlines()) == 6


def test_frames_of_a_video(
    gemmary_command: Gemmary, seer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for PyAV: what is tested is what becomes of its frames."""
    (tmp_path / "film.mp4").write_bytes(b"frames")
    monkeypatch.setitem(sys.modules, "av", None)
    failed = gemmary_command("run", seer, "ocr", "--images", tmp_path / "film.mp4", *QUICK)
    assert failed.error == 'the frames of a video need PyAV: pip install "gemmary[video]"'

    class Frame:
        def __init__(self, number: int) -> None:
            self.number = number

        def to_image(self) -> Image.Image:
            return Image.fromarray(picture(self.number))

    class Film:
        def __enter__(self) -> Film:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def decode(self, video: int) -> list[Frame]:
            return [Frame(number) for number in range(5)]

    av = ModuleType("av")
    av.open, av.FFmpegError = lambda path: Film(), RuntimeError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "av", av)
    done = gemmary_command("run", seer, "ocr", "--images", tmp_path / "film.mp4", "--every", 2, *QUICK)
    found = [json.loads(line) for line in done.out.splitlines()]
    assert [row["image"] for row in found] == ["0", "2", "4"]
    model = gemmary.load(seer, engine="reference")
    assert found[1]["text"] == model.ocr(picture(2), max_tokens=40)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["ocr", "--save", "x.png"], "--save is about pictures: give one with --image"),
        (["ocr", "--merge-iou", "0.5"], "--merge-iou is about pictures"),
        (["ocr", "--image", "room.png", "--out", "x"], "--out goes with --images"),
        (["ocr", "--image", "room.png", "--every", "2"], "--every goes with --images"),
        (["ocr", "--image", "room.png", "--system", "x"], "--system does not go with pictures"),
        (["ocr", "--image", "nowhere.png"], "nowhere.png does not exist"),
        (["ocr", "--image", "broken.png"], "broken.png is not a JPEG, PNG or WebP file"),
        (["detect a", "--image", "room.png", "--image", "room.png"], "objects are found in one picture"),
        (["detect ;", "--image", "room.png", "--merge-iou", "2"], "--merge-iou is a share above 0 and at most 1"),
        (["ocr", "--images", "nowhere"], "there is no folder or video nowhere"),
        (["ocr", "--images", "room.png"], "room.png is one picture: ask about it with --image"),
        (["ocr", "--images", "empty"], "empty holds no picture"),
        (["ocr", "--images", "empty", "--json"], "leave out --image, --save and --json"),
    ],
)
def test_mistakes_are_one_line(
    gemmary_command: Gemmary, seer: Path, room: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    (tmp_path / "broken.png").write_bytes(b"?")
    (tmp_path / "empty").mkdir()
    assert message in gemmary_command("run", seer, *flags, "--engine", "reference").error


def test_a_model_of_text(gemmary_command: Gemmary, base_model: Path, room: Path, album: Path) -> None:
    for flags in (["--image", room], ["--images", album]):
        assert (
            "reads text only: for pictures load a model that sees"
            in gemmary_command("run", base_model, "detect cat", *flags, *QUICK).error
        )
