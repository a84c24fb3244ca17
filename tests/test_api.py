"""The Python face: names that are frozen, and what they do on tiny models."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gemmary
from gemmary import api, memory
from gemmary.chat import TEMPLATES
from gemmary.checkpoints.random_weights import random_checkpoint
from gemmary.config import VisionConfig
from gemmary.embedding import PROMPTS
from gemmary.engines import open_engine
from gemmary.errors import GemmaryError
from gemmary.loaded import Model
from gemmary.quantize.leaves import Affine, Blocks, Dense
from tests.generate.toys import ScriptedEngine
from tests.models import tiny_checkpoint, tiny_model, tokenizer
from tests.tiny import TINY, random_tokens


def test_the_public_names_are_frozen() -> None:
    assert gemmary.__all__ == [
        "Box", "Completion", "GemmaryError", "GemmaryWarning", "Mask", "Model", "PictureCompletion", "Piece",
        "SamplingParams", "Stats", "Stream", "TokenLogprob", "__version__", "load", "random_model", "save",
    ]  # fmt: skip
    for name in gemmary.__all__:
        assert getattr(gemmary, name) is not None
    assert dir(gemmary) == gemmary.__all__
    with pytest.raises(AttributeError, match="nothing"):
        gemmary.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (
            "load",
            [
                "name",
                "engine",
                "threads",
                "dtype",
                "quant",
                "kv_dtype",
                "context",
                "draft",
                "adapter",
                "isa",
                "conventions",
                "packed_copy",
            ],
        ),
        ("save", ["model", "path", "format", "dtype", "shard_bytes"]),
        ("Model.generate", ["self", "prompt", "image", "adapter", "options"]),
        ("Model.stream", ["self", "prompt", "image", "adapter", "options"]),
        ("Model.caption", ["self", "image", "lang", "options"]),
        ("Model.answer", ["self", "image", "question", "lang", "options"]),
        ("Model.ocr", ["self", "image", "options"]),
        ("Model.detect", ["self", "image", "labels", "merge_iou", "options"]),
        ("Model.segment", ["self", "image", "labels", "merge_iou", "options"]),
        ("Model.find_objects", ["self", "images", "labels", "has_masks", "options"]),
        ("Model.objects_prompt", ["self", "labels", "has_masks", "options"]),
        ("Model.chat", ["self", "messages", "image", "adapter", "options"]),
        ("Model.chat_prompt", ["self", "messages", "pictures"]),
        ("Model.fill_in_the_middle", ["self", "before", "after", "adapter", "options"]),
        ("Model.embed", ["self", "texts", "prompt", "title", "dimensions", "adapter"]),
        ("Model.logits", ["self", "ids", "pixels", "adapter"]),
        ("Model.score", ["self", "ids", "adapter"]),
        ("Model.keep_packed", ["self", "progress"]),
        ("Model.close", ["self"]),
    ],
)
def test_signatures_are_frozen(function: str, parameters: list[str]) -> None:
    found: Any = gemmary
    for part in function.split("."):
        found = getattr(found, part)
    assert list(inspect.signature(found).parameters) == parameters


def test_sampling_options_are_frozen() -> None:
    fields = list(gemmary.SamplingParams.__dataclass_fields__)
    assert fields == [
        "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "max_tokens", "stop", "logprobs",
        "ignore_eos", "speculate", "cache_prompt",
    ]  # fmt: skip
    from gemmary.generate import SamplingOptions

    assert list(SamplingOptions.__annotations__) == fields
    defaults = gemmary.SamplingParams()
    assert (defaults.temperature, defaults.top_k, defaults.top_p) == (1.0, 64, 0.95)  # spec 2.4


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import gemmary; print(*sorted(set(sys.modules) - before))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) <= {"__future__", "gemmary"}


def test_loading_imports_no_heavy_library() -> None:
    code = "import gemmary, sys; gemmary.load; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "jax", "transformers", "huggingface_hub", "rich", "gguf", "tokenizers"}
    assert not heavy & set(found.stdout.split())


# Generating -------------------------------------------------------------------------------------------------------


def test_generate_takes_texts_ids_and_lists_of_them() -> None:
    model = tiny_model()
    ids = tokenizer().encode("abc", bos=True)
    one = model.generate("abc", temperature=0, max_tokens=6, ignore_eos=True)
    assert one.stats.prompt_tokens == len(ids)
    assert (len(one.tokens), one.finish_reason) == (6, "length")
    assert one.text == tokenizer().decode(one.tokens)
    same = model.generate(ids, temperature=0, max_tokens=6, ignore_eos=True)
    assert same.tokens == model.generate(np.array(ids), temperature=0, max_tokens=6, ignore_eos=True).tokens
    assert same.tokens == one.tokens
    many = model.generate(["abc", "the bc"], temperature=0, max_tokens=6, ignore_eos=True)
    assert [each.stats.prompt_tokens for each in many] == [len(ids), len(tokenizer().encode("the bc", bos=True))]
    assert many[0].tokens == one.tokens
    as_ids = model.generate([ids, [2, 5]], temperature=0, max_tokens=6, ignore_eos=True)
    assert as_ids[0].tokens == one.tokens
    assert model.generate([]) == []


def test_a_text_that_brings_its_own_bos_has_it_once() -> None:
    model = tiny_model()
    options: Any = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    plain, spelled = model.generate(["abc", "<bos>abc"], **options)
    assert spelled.stats.prompt_tokens == plain.stats.prompt_tokens
    assert spelled.tokens == plain.tokens
    assert plain.notices == ()
    assert "begins with <bos>" in spelled.notices[0]
    assert model.stream("<bos>", **options).read().stats.prompt_tokens == 1
    inside = model.generate("a<bos>", **options)
    assert inside.stats.prompt_tokens == len(tokenizer().encode("a<bos>", bos=True)) > 3


def test_same_seed_same_text_alone_and_in_a_list() -> None:
    model = tiny_model()
    sampled: Any = {"seed": 5, "max_tokens": 12, "temperature": 1.4}
    alone = [model.generate(prompt, **sampled).tokens for prompt in ("ab", "abc", "th")]
    assert [each.tokens for each in model.generate(["ab", "abc", "th"], **sampled)] == alone
    assert len(set(alone)) == 3


def test_a_fresh_seed_is_told_and_repeats_the_text() -> None:
    model = tiny_model()
    first, second = (model.generate("ab", max_tokens=12, ignore_eos=True) for _ in range(2))
    assert first.stats.seed != second.stats.seed
    again = model.generate("ab", max_tokens=12, ignore_eos=True, seed=first.stats.seed)
    assert again.tokens == first.tokens


def test_stream_gives_the_text_of_generate() -> None:
    model = tiny_model()
    options: Any = {"temperature": 0, "max_tokens": 10, "ignore_eos": True, "logprobs": 2}
    stream = model.stream("the", **options)
    pieces = list(stream)
    whole = model.generate("the", **options)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.token for piece in pieces] == list(whole.tokens)
    assert whole.logprobs is not None
    assert [piece.logprob for piece in pieces] == [each.logprob for each in whole.logprobs]
    assert stream.stats.completion_tokens == 10


@pytest.mark.parametrize("which", [0, 1])
def test_the_models_own_ends_stop_it(which: int) -> None:
    end = (tokenizer().eos_id, tokenizer().turn_ids[1])[which]  # type: ignore[index]
    ids = tokenizer().encode("abc", bos=True)
    checkpoint = tiny_checkpoint()
    answer = [*tokenizer().encode("the"), end, *tokenizer().encode("bc")]
    model = Model(checkpoint, ScriptedEngine([0] * (len(ids) - 1) + answer, checkpoint.config))
    found = model.generate(ids, temperature=0, max_tokens=40)
    assert (found.text, found.finish_reason) == ("the", "stop")
    assert list(found.tokens) == answer[: answer.index(end) + 1]
    assert len(model.generate(ids, temperature=0, max_tokens=40, ignore_eos=True).tokens) == 40


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ("a" * 70, {}, "context holds 64"),
        ("a", {"max_tokens": 64}, "max_tokens can be at most"),
        (None, {}, "a prompt is"),
        (["a", 3], {}, "a prompt is"),
        ([[2], [999]], {}, "token id 999"),
        ("a", {"top_p": 2}, "top_p"),
        ("a", {"topp": 2}, "no sampling option is called 'topp'"),
        ("a", {"stop": 10**9}, "stop id 1000000000 is outside the vocabulary"),
    ],
)
def test_bad_prompts_and_options_are_refused(prompt: Any, options: dict[str, Any], words: str) -> None:
    model = tiny_model()
    with pytest.raises(GemmaryError, match=words) as error:
        model.generate(prompt, **options)
    assert "\n" not in str(error.value)
    assert not model.scheduler.running
    assert not model.scheduler.waiting


def test_threads_may_share_a_model() -> None:
    model = tiny_model()
    options: Any = {"seed": 3, "max_tokens": 15, "ignore_eos": True}
    prompts = ["ab", "abc", "the", "bc th", "ab ab ab"]
    expected = [model.generate(prompt, **options).tokens for prompt in prompts]
    found: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        found[index] = model.generate(prompts[index], **options).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(len(prompts))] == expected


def test_a_closed_model_says_so_and_ends_its_streams() -> None:
    with tiny_model() as model:
        stream = model.stream("ab", max_tokens=30, ignore_eos=True)
        next(stream)
    assert list(stream) == []
    assert stream.completion.finish_reason == "cancelled"
    with pytest.raises(GemmaryError, match="closed"):
        model.generate("ab")
    model.close()


# Chat, infill, embeddings -----------------------------------------------------------------------------------------


def test_chat_of_an_instruction_tuned_checkpoint() -> None:
    model = tiny_model(template=TEMPLATES["gemma3"])
    options: Any = {"temperature": 0, "max_tokens": 4, "ignore_eos": True}
    answer = model.chat([{"role": "user", "content": "abc"}], **options)
    assert answer.notices == ()
    start, end = tokenizer().turn_ids  # type: ignore[misc]
    newline = tokenizer().encode("\n")
    ids = [2, start, *tokenizer().encode("user\nabc"), end, *newline, start, *tokenizer().encode("model\n")]
    assert model.chat_prompt("abc").ids == ids
    assert model.generate(ids, **options).tokens == answer.tokens
    assert model.chat("abc", **options).tokens == answer.tokens
    assert "".join(p.text for p in model.stream(model.chat_prompt("abc"), **options)) == answer.text


def test_chat_of_a_base_checkpoint_says_that_it_is_one() -> None:
    model = tiny_model()
    with pytest.warns(gemmary.GemmaryWarning, match="not instruction-tuned"):
        answer = model.chat("abc", max_tokens=1)
    assert len(answer.notices) == 1
    assert model.stream(model.chat_prompt("abc")).notices == answer.notices


@pytest.mark.parametrize(
    ("called", "template", "tuned"),
    [
        ("gemma-2-2b-it", None, True),
        ("google/gemma-3-1b-it", None, True),
        ("gemma-2-2b", TEMPLATES["gemma1"], False),
        ("codegemma-2b", None, False),
        ("mine", TEMPLATES["gemma1"], True),
        ("mine", None, False),
        ("starter", None, False),
    ],
)
def test_what_counts_as_instruction_tuned(called: str, template: str | None, tuned: bool) -> None:
    assert tiny_model(called=called, template=template).instruction_tuned is tuned


def test_the_template_decides_the_style_and_a_foreign_one_is_told() -> None:
    system = [{"role": "system", "content": "ab"}, {"role": "user", "content": "c"}]
    assert tiny_model(template=TEMPLATES["gemma3"]).chat_prompt(system).notices == ()
    (folded,) = tiny_model("gemma2", template=TEMPLATES["gemma1"]).chat_prompt(system).notices
    assert "no system role" in folded
    (foreign,) = tiny_model(template="[INST] {{ messages }} [/INST]").chat_prompt("abc").notices
    assert "not one of Gemma's" in foreign


def test_infill_needs_a_tokenizer_that_has_it() -> None:
    with pytest.raises(GemmaryError, match="CodeGemma"):
        tiny_model("gemma").fill_in_the_middle("a", "b")


def test_embeddings_are_unit_vectors_of_prompted_texts() -> None:
    model = tiny_model("embeddinggemma", pooled_dense=(160, 300))
    texts = ["abc", "the bc ab", "a"]
    vectors = model.embed(texts)
    assert vectors.shape == (3, 300)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.embed("the bc ab"), vectors[1], atol=1e-5)
    bare = model.embed(PROMPTS["query"] + "abc", prompt=None)
    np.testing.assert_allclose(bare, vectors[0], atol=1e-5)
    assert np.abs(model.embed("abc", prompt="document") - vectors[0]).max() > 1e-2
    titled = model.embed("abc", prompt="document", title="th")
    np.testing.assert_allclose(titled, model.embed("title: th | text: abc", prompt=None), atol=1e-5)
    short = model.embed(texts, dimensions=256)
    cut = vectors[:, :256] / np.linalg.norm(vectors[:, :256], axis=1, keepdims=True)
    np.testing.assert_allclose(short, cut, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"texts": "a", "dimensions": 64}, "first 256, 128"),
        ({"texts": "a", "prompt": "qeury"}, "no embedding prompt"),
        ({"texts": "a", "title": "b"}, "title"),
        ({"texts": []}, "no text"),
        ({"texts": "abc " * 60}, "context holds"),
    ],
)
def test_bad_embedding_calls_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(GemmaryError, match=words):
        tiny_model("embeddinggemma", pooled_dense=(160, 300)).embed(**arguments)


def test_encoders_do_not_write_and_decoders_do_not_embed() -> None:
    encoder = tiny_model("embeddinggemma")
    for call in (encoder.generate, encoder.stream, encoder.chat):
        with pytest.raises(GemmaryError, match="use `embed`"):
            call("abc")
    with pytest.raises(GemmaryError, match="use `embed`"):
        encoder.logits([2, 3])
    with pytest.raises(GemmaryError, match="not an embedding model"):
        tiny_model().embed("abc")


# Looking into it --------------------------------------------------------------------------------------------------


def test_logits_are_of_every_position_and_scores_of_every_next_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    ids = random_tokens(model.config, 23)
    whole = model.logits(ids)
    assert whole.shape == (23, model.config.vocab_size)
    assert whole.dtype == np.float32
    monkeypatch.setattr("gemmary.scores._LOGIT_BYTES", 5 * 4 * model.config.vocab_size)  # five rows at a time
    np.testing.assert_allclose(model.logits(ids), whole, atol=2e-4)
    exact = whole.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(model.score(ids), exact[np.arange(22), ids[1:]], atol=1e-4)


@pytest.mark.parametrize("engine", ["reference", "native"])
def test_one_token_has_no_score(folder: Path, engine: str) -> None:
    if engine == "native":
        pytest.importorskip("gemmary._core", reason="the native core is not built")
    assert gemmary.load(folder, engine=engine).score([2]).shape == (0,)


@pytest.mark.parametrize(("ids", "words"), [([], "non-empty"), ("abc", "encode the text"), ([2] * 65, "65 tokens")])
def test_logits_of_what_cannot_be(ids: Any, words: str) -> None:
    with pytest.raises(GemmaryError, match=words):
        tiny_model().logits(ids)


def test_logits_that_memory_cannot_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    with pytest.raises(GemmaryError, match="1,000 bytes are available"):
        tiny_model().logits([2, 3, 4])


# Loading and saving -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Gemma 3 whose rows divide into blocks, saved by `gemmary.save`."""
    path = tmp_path_factory.mktemp("models") / "tiny-it"
    assert gemmary.save(tiny_model("gemma3-q32", template=TEMPLATES["gemma3"]), path) == []
    return path


