"""Image rows: what they become, how they are packed, and whole runs over them, from scratch and resumed."""

from __future__ import annotations

import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.errors import GemmaryError
from gemmary.tune.data import load_data
from gemmary.tune.image_rows import read_image_row
from gemmary.tune.packing import TOGETHER, Batches
from gemmary.tune.pretrain_settings import PretrainSettings
from gemmary.tune.preview import preview
from gemmary.tune.rows import Example, Form, example_of, form_of
from gemmary.tune.settings import Settings
from gemmary.tune.start import UNTRAINED, prepare
from gemmary.vision import objects
from gemmary.vision.preprocess import open_image, pixels

images = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

SIZE = (40, 24)
COLOURS = {"red": (220, 30, 30), "blue": (30, 60, 230)}
TEXT_TOKENS = 360


def write_scenes(folder: Path, count: int = 12) -> Path:
    """Pictures of one coloured box each, and three rows for each of them."""
    folder.mkdir()
    dice, rows = random.Random(3), []
    for i in range(count):
        colour = dice.choice(list(COLOURS))
        left, top = dice.randrange(20), dice.randrange(10)
        box = [left, top, left + dice.randrange(8, 20), top + dice.randrange(6, 14)]
        image = images.new("RGB", SIZE, (90, 90, 90))
        image.paste(COLOURS[colour], tuple(box))
        image.save(folder / f"{i}.png")
        rows += [
            {"image": f"{i}.png", "prefix": "detect box", "objects": [{"label": f"{colour} box", "box": box}]},
            {"image": f"{i}.png", "prefix": "answer en what colour?", "suffix": colour},
            {"image": f"{i}.png", "prefix": "caption en", "suffix": f"a {colour} box on grey"},
        ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> PretrainSettings:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "codec.npz").write_bytes(b"no codec")
    return PretrainSettings(
        data=str(write_scenes(folder / "scenes") / "rows.jsonl"),
        out=str(folder / "new"),
        held_out=0.2,
        validation=0.2,
        vocab_size=1152 + TEXT_TOKENS,
        num_layers=2,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=24,
        vision="image_size=16, patch_size=8, num_layers=2, hidden_size=12, num_heads=2, intermediate_size=20",  # type: ignore[arg-type]
        sequence_length=128,
        mask_codec=str(folder / "codec.npz"),
        steps=6,
        batch_size=2,
        learning_rate=1e-2,
        warmup_steps=2,
        evaluate_every=3,
        checkpoint_every=2,
        dtype="float32",
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="module")
def start(scratch: PretrainSettings) -> Path:
    path, _ = prepare(scratch)
    return path / UNTRAINED


@pytest.fixture(scope="module")
def settings(scratch: PretrainSettings, start: Path) -> Settings:
    assert scratch.data is not None
    return scratch.tuning(start, Path(scratch.data))


@pytest.fixture(scope="module")
def examples(settings: Settings, start: Path) -> list[Example]:
    return load_data(settings, open_checkpoint(start)).train


def batches(examples: list[Example], start: Path, **options: Any) -> Batches:
    config = open_checkpoint(start).config
    return Batches(examples, config, batch_size=2, sequence_length=64, seed=1, **options)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_row_is_places_prefix_newline_and_a_scored_suffix(examples: list[Example], start: Path) -> None:
    checkpoint = open_checkpoint(start)
    tokenizer, place = checkpoint.tokenizer, checkpoint.config.image_token_id
    assert checkpoint.config.vocab_size == place == tokenizer.id("<image>") == 1152 + TEXT_TOKENS
    found = examples[1]
    prefix = [*[place] * 4, tokenizer.bos_id, *tokenizer.encode("answer en what colour?"), tokenizer.id("\n")]
    tokens = found.tokens.tolist()
    assert tokens[: found.prefix] == prefix
    assert tokenizer.decode(tokens[found.prefix : -1]) in COLOURS
    assert tokens[-1] == tokenizer.eos_id
    assert found.scored.tolist() == [False] * len(prefix) + [True] * (len(tokens) - len(prefix))
    assert [picture.path.name for picture in found.pictures] == ["0.png"]


def test_objects_are_written_as_they_are_parsed(examples: list[Example], start: Path) -> None:
    tokenizer = open_checkpoint(start).tokenizer
    text = tokenizer.decode(examples[0].tokens[examples[0].prefix :].tolist())
    (found,), malformed = objects.parse(text)
    assert not malformed
    (row, *_) = (Path(examples[0].source.rpartition(":")[0])).read_text().splitlines()
    (thing,) = json.loads(row)["objects"]
    assert found.label == thing["label"]
    assert found.box(*SIZE) == pytest.approx(thing["box"], abs=0.1)
    assert [tokenizer.piece(i)[:4] for i in examples[0].tokens[examples[0].prefix :][:4].tolist()] == ["<loc"] * 4


