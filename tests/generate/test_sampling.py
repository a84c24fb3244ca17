"""Sampling against transformers' processors, the draw, and log-probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemmary.errors import GemmaryError
from gemmary.generate import SamplingParams
from gemmary.generate.sampling import (
    distribution,
    kth_largest,
    likeliest,
    log_softmax_at,
    nucleus_edge,
    penalize,
    sample,
    sample_clearly,
    uniform,
)

VOCAB = 3001


def random_logits(seed: int, vocab: int = VOCAB, spread: float = 3.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


def ours(logits: np.ndarray[Any, Any], history: list[int], options: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The probabilities that we draw from, [V]."""
    params = SamplingParams.of({"top_k": 0, "top_p": 1.0, **options})
    ids, weights = distribution(penalize(logits, params.repetition_penalty, history), params)
    full = np.zeros(len(logits))
    full[ids] = weights / weights.sum(dtype=np.float64)
    return full


def theirs(logits: np.ndarray[Any, Any], history: list[int], options: dict[str, Any]) -> np.ndarray[Any, Any]:
    """What transformers' generate would draw from with the same options: its own list, in its own order."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.GemmaConfig(
        vocab_size=len(logits), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
        head_dim=8, intermediate_size=8,
    )  # fmt: skip
    model = transformers.GemmaForCausalLM(config)
    generation = transformers.GenerationConfig(do_sample=True, **{"top_k": 0, "top_p": 1.0, **options})
    processors = model._get_logits_processor(generation_config=generation, input_ids_seq_length=len(history))
    scores = processors(torch.tensor([history]), torch.from_numpy(logits.copy())[None])
    result: np.ndarray[Any, Any] = torch.softmax(scores[0].double(), -1).numpy()
    return result


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_k": 64, "temperature": 2.5},
        {"top_p": 0.3},
        {"top_p": 0.95, "temperature": 1.7},
        {"min_p": 0.05},
        {"repetition_penalty": 1.7},
        {"repetition_penalty": 0.6, "temperature": 0.9},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 40, "min_p": 0.2, "temperature": 3.0},
        {"repetition_penalty": 1.3, "temperature": 1.4, "top_k": 200, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=lambda options: "-".join(options),
)
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_transformers(options: dict[str, Any], seed: int) -> None:
    logits = random_logits(seed)
    history = [int(t) for t in np.argsort(logits)[-20::3]] + [5, 5, 17, 2900]
    expected = theirs(logits, history, options)
    found = ours(logits, history, options)
    assert set(np.flatnonzero(found)) == set(np.flatnonzero(expected))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-12)


def test_ties_at_the_edge_of_top_k_stay_as_in_transformers() -> None:
    logits = np.array([1, 3, 2, 2, 2, 0, -1], dtype=np.float32)
    expected = theirs(logits, [0], {"top_k": 2})
    assert np.flatnonzero(expected).tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(ours(logits, [0], {"top_k": 2}), expected, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5000), st.data())
def test_kth_largest_is_that_of_a_sort(seed: int, size: int, data: st.DataObject) -> None:
    values = np.round(random_logits(seed, size), 1)  # with ties
    k = data.draw(st.integers(1, size))
    assert kth_largest(values, k) == np.sort(values)[-k]


@pytest.mark.parametrize("spread", [0.01, 2.0, 9.0])
@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.95, 0.9999])
def test_nucleus_of_a_large_vocabulary_is_that_of_a_sort(spread: float, top_p: float) -> None:
    weights = np.exp(random_logits(3, 20_000, spread))
    ordered = np.sort(weights.astype(np.float64))[::-1]
    expected = ordered[np.searchsorted(np.cumsum(ordered), top_p * ordered.sum())]
    assert nucleus_edge(weights, top_p) == pytest.approx(expected, rel=1e-5)


def test_greedy_is_the_likeliest_and_the_first_of_equals() -> None:
    logits = np.array([0, 5, 1, 5], dtype=np.float32)
    assert sample(logits, SamplingParams(temperature=0), [], 0, 0) == 1
    assert sample(logits, SamplingParams(temperature=0, repetition_penalty=2.0), [1], 0, 0) == 3
    assert logits.tolist() == [0, 5, 1, 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_an_error(bad: float, temperature: float) -> None:
    logits = random_logits(0)
    logits[77] = bad
    with pytest.raises(GemmaryError, match="not finite"):
        sample(logits, SamplingParams(temperature=temperature), [], 0, 0)


def test_the_most_extreme_temperatures_are_the_likeliest_token_and_any_token() -> None:
    logits = random_logits(2)
    for temperature in (5e-324, 1e-46, 1e-40):
        params = SamplingParams(temperature=temperature, top_k=0, top_p=1.0)
        assert {sample(logits, params, [], 5, index) for index in range(20)} == {int(logits.argmax())}
    flat = SamplingParams(temperature=1e300, top_k=0, top_p=1.0)
    assert len({sample(logits, flat, [], 5, index) for index in range(20)}) > 15


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    params = SamplingParams(top_k=0, top_p=1.0)
    drawn = [sample(logits, params, [], seed=9, index=i) for i in range(4000)]
    np.testing.assert_allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.025)


def test_the_draw_depends_on_the_seed_and_the_place_alone() -> None:
    ids = np.arange(40)
    numbers = {(seed, index): uniform(seed, index, ids) for seed in (0, 1, 2**64 - 1) for index in range(50)}
    assert len(np.unique(list(numbers.values()))) == 3 * 50 * 40
    assert all(((u > 0) & (u < 1)).all() for u in numbers.values())
    for (seed, index), u in numbers.items():
        np.testing.assert_array_equal(uniform(seed, index, ids[7::5]), u[7::5])
    # The numbers are part of the promise "same seed, same text": frozen across versions.
    assert uniform(1234, 0, np.array([0, 262_143])).tolist() == [0.8787258498231001, 0.26925093321781074]
    assert uniform(2**64 - 1, 7, np.array([5])).tolist() == [0.1096810621366438]


def test_noise_is_uniform_and_independent_from_place_to_place() -> None:
    places = np.stack([uniform(3, index, np.arange(64)) for index in range(2000)])
    assert abs(places.mean() - 0.5) < 0.005
    counts = np.bincount((places * 16).astype(int).ravel(), minlength=16)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 38  # chi-square, 15 degrees of freedom: p = 0.001
    between = np.corrcoef(places.T)
    assert np.abs(between - np.eye(64)).max() < 0.12
    assert abs(np.corrcoef(places[:-1].ravel(), places[1:].ravel())[0, 1]) < 0.012


@pytest.mark.parametrize("options", [{}, {"top_k": 0, "top_p": 1.0}, {"temperature": 0.4}])
def test_distributions_that_are_nearly_the_same_nearly_always_draw_the_same(options: dict[str, Any]) -> None:
    """What a draft model needs; a draw by the cumulative distribution agrees in half of these at the most."""
    logits = random_logits(1)
    other = logits + 0.15 * random_logits(2, spread=1.0)
    params = SamplingParams(**options)
    same = [sample(logits, params, [], 5, index) == sample(other, params, [], 5, index) for index in range(400)]
    assert np.mean(same) > 0.8


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 0, "top_p": 1.0, "temperature": 0.7}])
def test_a_clear_choice_stays_when_logits_move_by_less_than_half(options: dict[str, Any]) -> None:
    logits = random_logits(1)
    params = SamplingParams(**options)
    for index in range(20):
        token, lead = sample_clearly(logits, params, [], 9, index)
        assert token == sample(logits, params, [], 9, index)
        assert lead >= 0
        if (params.top_p == 1 and params.top_k == 0) or not params.temperature:
            moved = logits.copy()
            moved[token] -= np.float32(0.95 * min(lead, 50.0) * (params.temperature or 1))
            assert sample(moved, params, [], 9, index) == token
            moved[token] -= np.float32(0.1 * min(lead, 50.0) * (params.temperature or 1))
            assert sample(moved, params, [], 9, index) != token


def test_logprobs_are_the_models_own() -> None:
    logits = random_logits(4)
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact - exact.max()).sum()) + exact.max()
    ids = np.arange(VOCAB)
    np.testing.assert_allclose(log_softmax_at(logits, ids), exact, atol=1e-6)
    assert np.exp(log_softmax_at(logits, ids)).sum() == pytest.approx(1, abs=1e-6)
    assert likeliest(logits, 7).tolist() == np.argsort(-logits)[:7].tolist()
    assert likeliest(logits, 0).tolist() == []
    assert len(likeliest(np.zeros(50, dtype=np.float32), 3)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e-46}, "repetition_penalty"),
        ({"repetition_penalty": 1e39}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": True}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 101}, "logprobs"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", None]}, "stop"),
        ({"stop": 1.5}, "stop"),
        ({"stop": b"ab"}, "stop"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(GemmaryError, match=words) as error:
        SamplingParams.of(options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_stop_takes_one_or_many_strings_and_ids() -> None:
    assert SamplingParams.of({"stop": "x"}).stop_strings == ("x",)
    assert SamplingParams.of({"stop": {7}}).stop_ids == {7}  # type: ignore[typeddict-item]
    params = SamplingParams.of({"stop": ["x", 7, "yz"]})
    assert params.stop_strings == ("x", "yz")
    assert params.stop_ids == {7}
