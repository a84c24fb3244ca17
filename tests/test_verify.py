"""`verify` passes what is the same and names the layer of every fault that is put in."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemmary.errors import GemmaryError
from gemmary.loaded import Model
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from gemmary.taps import EXACT_NOISE, ROUNDED_NOISE, first_difference, normalized_error
from gemmary.verify import INT4, INT8, SAME, Report, builtin_text, verify
from tests.models import random_model_leaves, tiny_checkpoint, tiny_model, tokenizer
from tests.tiny import random_tokens

NAMES = ("gemma", "gemma2", "gemma3", "embeddinggemma")


def changed(name: str, leaf: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Model:
    """A tiny model one of whose weights is not what it should be."""
    original = random_model_leaves(tiny_checkpoint(name).config)

    def lookup(wanted: str) -> Leaf:
        array = original(wanted).dequantize()
        return Dense(change(array) if wanted == leaf else array)

    return tiny_model(name, lookup=lookup)


def check(model: Model, against: Model, **options: Any) -> Report:
    return verify(model, against, ids=random_tokens(against.config, 60), **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_passes(name: str) -> None:
    report = check(tiny_model(name), tiny_model(name))
    assert report.passed
    assert report.exit_code == 0
    assert report.limits is SAME
    assert report.first_difference is None
    assert report.tokens == 60
    if name == "embeddinggemma":
        assert report.cosine == pytest.approx(1, abs=1e-6)
        assert report.mean_kl is None
    else:
        assert report.mean_kl == pytest.approx(0, abs=1e-9)
        assert report.top1_agreement == 1
        assert report.nll_model == report.nll_against
        assert report.nll_difference == 0


@pytest.mark.parametrize(
    ("name", "change", "tap"),
    [
        ("gemma2", {"attn_logit_softcap": None}, "layers.0.heads"),
        ("gemma2", {"final_logit_softcap": None}, "logits"),
        ("gemma2", {"sliding_window": 6}, "layers.0.heads"),
        ("gemma2", {"query_pre_attn_scalar": 40}, "layers.0.heads"),
        ("gemma3", {"rope_scaling_factor": 1.0}, "layers.5.heads"),
        ("gemma3", {"rope_theta_local": 400.0}, "layers.0.heads"),
        ("gemma3", {"rms_norm_eps": 0.5}, "layers.0.heads"),
        ("embeddinggemma", {"sliding_window": 8}, "layers.0.heads"),
    ],
)
def test_a_lost_feature_is_found(name: str, change: dict[str, Any], tap: str) -> None:
    report = check(tiny_model(name, **change), tiny_model(name))
    assert not report.passed
    assert report.exit_code == 1
    assert report.first_difference is not None
    assert report.first_difference.tap == tap


@pytest.mark.parametrize(
    ("name", "leaf", "tap"),
    [
        ("gemma", "layers.1.attn_norm", "layers.1.heads"),
        ("gemma2", "layers.2.ffn_norm", "layers.2.ffn_out"),
        ("gemma2", "layers.3.post_attn_norm", "layers.3.attn_out"),
        ("gemma3", "layers.4.k_norm", "layers.4.heads"),
        ("gemma3", "layers.6.post_ffn_norm", "layers.6.ffn_out"),
        ("gemma3", "final_norm", "hidden"),
    ],
)
def test_a_norm_that_lost_its_one_is_found(name: str, leaf: str, tap: str) -> None:
    report = check(changed(name, leaf, lambda w: w - 1), tiny_model(name))
    assert not report.passed
    assert report.first_difference is not None
    assert report.first_difference.tap == tap


@pytest.mark.parametrize(
    ("leaf", "tap"),
    [
        ("embed", "embedding"),
        ("layers.2.q", "layers.2.heads"),
        ("layers.5.v", "layers.5.heads"),
        ("layers.3.o", "layers.3.attn_out"),
        ("layers.7.down", "layers.7.ffn_out"),
    ],
)
def test_one_damaged_weight_is_found(leaf: str, tap: str) -> None:
    def damage(w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        noise = np.random.default_rng(1).standard_normal(w.shape).astype(np.float32)
        return w + np.float32(0.3 * w.std()) * noise

    report = check(changed("gemma3", leaf, damage), tiny_model("gemma3"))
    assert not report.passed
    assert report.first_difference is not None
    assert report.first_difference.tap == tap
    assert report.first_difference.error > 0.05
    assert report.first_difference.error_before < 1e-5


def test_swapped_layers_and_a_broken_weight() -> None:
    original = random_model_leaves(tiny_checkpoint("gemma3").config)
    swap = {"layers.2.": "layers.3.", "layers.3.": "layers.2."}
    swapped = tiny_model("gemma3", lookup=lambda name: original(swap.get(name[:9], name[:9]) + name[9:]))
    report = check(swapped, tiny_model("gemma3"))
    assert report.first_difference is not None
    assert report.first_difference.tap == "layers.2.heads"
    with np.errstate(all="ignore"):
        broken = check(changed("gemma3", "layers.4.gate", lambda w: w * np.float32("nan")), tiny_model("gemma3"))
    assert not broken.passed
    assert len(broken.failures) == 3
    assert broken.first_difference is not None
    assert broken.first_difference.tap == "layers.4.ffn_out"
    assert broken.first_difference.error == float("inf")
    assert broken.worst is not None
    assert np.isnan(broken.worst.kl)
    assert broken.worst.position == 0
    assert json.loads(broken.to_json(), parse_constant=pytest.fail)["mean_kl"] is None


def test_numbers_are_those_of_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_tokens(tiny_checkpoint("gemma2").config, 40)
    model, against = tiny_model("gemma2", query_pre_attn_scalar=8), tiny_model("gemma2")
    monkeypatch.setattr("gemmary.verify._ROW_BYTES", 7 * 4 * model.config.vocab_size)
    report = verify(model, against, ids=ids)

    def log_softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        wide = x.astype(np.float64)
        return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))

    p, q = (log_softmax(each.logits(ids[:-1])) for each in (model, against))
    kl = (np.exp(q) * (q - p)).sum(axis=1)
    rows = np.arange(39)
    assert report.mean_kl == pytest.approx(kl.mean(), rel=1e-3)
    assert report.max_kl == pytest.approx(kl.max(), rel=1e-3)
    assert report.top1_agreement == pytest.approx((p.argmax(1) == q.argmax(1)).mean())
    assert report.nll_model == pytest.approx(-p[rows, ids[1:]].mean(), rel=1e-5)
    assert report.nll_against == pytest.approx(-q[rows, ids[1:]].mean(), rel=1e-5)
    worst = int(kl.argmax())
    assert report.worst is not None
    assert report.worst.position == worst
    assert report.worst.actual == tokenizer().decode([ids[worst + 1]])
    assert report.worst.against == tokenizer().decode([int(q[worst].argmax())])
    assert report.worst.context.endswith(tokenizer().decode([ids[worst]]))


def test_the_report_is_json_and_the_text_is_cut_to_the_context() -> None:
    seen = []
    report = verify(tiny_model(), tiny_model(context=50), progress=lambda done, of: seen.append((done, of)))
    assert report.tokens == 50
    assert seen == [(i, 49) for i in range(1, 50)]
    data = json.loads(report.to_json())
    assert data["passed"] is True
    assert data["limits"]["mean_kl"] == 2e-3
    assert data["model"] == "tiny (reference engine, float32, weights F32)"
    assert {"mean_kl", "max_kl", "top1_agreement", "nll_difference", "worst", "first_difference", "taps"} <= set(data)


def test_limits_follow_the_formats() -> None:
    original = random_model_leaves(tiny_checkpoint("gemma3-q32").config)

    def stored(block_type: str) -> Model:
        def lookup(name: str) -> Leaf:
            leaf = original(name)
            if len(leaf.shape) == 1:
                return leaf
            return Blocks(block_type, leaf.shape, blocks.quantize(block_type, leaf.dequantize()))

        return tiny_model("gemma3-q32", lookup=lookup)

    exact = tiny_model("gemma3-q32")
    assert check(stored("Q8_0"), exact).limits is INT8
    assert check(stored("Q4_0"), exact).limits is INT4
    assert check(stored("Q4_0"), stored("Q8_0")).limits is INT4
    assert check(stored("Q4_0"), stored("Q4_0")).limits is SAME
    assert not check(stored("Q4_0"), exact, limits=SAME).passed


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(GemmaryError, match="different shapes"):
        check(tiny_model("gemma2"), tiny_model("gemma3"))
    with pytest.raises(GemmaryError, match="65 tokens"):
        verify(tiny_model(), tiny_model(), ids=[2] * 65)
    with pytest.raises(GemmaryError, match="at least 2"):
        verify(tiny_model(), tiny_model(), text="")


def test_tokenizers_that_differ_fail_the_comparison() -> None:
    class Other:
        def encode(self, text: str, *, bos: bool = False) -> list[int]:
            return [*tokenizer().encode(text, bos=bos), 7]

    model = tiny_model()
    model.checkpoint.__dict__["tokenizer"] = Other()
    report = verify(model, tiny_model(), text="abc the")
    assert report.failures == ("the two tokenizers give different ids for the text",)
    assert report.exit_code == 1


def test_the_first_difference_is_the_first_jump() -> None:
    taps = [("a", 0.0), ("b", 0.006), ("c", 0.02), ("d", 0.2), ("e", 0.9)]
    found = first_difference(taps, ROUNDED_NOISE, failed=False)
    assert found is not None
    assert (found.tap, found.error, found.error_before) == ("d", 0.2, 0.02)
    exact = first_difference(taps, EXACT_NOISE, failed=False)
    assert exact is not None
    assert exact.tap == "b"
    gradual = [("a", 0.003), ("b", 0.02), ("c", 0.03), ("d", 0.05)]
    assert first_difference(gradual, ROUNDED_NOISE, failed=False) is None
    nearest = first_difference(gradual, ROUNDED_NOISE, failed=True)
    assert nearest is not None
    assert nearest.tap == "b"
    assert first_difference([], EXACT_NOISE, failed=True) is None


def test_normalized_error() -> None:
    a = np.array([[3.0, 4.0]], dtype=np.float32)
    assert normalized_error(a, a) == 0
    assert normalized_error(a + np.float32(0.5), a) == pytest.approx(np.sqrt(0.5) / 5)
    assert normalized_error(np.zeros_like(a), np.zeros_like(a)) == 0
    assert normalized_error(a, np.zeros_like(a)) == 1
    assert normalized_error(a * np.float32("nan"), a) == float("inf")
    assert normalized_error(a[:, :1], a) == float("inf")


def test_the_built_in_text_is_long_and_of_many_kinds(shared: Any) -> None:
    from gemmary.tokenizer import Tokenizer

    text = builtin_text()
    assert 9_000 < len(text.encode()) < 12_500
    real = Tokenizer.from_folder(shared / "tokenizers" / "gemma2")
    ids = real.encode(text, bos=True)
    assert len(ids) > 2_000
    assert real.decode(ids) == text
    for sample in ("def most_common_words", "SELECT", "Bahnsteig", "яблоки", "修伞", "김장", "बरगद", "دكان"):
        assert sample in text
