"""Whole runs over image rows: from scratch to a folder that opens, resumed to the bit, and an adapter over a frozen
tower."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from benchmarks.kills import left_by  # noqa: E402  (needs torch)
from gemmary.batch import Batch, Chunk  # noqa: E402
from gemmary.checkpoints import open_checkpoint  # noqa: E402
from gemmary.engines.torch import TorchEngine  # noqa: E402
from gemmary.tune import loop  # noqa: E402
from gemmary.tune.data import load_data  # noqa: E402
from gemmary.tune.packing import inputs  # noqa: E402
from gemmary.tune.pretrain import Pretrained, pretrain  # noqa: E402
from gemmary.tune.pretrain_settings import PretrainSettings  # noqa: E402
from gemmary.tune.settings import Settings  # noqa: E402
from gemmary.tune.start import UNTRAINED  # noqa: E402
from gemmary.vision.preprocess import open_image, pixels  # noqa: E402
from tests.tune.test_pictures import scratch, settings, start  # noqa: E402  (fixtures)
from tests.tune.tiny_tuning import Heard, interrupt  # noqa: E402

__all__ = ["scratch", "settings", "start"]


@pytest.fixture(autouse=True, scope="module")
def no_ceiling() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "matmul_ceiling", lambda dtype, device: 1e9)
        yield


@pytest.fixture(scope="module")
def trained(scratch: PretrainSettings) -> Pretrained:
    return pretrain(replace(scratch, augment=True))


def test_from_scratch(trained: Pretrained, scratch: PretrainSettings) -> None:
    lines = [json.loads(line) for line in (trained.folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["loss"] is not None]
    assert losses[-1] < losses[0] - 0.5
    assert trained.held_out is None
    assert trained.training.test_loss is not None
    made = json.loads((trained.folder / "config.json").read_text())
    assert (made["model_type"], made["text_config"]["model_type"]) == ("paligemma", "gemma2")
    assert (trained.folder / "mask_codec.npz").read_bytes() == b"no codec"
    checkpoint = open_checkpoint(trained.folder)
    assert replace(checkpoint.config, context_length=128) == scratch.config()
    assert checkpoint.tokenizer.id("<image>") == checkpoint.config.vocab_size


def test_the_folder_says_what_was_measured(trained: Pretrained, scratch: PretrainSettings, settings: Settings) -> None:
    """The engine, fed as for inference, gives the test rows the loss that the run ended with."""
    checkpoint = open_checkpoint(trained.folder)
    engine = TorchEngine(checkpoint.config, checkpoint.lookup, dtype="float32")
    data = load_data(replace(settings, validation=0.2, test=0.2, augment=False), checkpoint)
    nats = []
    for each in data.test:
        seen = engine.see(pixels(open_image(each.pictures[0].path), 16)[None])
        length = inputs(each)
        chunk = Chunk(each.tokens[:length].tolist(), prefix=each.prefix, outputs="all", pictures=seen)
        logits = torch.from_numpy(engine.step(Batch.of(checkpoint.config, [chunk]), [engine.new_cache(length)]))
        scored = np.flatnonzero(each.scored)
        rows, targets = logits[scored - 1].double(), torch.from_numpy(each.tokens[scored]).long()
        nats.append(torch.nn.functional.cross_entropy(rows, targets, reduction="none"))
    assert trained.training.test_loss == pytest.approx(float(torch.cat(nats).mean()), rel=1e-5)


def test_resumed_to_the_bit(trained: Pretrained, scratch: PretrainSettings, tmp_path: Path) -> None:
    stopped = replace(scratch, out=str(tmp_path / "new"), augment=True)
    with pytest.raises(KeyboardInterrupt):
        pretrain(stopped, Heard({3: interrupt}))
    again = pretrain(replace(stopped, resume=True))
    mine, theirs = left_by(again.folder), left_by(trained.folder)
    assert len(mine) > 10
    assert {**mine, "config.yaml": None} == {**theirs, "config.yaml": None}  # the start's path stands in it


def test_an_adapter_over_a_frozen_tower(trained: Pretrained, scratch: PretrainSettings, tmp_path: Path) -> None:
    assert scratch.data is not None
    made = loop.tune(
        Settings(
            model=str(trained.folder),
            data=scratch.data,
            out=str(tmp_path / "adapter"),
            lora_rank=2,
            steps=4,
            learning_rate=3e-2,
            sequence_length=128,
            batch_size=2,
            dtype="float32",
            device="cpu",
            threads=1,
        ),
        heard := Heard(),
    )
    assert heard.lines[-1].loss < heard.lines[0].loss  # type: ignore[operator]
    assert heard.notes == ["the vision tower and its projection stand still"]
    names = safetensors_names(made.folder / "adapter_model.safetensors")
    assert names
    assert not any("vision" in name or "projector" in name for name in names)


def safetensors_names(path: Path) -> set[str]:
    from gemmary.checkpoints.safetensors import SafetensorsFile

    return set(SafetensorsFile(path).entries)


def test_a_start_is_made_once(trained: Pretrained) -> None:
    assert (trained.folder.parent / "start" / UNTRAINED / "tokenizer.model").is_file()
    assert not (trained.folder.parent / "start" / "data").exists()