class Codec:
    """A mask's code is how many of its columns are inside."""

    def encode(self, mask: Any) -> tuple[int, ...]:
        return (int((mask > 0.5).any(axis=0).argmax()),) * 16


def test_masks_are_pictures_or_codes(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes", 1)
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[4:20, 18:28] = 255
    images.fromarray(mask).save(folder / "mask.png")
    thing = {"label": "half", "box": [8, 4, 28, 20]}
    row = {"image": "0.png", "prefix": "segment half", "objects": [thing | {"mask": "mask.png"}]}
    found = read_image_row(row, folder, Codec, mirrors=True)  # type: ignore[arg-type]
    assert found.things[0].codes == (32,) * 16
    assert found.things[0].mirrored == (0,) * 16
    assert found.suffix == "<loc0170><loc0205><loc0852><loc0716>" + "<seg032>" * 16 + " half"
    row["objects"] = [thing | {"mask": list(range(16))}]
    assert read_image_row(row, folder, None).things[0].codes == tuple(range(16))


def test_where_there_are_no_objects_the_end_is_learnt(examples: list[Example], start: Path) -> None:
    checkpoint = open_checkpoint(start)
    row = {"image": "0.png", "prefix": "detect ring", "objects": []}
    folder = examples[0].pictures[0].path.parent
    found = example_of(row, checkpoint.tokenizer, form_of(checkpoint), source="", folder=folder)
    assert found.tokens[found.prefix :].tolist() == [checkpoint.tokenizer.eos_id]
    assert np.flatnonzero(found.scored).tolist() == [found.prefix]


BOX = {"label": "box", "box": [0, 0, 8, 8]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "none.png", "prefix": "", "suffix": "x"}, r"none.png does not exist"),
        ({"image": "rows.jsonl", "prefix": "", "suffix": "x"}, "is not a JPEG, PNG or WebP file"),
        ({"image": 3, "prefix": "", "suffix": "x"}, "image must be the path of a picture"),
        ({"image": "0.png", "prefix": "", "suffix": " "}, "suffix is empty"),
        ({"image": "0.png", "prefix": 1, "suffix": "x"}, "prefix must be a text, not int"),
        ({"image": "0.png", "suffix": "x"}, "a row is one of image"),
        ({"text": "no picture"}, "a model that sees pictures learns from image"),
        ({"image": "0.png", "prefix": "", "suffix": "x", "objects": [BOX]}, "a row is one of"),
        ({"image": ["0.png", "1.png"], "prefix": "", "objects": [BOX]}, "boxes need one picture"),
        ({"image": "0.png", "prefix": "", "objects": {}}, "objects is a list of objects, empty where there are none"),
        ({"image": "0.png", "prefix": "", "objects": [{"label": "a"}]}, "a box is .left, top, right, bottom."),
        ({"image": "0.png", "prefix": "", "objects": [{**BOX, "label": "a;b"}]}, "a text without ;"),
        ({"image": "0.png", "prefix": "", "objects": [{**BOX, "box": [0, 0, 41, 8]}]}, "not within the picture"),
        ({"image": "0.png", "prefix": "", "objects": [{**BOX, "box": [8, 0, 8, 8]}]}, "empty or not within"),
        ({"image": "0.png", "prefix": "", "objects": [{**BOX, "mask": [1] * 15}]}, "16 codes from 0 to 127"),
        ({"image": "0.png", "prefix": "", "objects": [{**BOX, "mask": "0.png"}]}, "codec.npz is not a mask codec"),
        ({"image": "0.png", "prefix": "x " * 200, "suffix": "x"}, "the row has .* tokens and --sequence-length is 128"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(
    row: dict[str, Any], message: str, settings: Settings, start: Path, tmp_path: Path
) -> None:
    folder = write_scenes(tmp_path / "scenes", 2)
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(GemmaryError, match=message) as caught:
        preview(replace(settings, data=str(folder / "rows.jsonl")), open_checkpoint(start), 1)
    assert str(caught.value).startswith(f"{folder / 'rows.jsonl'}:1: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_one_line(settings: Settings, start: Path, tmp_path: Path) -> None:
    """Its header is whole, so it is found when it is needed."""
    folder = write_scenes(tmp_path / "scenes", 1)
    images.fromarray(np.random.default_rng(0).integers(0, 255, (24, 40, 3), np.uint8)).save(folder / "0.png")
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:1000])
    rows = load_data(replace(settings, data=str(folder / "rows.jsonl")), open_checkpoint(start)).train
    with pytest.raises(GemmaryError, match=r"0\.png cannot be read"):
        batches(rows, start).get(0, 0)


