"""The settings of a run from scratch: what they share with `tune`, and which shapes they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemmary.errors import GemmaryError
from gemmary.tune.pretrain_settings import PretrainSettings

GIVEN = {"text": "books", "out": "new"}


def test_a_file_and_flags_give_a_gemma_2_of_any_size(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("text: [a.txt, b]\nout: new\nnum-layers: 3\nhidden_size: 48\nsteps: 7\n")
    settings = PretrainSettings.read(tmp_path / "run.yaml", hidden_size="96", context_length="64", sequence_length="32")
    assert settings.text == ("a.txt", "b")
    config = settings.config()
    assert (config.family, config.num_layers, config.hidden_size) == ("gemma2", 3, 96)
    assert config.layer_types == ("local", "global", "local")
    assert (config.context_length, config.sliding_window, config.query_pre_attn_scalar) == (64, 32, settings.head_dim)
    assert (config.attn_logit_softcap, config.final_logit_softcap, config.post_norms) == (50.0, 30.0, True)
    tuning = settings.tuning(Path("start/untrained"), Path("start/data"))
    assert (tuning.method, tuning.steps, tuning.sequence_length) == ("full", 7, 32)
    assert (tuning.model, tuning.data, tuning.out) == ("start/untrained", "start/data", str(Path("new/model")))
    assert tuning.learning_rate == settings.learning_rate


def test_the_settings_read_themselves_again(tmp_path: Path) -> None:
    settings = PretrainSettings(**GIVEN, seed=3)
    (tmp_path / "again.yaml").write_text(settings.to_yaml())
    assert PretrainSettings.read(tmp_path / "again.yaml") == settings


def test_only_what_the_start_is_made_from_must_agree_when_a_run_goes_on() -> None:
    start = PretrainSettings(**GIVEN).start()
    assert set(start) > {"vocab_size", "num_layers", "held_out", "seed", "sliding_window"}
    assert not set(start) & {"text", "out", "steps", "learning_rate", "threads"}
    assert start == PretrainSettings(**GIVEN, steps=5, threads=1).start()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text": []}, "text must be one or more of"),
        ({"num_heads": 3, "num_kv_heads": 2}, "no Gemma has this shape: 3 query heads do not divide into 2 key heads"),
        ({"head_dim": 15}, "no Gemma has this shape: RoPE needs an even head_dim"),
        ({"vocab_size": 100}, "vocab_size must be a whole number from 274"),
        ({"sequence_length": 512, "context_length": 256}, "sequence_length 512 is more than context_length 256"),
        ({"held_out": 0.6, "validation": 0.5}, "held_out and validation take all documents"),
        ({"held_out": 0}, "held_out must be a number above 0 and below 1"),
    ],
)
def test_a_bad_value_is_one_line(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(GemmaryError, match=message):
        PretrainSettings(**{**GIVEN, **wrong})  # type: ignore[arg-type]
