"""What the native engine refuses, with one line and nothing changed; what the binding refuses, without a crash."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gemmary import _core
from gemmary.batch import Batch, Chunk
from gemmary.engines.native import NativeEngine
from gemmary.errors import GemmaryError
from tests.engines.helpers import in_steps, same_bits
from tests.tiny import TINY, random_leaves, random_tokens

CONFIG = TINY["gemma2"]


@pytest.fixture(scope="module")
def engine() -> NativeEngine:
    return NativeEngine(CONFIG, random_leaves(CONFIG), threads=2, max_chunk=9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "float16 overflows"),
        ({"dtype": "int3"}, "float32 or bfloat16"),
        ({"kv_dtype": "int4"}, "auto, bfloat16, float32, int8, not int4"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": 100_000}, "threads must be between"),
        ({"isa": "mmx"}, "no instruction set called mmx: choose one of scalar"),
        ({"isa": "neon" if "avx2" in _core.available_isas() else "avx2"}, "this machine has no instruction set called"),
    ],
)
def test_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GemmaryError, match=message):
        NativeEngine(CONFIG, random_leaves(CONFIG), **options)


def test_threads_that_the_system_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(threads: int, isa: str | None) -> None:
        raise RuntimeError("Resource temporarily unavailable")  # what std::system_error arrives as

    monkeypatch.setattr("gemmary._core.Runtime", refuse)
    with pytest.raises(GemmaryError, match=r"cannot start 1000 threads: Resource .* fewer"):
        NativeEngine(CONFIG, random_leaves(CONFIG), threads=1000)


def test_a_format_without_kernels() -> None:
    leaf = random_leaves(CONFIG)

    class Strange:
        shape, format, nbytes = (4, 4), "Q9_9", 16

    with pytest.raises(GemmaryError, match="does not know the weight format Q9_9"):
        NativeEngine(CONFIG, lambda name: Strange() if name == "layers.1.up" else leaf(name), threads=1)  # type: ignore


@pytest.mark.parametrize(
    ("capacity", "held", "chunk", "message"),
    [
        (8, 0, Chunk([1] * 9), "the cache holds 8 tokens and this step would make it 9"),
        (20, 3, Chunk([1], start=2), "holds 3 tokens, so the next position is not 2"),
        (20, 3, Chunk([1], start=4), "holds 3 tokens, so the next position is not 4"),
        (20, 0, Chunk([1, CONFIG.vocab_size]), "token id 103 is outside the vocabulary of 103"),
        (20, 0, Chunk([1, -1]), "token id -1"),
        (20, 0, Chunk([]), "at least one token"),
        (200, 9, Chunk([1] * 40, start=9), r"overruns a windowed layer's cache: send at most \d+ tokens"),
    ],
)
def test_steps_that_do_not_fit(engine: NativeEngine, capacity: int, held: int, chunk: Chunk, message: str) -> None:
    cache, twin = engine.new_cache(capacity), engine.new_cache(capacity)
    if held:
        for each in (cache, twin):
            engine.step(Batch.of(CONFIG, [Chunk([1] * held)]), [each])
    with pytest.raises(GemmaryError, match=message) as caught:
        engine.step(Batch.of(CONFIG, [chunk]), [cache])
    assert "\n" not in str(caught.value)
    assert cache.length == held
    after = Batch.of(CONFIG, [Chunk([5], start=held)])
    assert same_bits(engine.step(after, [cache]), engine.step(after, [twin]))


def test_the_chunk_that_is_advised_fits(engine: NativeEngine) -> None:
    cache = engine.new_cache(200)
    engine.step(Batch.of(CONFIG, [Chunk([1] * 9)]), [cache])
    with pytest.raises(GemmaryError, match="send at most") as caught:
        engine.step(Batch.of(CONFIG, [Chunk([1] * 60, start=9)]), [cache])
    most = int(str(caught.value).partition("send at most ")[2].split()[0])
    assert most >= engine.max_chunk
    engine.step(Batch.of(CONFIG, [Chunk([1] * most, start=9)]), [cache])
    assert cache.length == 9 + most


def test_caches_that_do_not_belong(engine: NativeEngine) -> None:
    batch = Batch.of(CONFIG, [Chunk([1, 2]), Chunk([3])])
    shared = engine.new_cache(8)
    other = TINY["gemma"]
    foreign = NativeEngine(other, random_leaves(other), threads=1).new_cache(8)
    for caches, message in (
        ([shared], "one cache for each sequence"),
        ([shared, shared], "share one cache"),
        ([shared, foreign], "another model"),
    ):
        with pytest.raises(GemmaryError, match=message):
            engine.step(batch, caches)
    assert shared.length == 0


@pytest.mark.parametrize("capacity", [0, -1, 2**40])
def test_capacities(engine: NativeEngine, capacity: int) -> None:
    with pytest.raises(GemmaryError, match="between 1 and"):
        engine.new_cache(capacity)


def test_a_cache_larger_than_memory_is_refused_or_untouched() -> None:
    config = TINY["gemma-q256"]
    engine = NativeEngine(config, random_leaves(config), threads=1)
    refusal = ""
    try:
        assert engine.new_cache(2**30).nbytes > 2**40
    except GemmaryError as error:
        refusal = str(error)
    assert refusal in ("", "there is not enough memory for a cache for 1073741824 tokens")


def test_an_engine_goes_on_after_a_refusal(engine: NativeEngine) -> None:
    tokens = random_tokens(CONFIG, 9)
    before = in_steps(engine, tokens, [9])
    with pytest.raises(GemmaryError):
        engine.step(Batch.of(CONFIG, [Chunk([-1])]), [engine.new_cache(4)])
    assert same_bits(in_steps(engine, tokens, [9]), before)


def arguments() -> dict[str, Any]:
    """Right ones, for a program that adds two arrays [3, 5] of the caller into a third."""
    return {
        "tokens": np.zeros(3, np.int32),
        "positions": np.zeros(3, np.int32),
        "visible": [],
        "outputs": np.zeros(0, np.int32),
        "sequences": np.array([[0, 3]], np.int32),
        "caches": [],
        "externals": [np.ones((3, 5), np.float32) for _ in range(3)],
    }


def adder() -> Any:
    program = _core.Program(_core.Runtime(1, None), [], [("T", 5, n, True) for n in range(3)], 0, 3)
    program.add("add", 2, 0, 1)
    return program


def read_only() -> Any:
    array = np.ones((3, 5), np.float32)
    array.flags.writeable = False
    return array


def test_the_right_arguments_run() -> None:
    given = arguments()
    adder().run(**given)
    assert (given["externals"][2] == 2).all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": np.zeros(4, np.int32)},
        {"tokens": np.zeros(3, np.int64)},
        {"tokens": np.zeros(6, np.int32)[::2]},
        {"positions": np.zeros(2, np.int32)},
        {"outputs": np.array([3], np.int32)},
        {"outputs": np.array([-1], np.int32)},
        {"sequences": np.array([[0, 2]], np.int32)},
        {"sequences": np.array([[0, 4]], np.int32)},
        {"sequences": np.array([[1, 3]], np.int32)},
        {"sequences": np.array([[0, 2], [1, 3]], np.int32)},
        {"sequences": np.array([0, 3], np.int32)},
        {"visible": [np.zeros((3, 2), np.int32)]},
        {"externals": [np.ones((3, 5), np.float32)] * 2},
        {"externals": [np.ones((3, 5), np.float32)] * 2 + [np.ones((3, 4), np.float32)]},
        {"externals": [np.ones((3, 5), np.float32)] * 2 + [np.ones((3, 5), np.float64)]},
        {"externals": [np.ones((3, 5), np.float32)] * 2 + [np.ones((5, 3), np.float32).T]},
        {"externals": [np.ones((3, 5), np.float32)] * 2 + [read_only()]},
        {"caches": [None]},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_arguments_of_a_step(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        adder().run(**(arguments() | wrong))


@pytest.mark.parametrize(
    "build",
    [
        lambda p: p.add("", 3, 0, 1),
        lambda p: p.add("", -1, 0, 1),
        lambda p: p.add("", 2, 0, 4),
        lambda p: p.rms_norm("", 2, 0, np.zeros(4, np.float32), 1e-6),
        lambda p: p.rms_norm("", 2, 0, np.zeros(0, np.float32), 1e-6),
        lambda p: p.rope_angles("", 2, [1.0, 2.0]),
        lambda p: p.rope("", 2, 0, 3),
        lambda p: p.attention("", 2, 0, 1, 1, 0, 0, 1, 1, 1.0, 0.0),
        lambda p: p.attention("", 2, 0, 1, 1, 0, 0, 0, 0, 1.0, 0.0),
        lambda p: p.take("", 2, 0),
        lambda p: p.softcap("", 2, 0, -1.0),
        lambda p: p.mean_pool("", 2, 0),
        lambda p: p.layer_norm("", 2, 0, np.zeros(5, np.float32), np.zeros(4, np.float32), 1e-6),
        lambda p: p.gelu("", 3, 0),
        lambda p: p.place("", 2, 0, 1),
        lambda p: p.linear("", [2], 0, [], [], []),
        lambda p: p.linear("", [2], 0, [None], [], [None]),
        lambda p: p.embed("", 2, None, 1.0),
    ],
)
def test_wrong_instructions(build: Callable[[Any], None]) -> None:
    runtime = _core.Runtime(1, None)
    program = _core.Program(runtime, [], [("T", 5, n, True) for n in range(3)] + [("T", 4, 3, True)], 0, 4)
    with pytest.raises((ValueError, TypeError)):
        build(program)


@pytest.mark.parametrize(
    ("slots", "buffers"),
    [
        ([("T", 4)], [("T", 5, 0, False)]),
        ([("R", 5)], [("T", 5, 0, False)]),
        ([("T", 5)], [("T", 5, 1, False)]),
        ([("T", 5)], [("T", 5, -1, False)]),
        ([("T", 0)], []),
        ([("Q", 5)], []),
        ([], [("T", 2**40, 0, True)]),
    ],
)
def test_wrong_buffers(slots: list[Any], buffers: list[Any]) -> None:
    with pytest.raises(ValueError):
        _core.Program(_core.Runtime(1, None), slots, buffers, 0, 1)


@pytest.mark.parametrize(
    ("format", "rows", "cols", "nbytes"),
    [
        ("F32", 2, 3, 23),
        ("F32", 2, 3, 48),
        ("Q8_0", 2, 33, 68),
        ("Q9", 2, 32, 68),
        ("F32", 0, 3, 0),
        ("F32", -1, 3, 12),
    ],
)
def test_wrong_weights(format: str, rows: int, cols: int, nbytes: int) -> None:
    runtime = _core.Runtime(1, None)
    with pytest.raises(ValueError):
        _core.PackedWeight(runtime, format, rows, cols).pack(runtime, 0, np.zeros(nbytes, np.uint8))


@pytest.mark.parametrize(("row", "count"), [(-16, 16), (8, 16), (0, 17), (16, 25), (32, 16), (0, 0)])
def test_rows_that_cannot_be_packed(row: int, count: int) -> None:
    """Whole panels of a weight of 40 rows, or those up to its end."""
    runtime = _core.Runtime(1, None)
    weight = _core.PackedWeight(runtime, "F32", 40, 3)
    with pytest.raises(ValueError, match="do not match"):
        weight.pack(runtime, row, np.zeros(count * 12, np.uint8))
