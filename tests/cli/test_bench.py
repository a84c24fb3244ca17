"""`gemmary bench`: speeds, where the time goes, and the ceilings. What is asserted is never how long something took."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gemmary import _core
from gemmary.bench import machine
from tests.cli.conftest import Gemmary

SMALL = ("--prefill", 9, "--decode", 4, "--repeat", 3)


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at a ceiling is one pass over little memory, or one call."""
    monkeypatch.setattr(machine, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(machine, "_ROUNDS", 1)
    monkeypatch.setattr(machine, "LOOK_SECONDS", 0.0)


def test_bench_gives_medians_and_spread(gemmary_command: Gemmary, base_model: Path) -> None:
    flags = ("--engine", "reference", "--prefill", 9, "--decode", 4, "--repeat", 3)
    found = json.loads(gemmary_command("bench", base_model, *flags, "--json").out)
    assert (found["prefill"], found["decode"], found["repeat"], found["warm_up"]) == (9, 4, 3, 1)
    for name, runs in (("prefill_tokens_per_s", 3), ("decode_tokens_per_s", 3), ("first_token_s", 3), ("load_s", 1)):
        spread = found[name]
        assert len(spread["runs"]) == runs
        assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    assert found["peak_rss_bytes"] > 10_000_000
    table = gemmary_command("bench", base_model, *flags).out.splitlines()
    assert [line.split("  ")[0] for line in table[1:5]] == [
        "prefill of 9 tokens",
        "decode of 4 tokens",
        "first token",
        "load",
    ]


def test_bench_that_does_not_fit_is_told(gemmary_command: Gemmary, base_model: Path) -> None:
    done = gemmary_command(
        "bench", base_model, "--engine", "reference", "--context", 100, "--prefill", 90, "--decode", 10
    )
    assert "do not fit the context of 100" in done.error


def test_bench_without_a_model_needs_roofline_alone(gemmary_command: Gemmary) -> None:
    assert "name a model" in gemmary_command("bench").error
    assert "name a model" in gemmary_command("bench", "--profile", "--roofline").error


def test_roofline_of_the_machine(gemmary_command: Gemmary) -> None:
    isas = _core.available_isas()[::-1]
    found = json.loads(gemmary_command("bench", "--roofline", "--repeat", 2, "--threads", 2, "--json").out)
    assert [each["isa"] for each in found["machine"]] == isas
    for each in found["machine"]:
        assert each["threads"] == 2
        for name in ("read", "int8", "float32"):
            spread = each[name]
            assert len(spread["runs"]) == 2
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    lines = gemmary_command("bench", "--roofline", "--repeat", 1).out.splitlines()
    assert lines[1].startswith("ceiling on ")
    assert [line.split("  ")[0] for line in lines[2:5]] == [
        "memory read",
        f"int8 products, {isas[0]}",
        f"float32 multiply-adds, {isas[0]}",
    ]
    assert len(lines) == 3 + 2 * len(isas)


def test_profile_accounts_for_all_of_the_time(gemmary_command: Gemmary, base_model: Path) -> None:
    found = json.loads(gemmary_command("bench", base_model, *SMALL, "--profile", "--json").out)
    assert [phase["name"] for phase in found["phases"]] == ["prefill", "decode"]
    assert [phase["tokens"] for phase in found["phases"]] == [9, 1]
    for phase in found["phases"]:
        names = [each["name"] for each in phase["operations"]]
        assert {"gate+up", "down", "q+k+v", "attention out", "head", "attention", "norms", "rope", "embedding"} <= set(
            names
        )
        assert len(names) == len(set(names))
        seconds = sum(each["seconds"] for each in phase["operations"])
        assert seconds == pytest.approx(phase["pass_s"]["median"])
        for each in phase["operations"]:
            assert each["bound_s"] == max(each["memory_s"], each["arithmetic_s"])
            assert each["bound_by"] in (
                ("-",) if each["name"] == "between operations" else ("memory", "int8", "float32")
            )
        assert phase["bound_s"] == pytest.approx(sum(each["bound_s"] for each in phase["operations"]))
        assert phase["accounted"] == pytest.approx(phase["bound_s"] / seconds)
        read = sum(each["weight_bytes"] + each["cache_bytes"] for each in phase["operations"])
        assert phase["read_share"] == pytest.approx(read / seconds / phase["ceilings"]["read"]["median"])


def test_profile_and_roofline_are_tables(gemmary_command: Gemmary, base_model: Path) -> None:
    out = gemmary_command("bench", base_model, *SMALL, "--profile", "--roofline").out
    assert out.count("bound by") == 2
    assert out.count("accounted for\n") == 2
    assert "\nprefill of 9 tokens: " in out
    assert "\ndecode of a token (of 4 after 9): " in out
    alone = gemmary_command("bench", base_model, *SMALL, "--profile").out
    assert "ceiling on" not in alone
    assert alone.count(" bound ms ") == 0


def test_only_the_native_engine_is_profiled(gemmary_command: Gemmary, base_model: Path, embedding_model: Path) -> None:
    assert "use the native one" in gemmary_command("bench", base_model, "--engine", "reference", "--profile").error
    assert "is an encoder" in gemmary_command("bench", embedding_model, "--profile").error
    assert "do not fit" in gemmary_command("bench", base_model, "--profile", "--context", 100).error


@pytest.mark.parametrize("isa", _core.available_isas())
def test_an_instruction_set_is_forced(gemmary_command: Gemmary, base_model: Path, isa: str) -> None:
    found = json.loads(gemmary_command("bench", base_model, *SMALL, "--isa", isa, "--json").out)
    assert found["device"] == f"cpu ({isa})"
    profiled = json.loads(gemmary_command("bench", base_model, *SMALL, "--isa", isa, "--roofline", "--json").out)
    assert [each["isa"] for each in profiled["machine"]] == [isa]
    assert {phase["ceilings"]["isa"] for phase in profiled["phases"]} == {isa}


@pytest.mark.parametrize("isa", _core.available_isas())
def test_a_forced_instruction_set_says_the_same(gemmary_command: Gemmary, base_model: Path, isa: str) -> None:
    given = ("verify", base_model, "--isa", isa, "--tokens", 20, "--taps", "--json")
    found = json.loads(gemmary_command(*given).out)
    assert found["passed"] is True
    assert found["max_kl"] == 0
    assert all(error == 0 for _, error in found["taps"])


def test_an_instruction_set_that_is_not_here_is_told(gemmary_command: Gemmary, base_model: Path) -> None:
    have = ", ".join(_core.available_isas())
    expected = f"this machine has no instruction set called mmx: choose one of {have}"
    assert gemmary_command("bench", base_model, "--isa", "mmx").error == expected
    assert gemmary_command("bench", "--roofline", "--isa", "mmx").error == expected
    assert gemmary_command("verify", base_model, "--isa", "mmx").error == expected
    told = gemmary_command("bench", base_model, "--engine", "reference", "--isa", "scalar").error
    assert told == "only the native engine takes an instruction set, not reference: leave scalar out"
