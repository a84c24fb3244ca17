"""The torch engine as modules: Hugging Face's names, hooks, replaced layers, adapters, gradients; its refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gemmary.batch import Batch, Chunk
from gemmary.config import Config
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.model import decoder
from gemmary.quantize import blocks
from gemmary.quantize.leaves import Blocks, Dense, Leaf
from tests.parity.peers import peer, peer_logits, torch
from tests.runs import Array, relative_error, rounded, run, run_in_chunks
from tests.tiny import ODD, TINY, leaf_shapes, random_leaves, random_tokens

from gemmary.engines.torch import TorchEngine  # isort: skip (needs torch, which peers skips without)
from gemmary.engines.torch_ops import QUERY_TILE, StepCache, TorchOps, Visible  # isort: skip


def engine_of(name: str, **options: Any) -> TorchEngine:
    return TorchEngine(TINY[name], random_leaves(TINY[name]), **options)


@pytest.mark.parametrize("name", ODD)
def test_state_dict_has_the_names_of_transformers(name: str) -> None:
    ours, theirs = engine_of(name).model.state_dict(), peer(TINY[name], random_leaves(TINY[name])).state_dict()
    assert set(ours) == set(theirs)
    for key in theirs:
        assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_loading_a_state_dict_of_transformers(name: str) -> None:
    """Other weights from transformers, through `load_state_dict`, and the head stays tied."""
    config = TINY[name]
    theirs = peer(config, random_leaves(config, seed=5))
    engine = engine_of(name)
    engine.model.load_state_dict(theirs.state_dict(), strict=True)
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight
    tokens = random_tokens(config, 11)
    assert relative_error(run(engine, [tokens])[0], peer_logits(theirs, tokens)) < 2e-5


def test_hooks_run_on_layers_and_linears() -> None:
    engine = engine_of("gemma2")
    seen: list[str] = []
    for path in ("model.layers.1", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj", "lm_head"):
        module = engine.model.get_submodule(path)
        module.register_forward_hook(lambda *_, path=path: seen.append(path))
    run(engine, [[1, 2, 3]])
    assert seen == [
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.down_proj",
        "model.layers.1",
        "lm_head",
    ]


def test_a_linear_can_be_replaced() -> None:
    engine = engine_of("gemma")
    (before,) = run(engine, [[1, 2, 3]])
    attention = engine.model.model.layers[0].self_attn
    attention.o_proj = torch.nn.Sequential(attention.o_proj, torch.nn.Identity())
    assert np.array_equal(run(engine, [[1, 2, 3]])[0], before)
    attention.o_proj[1] = torch.nn.Dropout(1.0).train()
    assert relative_error(run(engine, [[1, 2, 3]])[0], before) > 0.01


@pytest.mark.filterwarnings("ignore")  # peft's own
def test_adapters_of_peft() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = TINY["gemma3"]
    tokens = random_tokens(config, 11)
    settings = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    engine = engine_of("gemma3")
    (plain,) = run(engine, [tokens])
    peft.inject_adapter_in_model(settings, engine.model)
    theirs = peft.inject_adapter_in_model(settings, peer(config, random_leaves(config)))
    theirs.load_state_dict(engine.model.state_dict(), strict=True)
    (adapted,) = run(engine, [tokens])
    assert relative_error(adapted, peer_logits(theirs, tokens)) < 2e-5
    assert relative_error(adapted, plain) > 0.01


@pytest.mark.parametrize("name", ["gemma", "gemma2", "gemma3"])
def test_gradients(name: str) -> None:
    """Nothing in the ops stops them: those of a loss equal transformers', through every parameter."""
    config = TINY[name]
    tokens = torch.tensor(random_tokens(config, 13))
    engine, theirs = engine_of(name), peer(config, random_leaves(config))
    batch = Batch.of(config, [Chunk(tokens.tolist(), outputs="all")])
    visible = {kind: Visible.of(spans, batch.sequences, engine.device) for kind, spans in batch.visible.items()}
    step = decoder.Step(tokens, torch.arange(13), dict(visible), torch.arange(13))
    logits = engine.model(TorchOps(torch.float32), step, StepCache([None], batch.sequences))
    torch.nn.functional.cross_entropy(logits[:-1], tokens[1:]).backward()
    torch.nn.functional.cross_entropy(theirs(tokens[None]).logits[0, :-1], tokens[1:]).backward()
    wanted = {key: value.grad for key, value in theirs.named_parameters()}
    for key, value in engine.model.named_parameters():
        torch.testing.assert_close(value.grad, wanted[key], rtol=1e-3, atol=1e-4 * float(wanted[key].abs().max()))


