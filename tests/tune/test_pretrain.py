"""A model from scratch: the golden loss curve, what other programs make of its folder, and going on with a run.

`python -m tests.tune.test_pretrain` writes the golden file anew, after a change that is meant to move it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary.errors import GemmaryError
from gemmary.tune import start
from gemmary.tune.pretrain_settings import PretrainSettings

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
from gemmary.tune.pretrain import Pretrained, measure_folder, pretrain  # noqa: E402  (needs torch)

GOLDEN = Path(__file__).with_name("golden_pretrain.json")
WORDS = {
    "who": ("the miller", "the boatman", "an old woman", "the smith", "my neighbour"),
    "does": ("carries", "sells", "finds", "counts", "mends"),
    "what": ("the sacks", "a small boat", "two horses", "the wheel of the mill", "17 apples", "34 eggs"),
    "when": ("in the evening", "before the rain", "on market day", "when the river is high"),
}


def write_text(folder: Path, documents: int = 24) -> Path:
    """Sentences with enough grammar in them to be learnt."""
    dice = random.Random(5)
    folder.mkdir(parents=True)
    for number in range(documents):
        lines = [" ".join(dice.choice(choices) for choices in WORDS.values()).capitalize() + "." for _ in range(20)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


def settings_for(folder: Path) -> PretrainSettings:
    """A model of some thousand weights, 20 steps, one thread."""
    return PretrainSettings(
        text=(str(folder / "text"),),
        out=str(folder / "new"),
        held_out=0.1,
        validation=0.1,
        vocab_size=384,
        num_layers=2,
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=32,
        context_length=48,
        sequence_length=32,
        steps=20,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=5,
        evaluate_every=10,
        checkpoint_every=10,
        dtype="float32",
        device="cpu",
        threads=1,
    )


def curve(found: Pretrained) -> dict[str, Any]:
    lines = [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "parameters": sum(np.prod(leaf.shape) for leaf in leaves(found.folder)).item(),
        "loss": [line["loss"] for line in lines if line["loss"] is not None],
        "val_loss": [line["val_loss"] for line in lines if line["val_loss"] is not None],
        "held_out_perplexity": found.held_out.perplexity,
        "held_out_bits_per_byte": found.held_out.bits_per_byte,
    }


def leaves(folder: Path) -> Iterator[Any]:
    from gemmary.checkpoints import open_checkpoint

    checkpoint = open_checkpoint(folder)
    return (checkpoint.lookup(name) for name in checkpoint.names())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[PretrainSettings, Pretrained]:
    folder = tmp_path_factory.mktemp("scratch")
    write_text(folder / "text")
    settings = settings_for(folder)
    return settings, pretrain(settings)


def test_the_loss_curve_is_the_golden_one(run: tuple[PretrainSettings, Pretrained]) -> None:
    golden, found = json.loads(GOLDEN.read_text()), curve(run[1])
    assert len(found["loss"]) == 20
    assert found.keys() == golden.keys()
    for name in golden:
        assert found[name] == pytest.approx(golden[name], rel=1e-5), name


def test_it_learns(run: tuple[PretrainSettings, Pretrained]) -> None:
    """Untrained it is near the uniform distribution's perplexity, the size of the vocabulary, or above."""
    settings, found = run
    before = measure_folder(Path(settings.out, "start", start.UNTRAINED), Path(settings.out, "start", start.HELD_OUT))
    assert before.perplexity > 300
    assert found.held_out.perplexity < before.perplexity / 3
    assert (found.held_out.tokens, found.held_out.bytes) == (before.tokens, before.bytes)
    assert json.loads(Path(settings.out, "held-out.json").read_text()) == found.held_out.as_dict()


def test_the_folder_runs(run: tuple[PretrainSettings, Pretrained]) -> None:
    found = run[1]
    model = gemmary.load(str(found.folder), threads=1)
    assert model.generate("The miller", max_tokens=8, temperature=0).text


def test_transformers_loads_it_with_the_same_logits_and_ids(run: tuple[PretrainSettings, Pretrained]) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from gemmary.batch import Batch, Chunk
    from gemmary.checkpoints import open_checkpoint
    from gemmary.engines.reference import ReferenceEngine

    folder = run[1].folder
    ours = open_checkpoint(folder)
    text = "The smith counts 17 apples\n\nbefore the rain. ☃"
    ids = ours.tokenizer.encode(text, bos=True)
    assert transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids == ids
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0].numpy()
    engine = ReferenceEngine(ours.config, ours.lookup)
    mine = engine.step(Batch.of(ours.config, [Chunk(ids, outputs="all")]), [engine.new_cache(len(ids))])
    np.testing.assert_allclose(mine, logits, rtol=3e-5, atol=3e-5)


def test_going_on_trains_no_second_tokenizer_and_changes_nothing(
    run: tuple[PretrainSettings, Pretrained], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, found = run
    weights = (found.folder / "model.safetensors").read_bytes()
    monkeypatch.setattr(start, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was trained again"))
    again = pretrain(replace(settings, resume=True))
    assert again.held_out == found.held_out
    assert (found.folder / "model.safetensors").read_bytes() == weights


def test_the_same_text_and_settings_make_the_same_start(
    run: tuple[PretrainSettings, Pretrained], tmp_path: Path
) -> None:
    settings = run[0]
    made, notices = start.prepare(replace(settings, out=str(tmp_path / "again")))
    assert notices == []
    sums = (made / "SHA256SUMS").read_bytes()
    assert sums == Path(settings.out, "start", "SHA256SUMS").read_bytes()


def test_a_start_of_other_text_settings_or_bytes_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "text", 12)
    settings = settings_for(tmp_path)
    made, _ = start.prepare(settings)
    with pytest.raises(GemmaryError, match="was made with hidden_size 16, not 32: go on with the same"):
        start.prepare(replace(settings, hidden_size=32))
    (tmp_path / "text" / "more.txt").write_text("More.")
    with pytest.raises(GemmaryError, match="was made with text_sha256"):
        start.prepare(settings)
    (tmp_path / "text" / "more.txt").unlink()
    start.prepare(settings)
    with open(made / start.UNTRAINED / "tokenizer.model", "ab") as file:
        file.write(b"\0")
    with pytest.raises(GemmaryError, match=r"start is damaged: untrained/tokenizer.model is not what was written"):
        start.prepare(settings)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, "text"))
        GOLDEN.write_text(json.dumps(curve(pretrain(settings_for(Path(folder)))), indent=1) + "\n")
