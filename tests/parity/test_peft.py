"""Adapters both ways: peft loads ours and we load peft's, and the logits are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints.peft import read_adapter, write_adapter
from gemmary.config import Config
from tests.checkpoints.adapters import merged, mixed_adapter
from tests.parity.peers import peer, peer_logits, torch
from tests.runs import Lookup
from tests.tiny import TINY, random_leaves, random_tokens

peft = pytest.importorskip("peft", reason="peft is not installed")

# peft asks transformers 5.23 by a name that it deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

FAMILIES = ("gemma", "gemma2", "gemma3", "embeddinggemma")


def made_by_peft(config: Config, lookup: Lookup, folder: Path, **options: Any) -> Any:
    """A peft model with random adapters, saved to the folder."""
    return with_random_adapters(peer(config, lookup), folder, **options)


def with_random_adapters(base: Any, folder: Path, **options: Any) -> Any:
    """The same of any model of transformers, on all its linear layers unless the options say otherwise."""
    torch.manual_seed(0)
    described = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": "all-linear", **options})
    model = peft.get_peft_model(base, described).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
            if "magnitude" in name:
                parameter.mul_(torch.rand_like(parameter) + 0.5)
    model.save_pretrained(str(folder))
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_ours(tmp_path: Path, family: str, dora: bool) -> None:
    config = TINY[family]
    lookup, tokens = random_leaves(config), random_tokens(config, 12)
    adapter = mixed_adapter(config, dora=dora)
    write_adapter(tmp_path, adapter)
    theirs = peft.PeftModel.from_pretrained(peer(config, lookup), str(tmp_path)).eval()
    expected = peer_logits(peer(config, merged(lookup, adapter)), tokens)
    np.testing.assert_allclose(peer_logits(theirs, tokens), expected, atol=2e-5 * np.abs(expected).max())


OPTIONS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
    "dora": {"use_dora": True, "alpha_pattern": {r"layers\.1\.mlp\..*_proj": 9.5}},
    "layers": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "expression": {"target_modules": r".*\.mlp\.\w+_proj", "exclude_modules": ["up_proj"]},
}
EACH = [(family, kind) for family in FAMILIES for kind in OPTIONS]
EACH.remove(("embeddinggemma", "layers"))  # peft finds no number in a path that begins with the layers


@pytest.mark.parametrize(("family", "kind"), EACH)
def test_we_load_theirs(tmp_path: Path, family: str, kind: str) -> None:
    config = TINY[family]
    lookup, tokens = random_leaves(config), random_tokens(config, 12)
    theirs = made_by_peft(config, lookup, tmp_path, **OPTIONS[kind])
    adapter = read_adapter(tmp_path, config)
    expected = peer_logits(theirs, tokens)
    found = peer_logits(peer(config, merged(lookup, adapter)), tokens)
    assert np.abs(expected - peer_logits(peer(config, lookup), tokens)).max() > 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