def test_what_is_saved_loads_and_says_the_same(folder: Path, tmp_path: Path) -> None:
    made = tiny_model("gemma3-q32")
    ids = random_tokens(made.config, 20)
    loaded = gemmary.load(folder, engine="reference")
    assert loaded.config == made.config
    assert (loaded.name, loaded.context, loaded.info.engine) == ("tiny-it", 64, "reference")
    assert loaded.instruction_tuned
    assert loaded.notices == ()
    assert np.array_equal(loaded.logits(ids), made.logits(ids))
    assert loaded.tokenizer.encode("abc the") == tokenizer().encode("abc the")
    gemmary.save(loaded, tmp_path / "again", dtype="float32")
    again = gemmary.load(str(tmp_path / "again"), engine="reference", context=17)
    assert np.array_equal(again.logits(ids[:17]), made.logits(ids[:17]))
    assert again.context == 17
    with pytest.raises(GemmaryError, match="context of 17"):
        again.logits(ids)


@pytest.mark.parametrize(("quant", "block_type", "error"), [("int8", "Q8_0", 0.04), ("int4", "Q4_0", 0.6)])
def test_quant_makes_blocks_of_every_matrix(folder: Path, quant: str, block_type: str, error: float) -> None:
    exact = gemmary.load(folder, engine="reference")
    model = gemmary.load(folder, engine="reference", quant=quant)
    assert model.notices == ()
    assert model.weight_format == block_type
    for name in ("embed", "layers.3.down"):
        leaf = model.lookup(name)
        assert isinstance(leaf, Blocks)
        assert (leaf.format, leaf.shape) == (block_type, exact.lookup(name).shape)
    assert isinstance(model.lookup("layers.3.q_norm"), Dense)
    ids = random_tokens(model.config, 20)
    found, expected = model.logits(ids), exact.logits(ids)
    relative = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < relative < error


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_the_tower_is_int8_where_the_decoder_is_quantized(quant: str) -> None:
    tower = VisionConfig(image_size=12, num_layers=1, hidden_size=30, num_heads=3, intermediate_size=41, patch_size=4)
    checkpoint = random_checkpoint(replace(TINY["gemma-q32"], vision=tower), "random", None, 0)
    lookup = api.quantized(checkpoint, quant, [])
    formats = {name: lookup(name).format for name in checkpoint.names()}
    assert formats["layers.0.q"] == formats["embed"] == api.QUANT[quant]
    assert {formats[name] for name in ("vision.layers.0.q", "vision.layers.0.down", "vision.projector")} == {"Q8_0"}
    assert {formats[name] for name in ("vision.patch", "vision.position")} == {"BF16"}
    leaf, stored = lookup("vision.layers.0.down"), checkpoint.lookup("vision.layers.0.down")
    assert isinstance(leaf, Affine)
    assert isinstance(stored, Affine)
    assert leaf.shape == (30, 41)
    assert np.array_equal(leaf.bias, stored.bias)
    assert np.abs(leaf.dequantize() - stored.dequantize()).max() < np.abs(stored.dequantize()).max() / 200


