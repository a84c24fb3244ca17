"""A run from its settings to its folder: what it computes, when it stops, what it keeps, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tune.tiny_tuning import Heard, Tiny, no_ceiling, tiny, undisturbed

from gemmary.checkpoints.peft import read_adapter  # isort: skip
from gemmary.checkpoints import open_checkpoint
from gemmary.errors import GemmaryError
from gemmary.tune import fit, loop
from gemmary.tune.model import TuneModel
from gemmary.tune.settings import TARGETS, Settings
from gemmary.tune.state import Checkpoints

__all__ = ["no_ceiling", "tiny", "undisturbed"]


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["loss"] is not None]


def kept(folder: Path) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", 2, lambda text: None)


def test_the_same_seed_gives_the_same_bytes(tiny: Tiny, undisturbed: dict[str, Any]) -> None:
    heard = Heard()
    result = tiny.tune("again", heard)
    assert tiny.left("again") == undisturbed
    tiny.tune("other-seed", seed=1)
    assert tiny.left("other-seed")["adapter_model.safetensors"] != undisturbed["adapter_model.safetensors"]
    assert heard.overview is not None
    assert (heard.overview.steps, heard.overview.resumed, heard.overview.dtype) == (10, 0, "float32")
    assert 0 < heard.overview.scored < heard.overview.tokens + heard.overview.documents
    assert 0.5 < heard.overview.packing <= 1
    assert [line.step for line in heard.lines] == list(range(1, 11))
    assert result.steps == 10
    assert result.loss == heard.lines[-1].loss == losses(result.folder)[-1]


def test_what_the_folder_holds(tiny: Tiny, undisturbed: dict[str, Any]) -> None:
    out = tiny.folder / "undisturbed"
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
    lines = undisturbed["metrics.jsonl"]
    assert [line["step"] for line in lines] == list(range(11))
    assert [line["step"] for line in lines if line["val_loss"] is not None] == [0, 3, 6, 9, 10]
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert set(lines[3]) == {"step", "loss", "val_loss", "learning_rate", "gradient_norm", "tokens"}
    read = Settings.read(out / "config.yaml")
    assert read == replace(tiny.settings, out=str(out))
    adapter = read_adapter(out, open_checkpoint(Path(tiny.settings.model)).config)
    assert set(adapter.weights) == {f"layers.{i}.{name}" for i in (0, 1) for name in ("q", "down")}
    best = min((line["val_loss"], line["step"]) for line in lines[1:] if line["val_loss"] is not None)[1]
    assert set(kept(out).steps()) >= {10, best}
    assert len(kept(out).steps()) <= 3


def test_accumulated_micro_batches_are_one_batch(tiny: Tiny) -> None:
    plain = {"lora_dropout": 0.0, "optimizer": "adafactor"}
    one = tiny.tune("one-batch", batch_size=2, accumulation=1, **plain)
    two = tiny.tune("two-micro-batches", batch_size=1, accumulation=2, **plain)
    assert losses(one.folder) == pytest.approx(losses(two.folder), rel=1e-5)
    assert one.scored == two.scored


def test_steps_and_epochs_whichever_ends_first(tiny: Tiny) -> None:
    heard = Heard()
    tiny.tune("an-epoch", heard, epochs=1.0, steps=None)
    assert heard.overview is not None
    whole = heard.overview.steps
    assert 1 < whole < 10
    documents = sum(each.tokens for each in heard.lines[-1:])
    assert documents == heard.overview.tokens
    tiny.tune("half-an-epoch", heard, epochs=0.5, steps=None)
    assert heard.overview.steps == math.ceil(whole / 2)


def test_early_stopping_saves_the_best(tiny: Tiny) -> None:
    result = tiny.tune("overshot", learning_rate=3.0, clip=0.0, schedule="constant", patience=1, evaluate_every=1)
    assert result.stopped_early
    assert result.best_step is not None
    assert result.steps == result.best_step + 1
    saved = read_adapter(result.folder, open_checkpoint(Path(tiny.settings.model)).config).weights
    best = kept(result.folder).load(result.best_step).files["weights"].values()
    found = [array for each in saved.values() for array in (each.a, each.b)]
    assert sorted(float(np.abs(array).sum()) for array in found) == sorted(
        float(np.abs(each.numpy()).sum()) for each in best
    )


def test_rows_for_a_test_are_measured_with_what_was_saved(tiny: Tiny) -> None:
    result = tiny.tune("tested", test=0.2)
    assert result.test_loss is not None
    assert result.best_val_loss is not None
    assert abs(result.test_loss - result.best_val_loss) < 1


def test_a_loss_that_is_not_finite_ends_the_run_with_its_checkpoint(
    tiny: Tiny, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard({5: lambda: monkeypatch.setattr(TuneModel, "loss", lambda self, micro: real(self, micro) * math.nan)})
    real = TuneModel.loss
    with pytest.raises(GemmaryError, match=r"^step 6: the loss is nan.*the checkpoint of step 4 is intact\)$"):
        tiny.tune("nan", heard)
    monkeypatch.undo()
    monkeypatch.setattr(loop, "matmul_ceiling", lambda dtype, device: 1e9)
    tiny.tune("nan", resume=True)
    assert tiny.left("nan") == undisturbed


def test_a_gradient_that_is_not_finite_moves_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "update", lambda *arguments: math.inf)
    with pytest.raises(GemmaryError, match=r"step 1: the gradient's norm is inf.*there is no checkpoint yet"):
        tiny.tune("inf")


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 0.02}, "begun with learning_rate 0.01, not 0.02: resume it with the same"),
    ({"lora_rank": 3}, "begun with lora_rank 2, not 3"),
    ({"steps": 12}, "begun with steps 10, not 12"),
    ({"validation": 0.3}, "begun with rows of data"),
    ({"resume": False}, "already holds something: --resume goes on with a run"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=lambda value: "-".join(value) if value else "")
def test_what_a_resumed_run_may_not_change(
    changes: dict[str, Any], message: str, tiny: Tiny, undisturbed: dict[str, Any]
) -> None:
    with pytest.raises(GemmaryError, match=message):
        tiny.tune("undisturbed", **{"resume": True, **changes})
    assert tiny.left("undisturbed") == undisturbed


def test_what_a_resumed_run_may_change(tiny: Tiny, undisturbed: dict[str, Any]) -> None:
    result = tiny.tune("undisturbed", resume=True, threads=1, checkpoint_every=7)
    assert result.tokens_per_s is None  # it was done
    assert tiny.left("undisturbed")["adapter_model.safetensors"] == undisturbed["adapter_model.safetensors"]
    tiny.tune("undisturbed", resume=True)
    assert tiny.left("undisturbed") == undisturbed


def test_a_run_from_before_a_setting_has_its_default(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "FREE", loop.FREE | {"augment", "label_smoothing", "lora_targets"})
        tiny.tune("older", steps=2, lora_targets=TARGETS)
    with pytest.raises(GemmaryError, match=r"begun with label_smoothing 0\.0, not 0\.1"):
        tiny.tune("older", steps=2, lora_targets=TARGETS, resume=True, label_smoothing=0.1)
    assert tiny.tune("older", steps=2, lora_targets=TARGETS, resume=True).steps == 2


def test_a_folder_that_is_no_run_is_not_touched(tiny: Tiny) -> None:
    (tiny.folder / "mine").mkdir()
    (tiny.folder / "mine" / ".note.tmp").write_text("kept")
    for resume in (True, False):
        with pytest.raises(GemmaryError, match="holds"):
            tiny.tune("mine", resume=resume)
    assert (tiny.folder / "mine" / ".note.tmp").read_text() == "kept"


def test_two_processes_do_not_train_into_one_folder(tiny: Tiny) -> None:
    def second() -> None:
        with pytest.raises(GemmaryError, match="another process is training into"):
            tiny.tune("shared", resume=True)

    tiny.tune("shared", Heard({1: second}), steps=2)


def test_too_little_memory_is_told_before_the_start(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmary.memory.available_bytes", lambda: 1000)
    with pytest.raises(
        GemmaryError, match=r"tuning tiny with --method full needs about .* available: choose --optimizer"
    ):
        tiny.tune("too-large", method="full", lora_dropout=0.0)


def test_activations_are_computed_twice_where_they_do_not_fit_with_the_same_bits(
    tiny: Tiny, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemmary.tune.room.available_bytes", lambda: 100_000)
    heard = Heard()
    tiny.tune("tight", heard)
    assert heard.overview is not None
    assert heard.overview.recomputes
    assert tiny.left("tight") == undisturbed