def test_one_layer_compiled_or_wrapped_is_the_one_that_runs() -> None:
    """What FSDP and activation checkpointing do: the block's own forward runs, with its arguments."""
    engine = engine_of("gemma3")
    (before,) = run(engine, [[1, 2, 3]])
    calls: list[int] = []

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any) -> Any:
            calls.append(self.inner.index)
            return self.inner(*args)

    layers = engine.model.model.layers
    for index in range(len(layers)):
        layers[index] = Wrapper(layers[index])
    assert np.array_equal(run(engine, [[1, 2, 3]])[0], before)
    assert calls == list(range(TINY["gemma3"].num_layers))


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_queries_longer_than_a_tile(name: str) -> None:
    """Prompts are attended to a tile of queries at a time; nothing is lost at its edge, with a window or without."""
    config = TINY[name]
    tokens = random_tokens(config, QUERY_TILE + 9)
    (logits,) = run(engine_of(name), [tokens])
    (expected,) = run(open_engine("reference", config, random_leaves(config)), [tokens])
    assert relative_error(logits, expected) < 2e-5


def test_intermediates_have_the_names_of_the_oracle() -> None:
    config = TINY["gemma3"]
    taps: list[dict[str, Array]] = [{}, {}]
    engines = (engine_of("gemma3"), open_engine("reference", config, random_leaves(config)))
    for engine, found in zip(engines, taps, strict=True):
        engine.step(Batch.of(config, [Chunk([5, 6, 7], outputs="all")]), [engine.new_cache(3)], found)
    assert list(taps[0]) == list(taps[1])
    assert {"embedding", "layers.3.attn_out", "layers.7.out", "hidden", "logits"} <= set(taps[0])
    for name, value in taps[1].items():
        assert relative_error(taps[0][name], value) < 2e-5


def test_dtype_is_as_stored_unless_asked() -> None:
    config = TINY["gemma"]
    lookup = random_leaves(config)
    assert TorchEngine(config, lookup).info.dtype == "float32"
    assert TorchEngine(config, rounded(lookup)).info.dtype == "bfloat16"
    assert TorchEngine(config, lookup, dtype="bfloat16").info.dtype == "bfloat16"
    parameters = sum(int(np.prod(shape)) for shape in leaf_shapes(config).values())
    assert TorchEngine(config, rounded(lookup)).info.formats == {"BF16": 2 * parameters}
    assert TorchEngine(config, rounded(lookup), dtype="float32").info.formats == {"F32 from BF16": 4 * parameters}
    assert TorchEngine(config, rounded(lookup)).info.device in ("cpu", "cuda:0")


def test_blocks_are_widened_and_it_says_so() -> None:
    config = TINY["gemma-q32"]

    def lookup(name: str) -> Leaf:
        leaf = random_leaves(config)(name)
        if len(leaf.shape) == 1:
            return leaf
        return Blocks("Q8_0", (leaf.shape[0], leaf.shape[1]), blocks.quantize("Q8_0", leaf.dequantize()))

    engine = TorchEngine(config, lookup)
    norms = (2 * config.num_layers + 1) * config.hidden_size
    assert engine.info.formats == {"F32 from Q8_0": 4 * (config.parameters - norms), "F32": 4 * norms}
    held = engine.model.model.layers[1].mlp.gate_proj.weight
    assert np.array_equal(held.detach().numpy(), lookup("layers.1.gate").dequantize())


def test_leaves_are_copied() -> None:
    """A leaf may be a view of a mapped file, read-only, or shared with another engine."""
    config = TINY["gemma"]
    kept: dict[str, Dense] = {}

    def lookup(name: str) -> Leaf:
        array = random_leaves(config)(name).dequantize()
        array.flags.writeable = False
        return kept.setdefault(name, Dense(array))

    engine = TorchEngine(config, lookup)
    before = kept["embed"].array.copy()
    with torch.no_grad():
        engine.model.model.embed_tokens.weight.zero_()
    assert np.array_equal(kept["embed"].array, before)


def test_float16_is_refused_with_the_reason() -> None:
    with pytest.raises(GemmaryError, match=r"65504.*bfloat16") as refused:
        engine_of("gemma3", dtype="float16")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("options", [{"dtype": "int7"}, {"device": "nowhere"}, {"device": "cuda:99"}], ids=str)
def test_bad_choices_give_one_line(options: dict[str, str]) -> None:
    with pytest.raises(GemmaryError) as refused:
        engine_of("gemma", **options)
    assert "\n" not in str(refused.value)
    assert next(iter(options.values())) in str(refused.value)


def test_a_leaf_of_another_shape() -> None:
    wide: Config = TINY["gemma-mha"]
    with pytest.raises(ValueError, match="embed is"):
        TorchEngine(TINY["gemma"], random_leaves(wide))


def test_a_cache_is_continued_where_it_ends_and_holds_what_it_says() -> None:
    engine = engine_of("gemma")
    cache = engine.new_cache(5)
    engine.step(Batch.of(engine.config, [Chunk([1, 2, 3])]), [cache])
    for start, tokens in ((2, [4]), (4, [4]), (3, [4, 5, 6])):
        with pytest.raises(ValueError, match="cache has 3 of 5"):
            engine.step(Batch.of(engine.config, [Chunk(tokens, start=start)]), [cache])
    assert cache.length == 3
    expected = run_in_chunks(engine, [1, 2, 3, 4, 5], [5])[-1:]
    logits = engine.step(Batch.of(engine.config, [Chunk([4, 5], start=3)]), [cache])
    assert relative_error(logits, expected) < 2e-5