def test_quantizing_again_is_told(folder: Path, tmp_path: Path) -> None:
    small = gemmary.load(folder, engine="reference", quant="int8")
    with pytest.warns(gemmary.GemmaryWarning, match="query scale"):  # an odd one: llama.cpp would not follow it
        gemmary.save(small, tmp_path / "small.gguf", format="gguf")
    as_stored = gemmary.load(tmp_path / "small.gguf", engine="reference", quant="int8")
    assert as_stored.notices == ()
    assert as_stored.weight_format == "Q8_0"
    with pytest.warns(gemmary.GemmaryWarning, match="quantized again to int4"):
        again = gemmary.load(tmp_path / "small.gguf", engine="reference", quant="int4")
    assert len(again.notices) == 1
    assert again.weight_format == "Q4_0"
    with pytest.warns(gemmary.GemmaryWarning) as told:
        gemmary.save(small, tmp_path / "smaller.gguf", format="gguf", dtype="int4")
    assert [
        str(each.message) for each in told if "Q8_0 were dequantized and quantized again to Q4_0" in str(each.message)
    ]


def test_rows_that_do_not_divide_into_blocks_are_refused(tmp_path: Path) -> None:
    gemmary.save(tiny_model("gemma"), tmp_path / "odd")
    with pytest.raises(GemmaryError, match=r"cannot be quantized to int4: in .* rows of \d+ weights"):
        gemmary.load(tmp_path / "odd", engine="reference", quant="int4")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engine": "jax"}, "no engine is called 'jax'"),
        ({"dtype": "float16"}, "65504"),
        ({"dtype": "int8"}, "float32 or bfloat16"),
        ({"quant": "int3"}, "int8 or int4"),
        ({"threads": 0}, "threads"),
        ({"context": 65}, "model's own 64"),
        ({"context": 0}, "model's own 64"),
        ({"context": "9"}, "model's own 64 tokens, not '9'"),
    ],
)
def test_bad_options_of_load_are_refused(folder: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(GemmaryError, match=words):
        gemmary.load(folder, **{"engine": "reference", **options})


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GemmaryError, match="gemma-2-2b-it"):
        gemmary.load("gema-2-2b-it")
    for nothing in ("", None, 3):
        with pytest.raises(GemmaryError, match="no model is called"):
            gemmary.load(nothing)  # type: ignore[arg-type]
    with pytest.raises(GemmaryError, match="no such file or folder"):
        gemmary.load(tmp_path / "nothing")


