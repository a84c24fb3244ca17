"""A run's settings: flags over a file, one line for each mistake, and the exact run as a file again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from gemmary.errors import GemmaryError
from gemmary.tune.settings import TARGETS, Settings

pytest.importorskip("yaml", reason="PyYAML is not installed")

GIVEN: dict[str, Any] = {"model": "starter", "data": "rows.jsonl", "out": "adapter"}


def read(tmp_path: Path, text: str, **flags: Any) -> Settings:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    return Settings.read(tmp_path / "run.yaml", **{**GIVEN, **flags})


def test_defaults_are_filled_in() -> None:
    plain = Settings.read(None, **GIVEN)
    assert (plain.method, plain.learning_rate, plain.epochs, plain.steps) == ("lora", 2e-4, 1.0, None)
    assert (plain.batch_size, plain.sequence_length, plain.lora_targets) == (4, 512, TARGETS)
    assert Settings(**GIVEN, method="full").learning_rate == 2e-5
    assert Settings(**GIVEN, steps=3).epochs is None


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    text = "batch-size: 8\nlora_rank: 4\nlearning_rate: 1e-4\nsequence_length: 1_024\ngradient_checkpointing: off\n"
    found = read(tmp_path, text, batch_size="2", lora_rank=None)
    assert (found.batch_size, found.lora_rank, found.sequence_length) == (2, 4, 1024)
    assert found.learning_rate == 1e-4, "YAML reads 1e-4 as text"
    assert found.gradient_checkpointing == "off", "YAML reads off as false"


def test_what_to_yaml_writes_reads_the_same(tmp_path: Path) -> None:
    one = Settings(**GIVEN, steps=7, lora_targets="v_proj,q", validation=0.1, dora=True, learning_rate=3e-5, threads=2)
    (tmp_path / "a.yaml").write_text(one.to_yaml())
    assert Settings.read(tmp_path / "a.yaml") == one
    assert one.lora_targets == ("q", "v")
    assert Settings.read(tmp_path / "a.yaml").to_yaml() == one.to_yaml()
    assert list(dataclasses.asdict(one)) == [
        line.split(":")[0] for line in one.to_yaml().splitlines() if line[0] != "-"
    ]


@pytest.mark.parametrize("targets", ["all", ["all-linear"], "q,k,v,o,gate,up,down,projector"])
def test_names_of_targets(targets: object) -> None:
    assert Settings(**GIVEN, lora_targets=targets).lora_targets == TARGETS


def test_names_of_the_towers_targets() -> None:
    found = Settings(**GIVEN, lora_targets="q_proj,fc2,out_proj,vision.q", train_tower=True)
    assert found.lora_targets == ("q", "vision.q", "vision.o", "vision.down")
    for names in ("q,fc1", "projector"):
        with pytest.raises(GemmaryError, match="of the vision tower: give --train-tower with it"):
            Settings(**GIVEN, lora_targets=names)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("batch_size: four", "run.yaml: batch_size must be a whole number of at least 1, not 'four'"),
        ("batch-size: 0", "run.yaml: batch-size must be a whole number of at least 1, not 0"),
        ("batch_size: 1.5", "not 1.5"),
        ("batch_size: true", "not True"),
        ("batch_size:", "not None"),
        ("method: lara", "run.yaml: method must be one of lora, qlora, full, not 'lara'"),
        ("learning_rate: -1", "must be a number above 0, not -1"),
        ("learning_rate: .nan", "must be a number above 0, not nan"),
        ("lora_dropout: 1", "must be a number of at least 0 and below 1, not 1"),
        ("lora_targets: [q, w]", "must be all, or some of q, k, v, o, gate, up, down, projector, vision.q"),
        ("rslora: 1", "run.yaml: rslora must be true or false, not 1"),
        ("validation: 1.5", "a fraction between 0 and 1"),
        ("lora_rnak: 8", "run.yaml: no option is called 'lora_rnak'; did you mean lora_rank?"),
        ("seed: 1\nseed: 2", "run.yaml: seed stands twice"),
        ("batch_size: 1\nbatch-size: 2", "run.yaml: batch-size stands twice"),
        ("- 1", "not a list of `key: value` lines"),
        ("a: [", "run.yaml:1: not valid YAML"),
        ("validation: 0.5\ntest: 0.5", "validation and test take all rows"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, text: str, error: str) -> None:
    with pytest.raises(GemmaryError) as told:
        read(tmp_path, text)
    assert error in str(told.value)
    assert "\n" not in str(told.value)


def test_flags_are_named_as_flags() -> None:
    with pytest.raises(GemmaryError, match=r"^--batch-size must be a whole number of at least 1, not 'x'$"):
        Settings.read(None, **GIVEN, batch_size="x")
    with pytest.raises(GemmaryError, match="no option is called 'batch'"):
        Settings.read(None, **GIVEN, batch=1)
    with pytest.raises(GemmaryError, match="there is no data: give DATA"):
        Settings.read(None, model="starter", out="x")
    with pytest.raises(GemmaryError, match=r"cannot read nowhere\.yaml"):
        Settings.read("nowhere.yaml", **GIVEN)


def test_every_option_explains_itself() -> None:
    for each in Settings.options():
        assert each.help
        assert each.is_switch or each.choices or each.metavar, each.name
    by_flag = {each.flag: each for each in Settings.options()}
    assert by_flag["--batch-size"].help == "packs of documents computed together (default: 4)"
    assert by_flag["--rslora"].is_switch
    assert by_flag["--method"].choices == ("lora", "qlora", "full")
    assert [each.name for each in Settings.options() if each.is_positional] == ["model", "data"]
