"""Boxes and codes in generated text."""

from __future__ import annotations

import pytest

from gemmary.vision.objects import parse

BOX = "<loc0051><loc0309><loc0708><loc0646>"
MASK = "".join(f"<seg{n:03d}>" for n in range(16))


def test_reads_boxes_top_first():
    objects, malformed = parse(f"{BOX} shoe ; <loc0000><loc0512><loc0256><loc1023> big cat")
    assert [(o.label, o.locations) for o in objects] == [
        ("shoe", (51, 309, 708, 646)),
        ("big cat", (0, 512, 256, 1023)),
    ]
    assert not malformed
    assert objects[1].box(1024, 512) == (512, 0, 1023, 128)
    assert objects[1].box(1023, 1023, divisor=1023) == (512, 0, 1023, 256)


def test_reads_masks():
    objects, malformed = parse(f"{BOX}{MASK} cat;{BOX} dog")
    assert objects[0].codes == tuple(range(16))
    assert [o.label for o in objects] == ["cat", "dog"]
    assert not malformed


def test_says_where_the_tokens_stand():
    text = f"I see {BOX} a shoe"
    assert text[slice(*parse(text)[0][0].span)] == BOX


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<loc0001><loc0002><loc0003> cat", "3 locations, not 4"),
        (BOX + MASK[:-8] + " cat", "15 codes, not 16"),
        (MASK + BOX + " cat", "locations after codes"),
        (MASK + " cat", "0 locations, not 4"),
        ("<loc0500><loc0002><loc0100><loc0700> cat", "an empty box"),
        ("<loc0001><loc0002><loc0003><loc1024> cat", "a token that the vocabulary does not have"),
    ],
)
def test_reports_what_is_no_object(text, reason):
    objects, malformed = parse(f"{BOX} dog ; {text} ; {BOX} bird")
    assert [o.label for o in objects] == ["dog", "bird"]
    assert len(malformed) == 1
    assert malformed[0].reason.startswith(reason)
    assert malformed[0].text.endswith(" cat")


def test_text_without_objects_has_none():
    assert parse("a cow on the beach") == ([], [])