def test_memory_that_a_load_would_not_fit_is_foreseen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10_000)
    with pytest.raises(GemmaryError, match=r"tiny-it at float32 with 64 tokens .* needs .* 10,000 bytes are available"):
        gemmary.load(folder, engine="reference")


def test_memory_is_foreseen_for_what_the_torch_engine_holds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed")
    weights = tiny_checkpoint().config.weight_bytes(32)
    monkeypatch.setattr(memory, "available_bytes", lambda: weights // 2)
    with pytest.raises(GemmaryError, match=r"tiny-it at float32 with 64 tokens of context needs about"):
        gemmary.load(folder, engine="torch", quant="int4")


def test_the_context_shrinks_to_what_memory_holds_and_says_so() -> None:
    config = replace(tiny_checkpoint().config, layer_types=("global",) * 7)
    notices: list[str] = []
    engine = open_engine("reference", config, tiny_checkpoint().lookup)
    per_token = engine.cache_bytes(1)
    assert api._fit_context(engine, None, 64 * per_token, notices) == 64
    assert notices == []
    assert api._fit_context(engine, None, 30 * per_token + 1, notices) == 30
    assert "30 of the model's 64" in notices[0]
    assert api._fit_context(engine, None, None, notices) == 64
    assert api._fit_context(engine, 31, 30 * per_token, notices) == 31  # the plan has judged it
    with pytest.raises(GemmaryError, match="no memory is left for keys and values"):
        api._fit_context(engine, None, per_token - 1, notices)


def test_available_memory_is_the_least_of_machine_and_container(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    assert memory.available_bytes(proc, cgroup) is None
    for path, text in {
        proc / "meminfo": "MemTotal:  100 kB\nMemAvailable:   90 kB\n",
        cgroup / "memory.max": "max\n",
        cgroup / "memory.current": "40000\n",
        cgroup / "memory.stat": "anon 7\ninactive_file 10000\n",
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert memory.available_bytes(proc, cgroup) == 90 * 1024
    (cgroup / "memory.max").write_text("50000\n")
    assert memory.available_bytes(proc, cgroup) == 50_000 - 40_000 + 10_000
    assert memory.size(5_028_683_776) == "5.03 GB"
    assert memory.size(812_000_000) == "812 MB"
