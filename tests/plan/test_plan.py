"""Plans: what is added up, what fits, and what is said where nothing does."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gemmary import memory, zoo
from gemmary.bench import Ceilings
from gemmary.bench.measure import Spread
from gemmary.errors import GemmaryError
from gemmary.plan import (
    CPU,
    TASKS,
    Device,
    MachineSpeed,
    Subject,
    best_choice,
    check_fits,
    choices,
    make_plan,
    nearest_that_fits,
    parse_devices,
    released,
    remembered_speed,
    subject,
)
from gemmary.plan import ceilings as remembered
from gemmary.plan.ceilings import speed_of
from gemmary.plan.choices import longest_context
from gemmary.plan.make import PROCESS_BYTES
from gemmary.plan.series import sizes
from gemmary.plan.speed import decode_speed, prefill_speed

SPEED = MachineSpeed("a processor", "avx2", 2, read=25e9, int8=400e9, float32=150e9)
GPU = Device("cuda:0", 24 * 10**9)


def row(name: str) -> Subject:
    return released(zoo.get(name))


def cpu(gigabytes: float) -> Device:
    return Device("cpu", int(gigabytes * 1e9), 2)


@pytest.mark.parametrize("task", TASKS)
def test_the_parts_add_up(task: str) -> None:
    plan = make_plan(row("gemma-2-2b"), task=task, device=cpu(20))
    parts = plan.weights_bytes + plan.kv_bytes + plan.activation_bytes + plan.optimizer_bytes + plan.process_bytes
    assert plan.total_bytes == parts > plan.weights_bytes > 1e9
    assert plan.fits == (plan.total_bytes <= 20e9)
    assert (plan.optimizer_bytes > 0) == (task != "run")
    assert (plan.kv_bytes > 0) == (task == "run")


def test_loading_can_be_what_takes_the_most() -> None:
    made = replace(row("gemma-3-270m"), is_made=True)  # the table is most of it, and lies there twice for a moment
    plan = make_plan(made, context=512)
    table = 2 * made.config.embedding_parameters
    assert plan.total_bytes == PROCESS_BYTES + plan.weights_bytes + plan.load_bytes == PROCESS_BYTES + 2 * table
    assert make_plan(row("gemma-3-270m"), context=512).load_bytes == 0


@pytest.mark.parametrize(
    ("name", "gigabytes"),
    [
        ("gemma-2b", 5.01),
        ("gemma-7b", 17.08),
        ("gemma-2-9b", 18.48),
        ("gemma-2-27b", 54.46),
        ("paligemma2-10b-pt-224", 19.33),
        ("paligemma2-28b-pt-224", 55.30),
    ],
)
def test_the_hardware_table_of_the_seeds(name: str, gigabytes: float) -> None:
    assert round(make_plan(row(name)).weights_bytes / 1e9, 2) == gigabytes


def test_what_is_to_be_downloaded() -> None:
    assert round(row("paligemma-3b-pt-224").download_bytes / 1e9, 2) == 11.69  # float32 on the hub (spec 4.2)
    assert row("paligemma-3b-pt-224").spelled == "float32"
    assert row("gemma-2-2b").download_bytes == 2 * zoo.get("gemma-2-2b").config.total_parameters


def test_random_weights_lie_on_no_disk_and_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemmary.checkpoints.random_weights._weight", lambda *asked: pytest.fail("a weight was made"))
    model = subject("random:gemma-2-27b:int4")
    assert (model.disk_bytes, model.download_bytes, model.spelled) == (0, 0, "int4")
    assert model.formats["embed"] == "Q6_K"
    assert make_plan(model, context=256).weights_bytes > 15e9


def test_every_size_once() -> None:
    found = sizes()
    assert len({model.config for model in found}) == len(found) == len({variant.config for variant in zoo.ZOO})


# What fits ----------------------------------------------------------------------------------------------------------


def test_the_best_that_fits() -> None:
    model = row("gemma-2-9b")
    for gigabytes, quant in ((30, "bfloat16"), (15, "int8"), (8, "int4"), (6, None)):
        best = best_choice(choices(model, device=cpu(gigabytes)))
        assert (best.quant if best else None) == quant
    assert [plan.quant for plan in choices(row("paligemma-3b-pt-224"))] == ["float32", "bfloat16", "int8", "int4"]
    assert [plan.quant for plan in choices(subject("random:gemma-2-2b:int8"))] == ["int8", "int4"]
    assert [plan.quant for plan in choices(subject("random:gemma-2-2b:int4"))] == ["int4"]


def test_what_a_plan_that_does_not_fit_says() -> None:
    model = row("gemma-2-9b")
    for gigabytes, words in (
        (15, r"needs about 20.87 GB .* 15.00 GB are available: int8 fits, with 12.49 GB \(quant=int8\)"),
        (8, r"int4 fits, with 7.67 GB"),
        (6, r"int4 and a context of [\d,k]+ fits|int4 and a context of [\d,]+ tokens of fits"),
        (2, r"choose a smaller model"),
    ):
        device = cpu(gigabytes)
        with pytest.raises(GemmaryError, match=words):
            check_fits(model, make_plan(model, device=device), device=device)
    check_fits(model, make_plan(model, device=cpu(30)), device=cpu(30))
    full = make_plan(model, task="full", device=cpu(30))
    assert "lora" in nearest_that_fits(model, full, device=cpu(30))


def test_the_longest_context_that_fits_is_that() -> None:
    model, device = row("gemma-2-9b"), cpu(6.5)
    found = longest_context(model, "int4", below=8192, device=device)
    assert found in range(256, 8192, 256)
    assert make_plan(model, quant="int4", context=found, device=device).fits
    assert not make_plan(model, quant="int4", context=found + 256, device=device).fits


def test_more_at_once_and_more_context_take_more() -> None:
    model = row("gemma-3-4b-pt")
    one, two, long = (make_plan(model, context=c, batch=b) for c, b in ((4096, 1), (4096, 2), (8192, 1)))
    assert two.kv_bytes == 2 * one.kv_bytes
    assert one.kv_bytes < long.kv_bytes < 2 * one.kv_bytes  # most layers are windowed
    assert make_plan(model, context=4096, kv_dtype="int8").kv_bytes < one.kv_bytes
    assert make_plan(model, context=4096, extra_bytes=7).weights_bytes == one.weights_bytes + 7


def test_training_that_is_tight_computes_twice() -> None:
    model = row("gemma-2-2b")
    wide, tight = (make_plan(model, task="lora", batch=4, device=cpu(size)) for size in (24, 8))
    assert (wide.gradient_checkpointing, tight.gradient_checkpointing) == (False, True)
    assert tight.activation_bytes < wide.activation_bytes
    assert tight.fits
    assert make_plan(model, task="qlora").weights_bytes < tight.weights_bytes / 3
    full = make_plan(model, task="full")
    assert full.weights_bytes + full.optimizer_bytes == 16 * model.config.total_parameters


# Devices ------------------------------------------------------------------------------------------------------------


def test_devices_that_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 123)
    here, there = parse_devices("cpu, cuda:24GB")
    assert (here.name, here.available_bytes) == ("cpu", 123)
    assert (there.name, there.available_bytes, there.is_cpu) == ("cuda", 24 * 10**9, False)
    assert parse_devices("cuda:1:500mb")[0] == Device("cuda:1", 500 * 10**6)
    assert parse_devices("cpu:1.5GB")[0].available_bytes == 1_500_000_000
    for wrong in ("tpu", "cuda:24", "", "cpu:GB"):
        with pytest.raises(GemmaryError, match=r"no device is called|there is no cuda"):
            parse_devices(wrong)


def test_a_gpu_holds_dense_weights() -> None:
    model = row("gemma-2-9b")
    plan = make_plan(model, device=GPU)
    assert (plan.quant, plan.weights_bytes) == ("bfloat16", 2 * model.config.total_parameters)
    assert (plan.fits, plan.process_bytes) == (True, 0)
    assert plan.kv_bytes == 8192 * model.config.kv_bytes_per_token()
    assert [each.quant for each in choices(model, device=GPU)] == ["bfloat16"]
    with pytest.raises(GemmaryError, match="on the CPU only"):
        make_plan(model, quant="int4", device=GPU)
    with pytest.raises(GemmaryError, match="on the CPU only"):
        make_plan(model, task="qlora", device=GPU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"task": "dance"}, "no task is called 'dance'"),
        ({"quant": "int3"}, "no format is called 'int3'"),
        ({"context": 9000}, "own 8,192 tokens, not 9,000"),
        ({"task": "lora", "quant": "int4"}, "leave --quant out"),
    ],
)
def test_what_no_engine_does_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(GemmaryError, match=re.escape(words)):
        make_plan(row("gemma-2-2b"), **options)  # type: ignore[arg-type]


# Speed --------------------------------------------------------------------------------------------------------------


def test_speeds_follow_the_ceilings() -> None:
    model = row("gemma-2-2b")
    told = [make_plan(model, quant=quant, context=256, speed=SPEED) for quant in ("bfloat16", "int8", "int4")]
    decode = [plan.decode_tokens_per_s or 0 for plan in told]
    assert decode == sorted(decode)
    assert 12 < decode[2] < 17  # the 2B in 4 bits decodes at 13.9 where memory reads 25 GB/s (docs/performance.md)
    assert 50 < (told[2].prefill_tokens_per_s or 0) < 80  # and reads a prompt at 65
    faster = make_plan(model, quant="int4", context=256, speed=replace(SPEED, read=50e9))
    assert (faster.decode_tokens_per_s or 0) > 1.7 * decode[2]
    assert re.fullmatch(r"gemma-2-2b at int4 with 256 .* context: 1.\d\d GB, about \d\d tokens/s", told[2].line)
    assert make_plan(model).decode_tokens_per_s is None
    assert make_plan(row("embeddinggemma-300m"), speed=SPEED).decode_tokens_per_s is None


@pytest.mark.parametrize(
    ("name", "read", "int8", "prefill", "decode"),
    [
        ("gemma-3-270m", 22.8e9, 329e9, 1044.1, 67.72),
        ("gemma-2b", 30.2e9, 384e9, 69.9, 15.33),
        ("paligemma2-3b-pt-448", 30.2e9, 414e9, 66.1, 14.23),
        ("gemma-3-4b-pt", 31.7e9, 385e9, 41.3, 10.84),
        ("gemma-2-9b", 26.7e9, 431e9, 16.4, 4.27),
        ("paligemma2-28b-pt-224", 26.5e9, 344e9, 5.28, 1.64),
    ],
)
def test_speeds_are_within_20_percent_of_what_was_measured(
    name: str, read: float, int8: float, prefill: float, decode: float
) -> None:
    """Rows of docs/sizes.md, under the ceilings found beside them: a prompt of 128 tokens, and 32 decoded after it."""
    machine = replace(SPEED, read=read, int8=int8)
    model = subject(f"random:{name}:int4")
    said = (
        prefill_speed(model.config, model.formats, 128, machine),
        decode_speed(model.config, model.formats, 288, "bfloat16", machine),
    )
    assert said == pytest.approx((prefill, decode), rel=0.2)


def test_a_short_prompt_takes_as_long_as_its_weights_are_read() -> None:
    model = row("gemma-2-9b")
    seconds = {n: n / prefill_speed(model.config, model.formats, n, SPEED) for n in (1, 2, 256, 512)}
    assert seconds[2] == pytest.approx(seconds[1], rel=0.01)
    assert 1.9 < seconds[512] / seconds[256] < 2.2


def test_ceilings_are_medians() -> None:
    """Of looks among other work; the best or the worst of them would be no run's."""
    looks = [Spread.of([1.0, 2.0, 9.0]), Spread.of([1.0, 3.0, 9.0]), Spread.of([1.0, 4.0, 9.0])]
    found = speed_of(Ceilings("avx2", 2, *looks))
    assert (found.read, found.int8, found.float32, found.isa, found.threads) == (2.0, 3.0, 4.0, "avx2", 2)


def test_what_was_measured_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path))
    monkeypatch.setattr("gemmary.bench.processor_name", lambda: SPEED.processor)
    assert remembered_speed(2) is None
    remembered.remember(SPEED)
    remembered.remember(replace(SPEED, threads=4, read=1.0))
    assert remembered_speed(2) == SPEED
    remembered.remember(replace(SPEED, read=2.0))
    assert [each and each.read for each in map(remembered_speed, (2, 4, 8))] == [2.0, 1.0, None]
    file = tmp_path / remembered.FILE
    assert len(json.loads(file.read_text())) == 2
    for broken in ("{", "3", '[{"threads": 2}]', '["a"]'):
        file.write_text(broken)
        assert remembered_speed(2) is None
        remembered.remember(SPEED)
        assert remembered_speed(2) == SPEED


def test_nothing_tells_how_much_memory_there_is() -> None:
    assert make_plan(row("gemma-2-27b"), device=CPU).fits