def test_a_text_model_takes_no_pictures(tmp_path: Path) -> None:
    from tests.tokenizer import small

    row = {"image": "0.png", "prefix": "", "suffix": "x"}
    with pytest.raises(GemmaryError, match="rows:1: the model sees no pictures"):
        example_of(row, small.build(), Form("gemma1", is_raw=True), source="rows:1", folder=tmp_path)


def test_a_picture_lies_in_one_split(settings: Settings, start: Path) -> None:
    data = load_data(replace(settings, validation=0.3, test=0.3), open_checkpoint(start))
    seen = [{example.pictures[0].path for example in split} for split in (data.train, data.valid, data.test)]
    assert all(seen)
    assert sum(map(len, seen)) == len(set.union(*seen)) == 12


# Packing --------------------------------------------------------------------------------------------------------------


def test_rows_of_one_picture_share_one_run_of_the_tower(examples: list[Example], start: Path) -> None:
    made = batches(examples, start)
    config = made.config
    for epoch in range(2):
        packs = made.packs(epoch)
        assert sorted(i for pack in packs for i in pack) == list(range(len(examples)))
        together = {examples[i].pictures for pack in packs for i in pack[:1]}
        assert len(together) > 1
        for index in range(made.count(epoch)):
            micro = made.get(epoch, index)
            assert micro.pixels is not None
            assert micro.shown is not None
            assert micro.batch.pictures is not None
            assert len(micro.shown) * 4 == len(micro.batch.pictures[0])
            assert len(micro.pixels) < len(micro.shown)
            documents = [examples[i] for pack in packs[2 * index : 2 * index + 2] for i in pack]
            for document, shown in zip(documents, micro.shown, strict=True):
                expected = pixels(open_image(document.pictures[0].path), 16)
                assert np.array_equal(micro.pixels[shown], expected)
    assert config.vision is not None
    assert made.packs(0) != made.packs(1)


def test_a_picture_of_many_rows_does_not_fill_a_pack(examples: list[Example], start: Path) -> None:
    made = batches([examples[1]] * 3 * TOGETHER, start, shuffle=False)
    groups = made._together(range(3 * TOGETHER))
    assert [len(group) for group in groups] == [min(TOGETHER, 64 // made.lengths[0])] * len(groups)


# Looking at it --------------------------------------------------------------------------------------------------------


def test_preview_folds_the_places(settings: Settings, start: Path) -> None:
    shown = preview(settings, open_checkpoint(start), 2)
    stream = io.StringIO()
    shown.write(stream)
    text = stream.getvalue()
    assert "<image> x 4|<bos>|" in text
    assert "40 x 24 pixels" in text
    assert "«<loc" in text
    assert "mask: pictures and prefix see each other" in text
    document = shown.as_json()["documents"][0]
    assert document["pieces"][:4] == ["<image>"] * 4
    assert document["visible"]["global"][0] == [0, shown.documents[0].prefix - 1]


# Settings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": None}, "learns from text or from data"),
        ({"text": "a.txt"}, "learns from text or from data"),
        ({"vision": None}, "give both"),
        ({"vision": {"image_size": 16}}, "vision must be image_size, num_layers, .*, each with a whole number"),
        ({"vision": "image_size=9,patch_size=2,num_layers=1,hidden_size=4,num_heads=1,intermediate_size=4"}, "patches"),
    ],
)
def test_a_bad_shape_is_one_line(wrong: dict[str, Any], message: str, scratch: PretrainSettings) -> None:
    with pytest.raises(GemmaryError, match=message):
        replace(scratch, **wrong)


def test_the_settings_read_themselves_again(scratch: PretrainSettings, tmp_path: Path) -> None:
    (tmp_path / "again.yaml").write_text(scratch.to_yaml())
    assert PretrainSettings.read(tmp_path / "again.yaml") == scratch
    assert json.loads(json.dumps(scratch.start()))["vision"]["patch_size"] == 8


def test_the_tower_of_an_adapter_is_asked_for(settings: Settings) -> None:
    assert replace(settings, method="lora", train_tower=True).trains_tower
    assert settings.trains_tower
    assert not replace(settings, method="lora").trains_tower
    assert not replace(settings, train_tower=False).trains_tower
