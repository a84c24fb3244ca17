"""One optimizer step of PaliGemma on several documents with pictures, packed on our side and padded on theirs: the loss
and every gradient are those of transformers (with peft where there is an adapter), for both generations."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint
from gemmary.checkpoints.peft import target_ends
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.tune.image_rows import ImageRow
from gemmary.tune.packing import MicroBatch, micro_batch
from gemmary.tune.pictures import Picture
from gemmary.tune.rows import Example
from gemmary.tune.settings import TARGETS
from tests.parity.peers import torch
from tests.parity.test_paligemma import PATCHES, VOCABULARY, peers, pixels
from tests.tiny import TINY
from tests.tune.tiny_runs import Run, adapted_weights, checkpoint_of

from gemmary.tune.model import TuneModel, build  # isort: skip (needs torch)

__all__ = ["peers"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore")  # peft's and transformers' own

SHOWN = ((0,), (1, 2), (0,), (3,))
"""Which pictures each document has: two of them the same one."""
WORDS = ((5, 4), (9, 3), (2, 6), (7, 1))
"""Tokens of each document behind its pictures: of the prefix and of the suffix."""
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "trains_tower": True},
    "frozen tower": {"method": "full"},
    "lora": {"method": "lora"},
    "lora tower": {"method": "lora", "trains_tower": True, "lora_targets": TARGETS},
    "dora tower": {
        "method": "lora",
        "trains_tower": True,
        "lora_targets": ("q", "vision.down", "projector"),
        "dora": True,
    },
    "recomputed": {"method": "full", "trains_tower": True, "gradient_checkpointing": "on"},
}


class Album:
    """The pictures by their number."""

    def pixels(self, pictures: list[Picture]) -> Any:
        return pixels(4)[[picture.stored_bytes for picture in pictures]]


def documents() -> list[Example]:
    rng = np.random.default_rng(5)
    found = []
    for shown, (prefix, suffix) in zip(SHOWN, WORDS, strict=True):
        places = [VOCABULARY] * (PATCHES * len(shown))
        tokens = np.array([*places, *rng.integers(1, VOCABULARY, prefix + suffix)], np.int32)
        scored = np.arange(len(tokens)) >= len(places) + prefix
        row = ImageRow(tuple(Picture(Path(str(i)), 1, 1, i) for i in shown), "", "")
        found.append(Example(tokens, scored, "", len(places) + prefix, row))
    return found


def micro(config: Config) -> MicroBatch:
    made = micro_batch(config, documents(), Album())  # type: ignore[arg-type]
    assert made.pixels is not None
    assert made.shown is not None
    assert len(made.pixels) == 4  # the tower sees each once
    assert made.shown.tolist() == [0, 1, 2, 0, 3]
    return made


def padded() -> dict[str, Any]:
    """As transformers' processor has them with `suffix=`: padding behind, labels -100 where nothing is scored."""
    rows = documents()
    shape = (len(rows), max(len(each.tokens) for each in rows))
    made = {name: torch.zeros(shape).long() for name in ("input_ids", "attention_mask", "token_type_ids")}
    made["labels"] = torch.full(shape, -100)
    for i, each in enumerate(rows):
        length = len(each.tokens)
        made["input_ids"][i, :length] = torch.from_numpy(each.tokens).long()
        made["attention_mask"][i, :length] = 1
        made["token_type_ids"][i, each.prefix : length] = 1
        scored = torch.from_numpy(each.scored)
        made["labels"][i, :length] = torch.where(scored, torch.from_numpy(each.tokens).long(), -100)
    seen = pixels(4)[[i for shown in SHOWN for i in shown]]
    return made | {"pixel_values": torch.from_numpy(seen.transpose(0, 3, 1, 2).copy())}


def ours(folder: Path, **settings: Any) -> TuneModel:
    """An adapter's B is random, where training starts from zero: A has no gradient there."""
    model = build(open_checkpoint(folder), Run(**settings), torch.device("cpu"), torch.float32)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    for layer in model.adapters.values():
        layer.lora_B.weight.data = torch.randn(layer.lora_B.weight.shape, generator=generator) * 0.3
    return model


def adapted(peer: Any, mine: TuneModel) -> Any:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    settings = mine.settings
    config = peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=list(target_ends(mine.config, mine.adapters)),
        use_dora=settings.dora,
    )
    made = peft.inject_adapter_in_model(config, peer)
    with torch.no_grad():
        for path, weight in adapted_weights(made).items():
            weight.copy_(mine.get_parameter(path))
    return made


@pytest.mark.parametrize("generation", ["gemma", "gemma2"])
@pytest.mark.parametrize("method", METHODS)
def test_a_step(peers: Any, generation: str, method: str) -> None:
    peer, folder = peers[generation]
    mine = ours(folder, **METHODS[method])
    trained = mine.trained()
    tower = {name for name in trained if "vision_tower" in name or "projector" in name}
    assert bool(tower) == mine.trains_tower
    if mine.adapters:
        assert any(name.startswith("vision.") for name in mine.adapters) == mine.trains_tower
        peer = adapted(deepcopy(peer), mine)
    weights = adapted_weights(peer)
    made = micro(mine.config)

    loss = mine.loss(made) / len(made.targets)
    peer.zero_grad()
    expected = peer.train()(**padded()).loss
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=2e-6)

    loss.backward()
    expected.backward()
    for name, weight in trained.items():
        gradient = weights[name].grad.reshape(weight.shape)
        if name.endswith("k_proj.bias"):  # what is added to all keys moves no softmax
            assert max(weight.grad.abs().max(), gradient.abs().max()) < 1e-6
            continue
        assert gradient.abs().max() > 1e-4
        assert (weight.grad - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_targets_that_no_tower_has(peers: Any) -> None:
    with pytest.raises(GemmaryError, match="gate names no layer of a vision tower"):
        ours(peers["gemma"][1], trains_tower=True, lora_targets=("gate",))
    with pytest.raises(GemmaryError, match="only PaliGemma's vision tower is tuned"):
        build(checkpoint_of(TINY["gemma"]), Run(trains_tower=True), torch.device("cpu"), torch.float32)  # type: ignore[arg-type]


def test_a_picture_counts(peers: Any) -> None:
    """The loss would be another with the pictures in another order."""
    mine = ours(peers["gemma"][1], **METHODS["lora"])
    made = micro(mine.config)
    assert made.pixels is not None
    turned = MicroBatch(made.batch, made.targets, made.pixels[::-1].copy(), made.shown)
    assert abs(float(mine.loss(made) - mine.loss(turned))) > 0.1
