"""Stamps in scenes: what is read of a package, where things lie, and the rows. The package is made here."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recipes import tuxpaint
from recipes.tuxpaint import LABELS, LARGEST, ROOT, SIZE, Stamp, composition, rows, stamps


def png(colour: tuple[int, int, int], width: int, height: int, margin: int = 10) -> bytes:
    """A plain oblong with nothing around it."""
    image = np.zeros((height + 2 * margin, width + 2 * margin, 4), np.uint8)
    image[margin : margin + height, margin : margin + width] = (*colour, 255)
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `dpkg-deb` lays it out: a bird, a fruit, one without a caption, one without a see-through part, a tool."""
    files = {
        "animals/birds/crow.png": png((20, 20, 20), 200, 100),
        "animals/birds/crow.txt": b"A crow.\naf.utf8='n Kraai.\n",
        "animals/birds/egg.png": png((250, 250, 250), 20, 30),
        "food/fruit/apple.png": png((250, 20, 30), 30, 60),
        "food/fruit/apple.txt": b"An apple from Kent!\n",
        "town/houses/wall.png": png((90, 90, 90), 40, 40, margin=0),
        "town/houses/wall.txt": b"A wall.\n",
        "household/tools/saw.png": png((90, 90, 90), 40, 40),
        "household/tools/saw.txt": b"A saw.\n",
    }
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(ROOT + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    path = tmp_path_factory.mktemp("debian") / "stamps.deb"
    with path.open("wb") as out:
        out.write(b"!<arch>\n")
        for name, content in (("debian-binary", b"2.0\n"), ("data.tar.xz", data.getvalue())):
            out.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
            out.write(content + b"\n" * (len(content) % 2))
    return path


@pytest.fixture(scope="module")
def found(package: Path) -> list[Stamp]:
    return stamps(package)


def test_a_package_is_read(found: list[Stamp]) -> None:
    assert [(each.name, each.label, each.caption) for each in found] == [
        ("animals/birds/crow", "bird", "a crow"),
        ("food/fruit/apple", "fruit", "an apple from Kent"),
    ]
    assert found[0].picture.shape == (LARGEST // 2, LARGEST, 4)  # cut to what is seen
    assert found[1].picture.shape == (60, 30, 4)  # and never made larger
    assert all(each.picture[..., 3].min() > 250 for each in found)


def test_boxes_and_masks_are_where_the_stamps_are(found: list[Stamp]) -> None:
    made = [composition(seed, found) for seed in range(30)]
    assert {len(each.things) for each in made} == {1, 2, 3}
    assert {thing.stamp.label for each in made for thing in each.things} == {"bird", "fruit"}
    for each in made:
        assert each.picture.shape == (SIZE, SIZE, 3)
        assert sum(thing.mask.astype(int) for thing in each.things).max() == 1
        tops = [thing.box[1] for thing in each.things]
        assert tops == sorted(tops)
        for thing in each.things:
            left, top, right, bottom = thing.box
            assert thing.mask[top:bottom, left:right].sum() == thing.mask.sum()
            assert thing.mask.sum() > 0.8 * thing.stamp.picture[..., 0].size * (35 / 72) ** 2
            colour = thing.stamp.picture[0, 0, :3].astype(int)
            assert np.abs(np.median(each.picture[thing.mask], axis=0) - colour).max() <= 3
    again = composition(7, found)
    np.testing.assert_array_equal(again.picture, made[7].picture)
    assert (made[8].picture != again.picture).any()


def test_what_shows_too_little_is_left_out(found: list[Stamp]) -> None:
    """A stamp as the ground would be no thing that anyone sees."""
    grey = replace(found[1], picture=np.full((50, 50, 4), (128, 128, 128, 255), np.uint8))
    for seed in range(20):
        for thing in composition(seed, [grey]).things:
            ring = composition(seed, [grey]).picture[~thing.mask]
            assert np.abs(ring.mean(axis=0) - 128).sum() > 30


class Codes:
    """In the place of a codec."""

    def encode(self, mask: object) -> tuple[int, ...]:
        return tuple(range(16))


def test_rows(found: list[Stamp]) -> None:
    kinds = set()
    for seed in range(40):
        made = composition(seed, found)
        written = list(rows(made, "a.png", np.random.default_rng(seed), Codes()))  # type: ignore[arg-type]
        assert [row["prefix"].split()[0] for row in written[:1]] == ["detect"]
        for row in written:
            task, _, asked = row["prefix"].partition(" ")
            kinds.add(task)
            if task == "caption":
                assert row["suffix"].count("a crow") == [t.stamp.label for t in made.things].count("bird")
                continue
            labels = asked.split(" ; ")
            assert set(labels) <= set(LABELS)
            truths = [thing for thing in made.things if thing.stamp.label in labels]
            truths.sort(key=lambda thing: labels.index(thing.stamp.label))
            assert [(each["label"], tuple(each["box"])) for each in row["objects"]] == [
                (thing.stamp.label, thing.box) for thing in truths
            ]
            assert all(("mask" in each) == (task == "segment") for each in row["objects"])
    assert kinds == {"detect", "segment", "caption"}
    assert len(list(rows(composition(0, found), "a.png", np.random.default_rng(0)))) == 1


def test_files(found: list[Stamp], tmp_path: Path) -> None:
    assert tuxpaint.write(tmp_path, "train", 3, found, None) == 3
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 3
    saved = np.asarray(Image.open(tmp_path / "pictures/train/00002.png"))
    np.testing.assert_array_equal(saved, composition(2, found).picture)
