"""Adapters of PaliGemma, tower and projection among them, both ways: peft loads ours and we load peft's, and a picture
and its prompt give the same logits."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gemmary.adapters import wrapped
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints.peft import Adapter, read_adapter, write_adapter
from gemmary.engines import open_engine
from tests.checkpoints.adapters import mixed_adapter
from tests.parity.test_paligemma import each_generation, opened, peers, pixels, prompt, theirs
from tests.parity.test_peft import with_random_adapters
from tests.runs import Array, relative_error

peft = pytest.importorskip("peft", reason="peft is not installed")

__all__ = ["peers"]  # a fixture

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

IDS, SEEN = prompt(2, 6), pixels(2)


def ours(folder: Path, adapter: Adapter) -> list[Array]:
    """Logits of the base and with the adapter, from the native engine."""
    checkpoint, config = opened(folder)
    engine = open_engine("native", config, wrapped(checkpoint.lookup, config, [adapter]), dtype="float32", threads=1)
    found = []
    for number in (0, 1):
        pictures = engine.see(SEEN, adapter=number)
        chunk = Chunk(IDS, prefix=len(IDS), outputs="all", pictures=pictures, adapter=number)
        found.append(engine.step(Batch.of(config, [chunk]), [engine.new_cache(len(IDS))]))
    return found


@each_generation
@pytest.mark.parametrize("dora", [False, True])
def test_peft_loads_ours(peers: Any, tmp_path: Path, generation: str, dora: bool) -> None:
    model, folder = peers[generation]
    adapter = mixed_adapter(opened(folder)[1], dora=dora)
    write_adapter(tmp_path, adapter)
    adapted = peft.PeftModel.from_pretrained(deepcopy(model), str(tmp_path)).eval()
    expected = theirs(adapted, IDS, SEEN, len(IDS))
    base, found = ours(folder, adapter)
    assert relative_error(found, expected) < 3e-5
    assert relative_error(base, expected) > 0.05


OPTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "dora": {"use_dora": True},
    "tower": {"target_modules": r".*(vision_tower.*\.(q_proj|fc2)|multi_modal_projector\.linear)"},
}


@each_generation
@pytest.mark.parametrize("kind", OPTIONS)
def test_we_load_theirs(peers: Any, tmp_path: Path, generation: str, kind: str) -> None:
    model, folder = peers[generation]
    adapted = with_random_adapters(deepcopy(model), tmp_path, **OPTIONS[kind])
    adapter = read_adapter(tmp_path, opened(folder)[1])
    assert all(name.startswith("vision.") for name in adapter.weights) == (kind == "tower")
    expected = theirs(adapted, IDS, SEEN, len(IDS))
    base, found = ours(folder, adapter)
    assert relative_error(found, expected) < 3e-5
    assert relative_error(base, expected) > 0.03
