"""`gemmary bench`: how fast a model is on this machine, where its time goes, and what the machine would allow."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import gemmary
from gemmary.cli import console, loading, parser
from gemmary.errors import GemmaryError
from gemmary.memory import size

if TYPE_CHECKING:
    from gemmary.bench import Ceilings, Measurement, Operation, Phase, Profile, Spread


def add(commands: Any) -> None:
    details = (
        "Medians, with the least and the largest of all rounds. One round before them warms up. --profile and "
        "--roofline time the operations instead; --roofline without a model measures the machine alone."
    )
    command = parser.command(commands, "bench", run, "measure a model's speed", details)
    parser.add_isa(parser.add_model(command, optional=True))
    parser.add_draft(command)
    parser.add_adapter(command)
    command.add_argument(
        "--prefill", type=parser.count, default=512, metavar="N", help="tokens of prompt (default: 512)"
    )
    command.add_argument("--decode", type=parser.count, default=128, metavar="N", help="tokens to write (default: 128)")
    command.add_argument("--repeat", type=parser.count, default=5, metavar="N", help="rounds (default: 5)")
    command.add_argument(
        "--profile",
        action="store_true",
        help="time, bytes and arithmetic of each operation, and its share of the ceiling",
    )
    command.add_argument(
        "--roofline", action="store_true", help="the machine's ceilings, and how much of the time they account for"
    )
    command.add_argument("--json", action="store_true", help="for programs")


def run(arguments: argparse.Namespace) -> None:
    if arguments.model is None and (arguments.profile or not arguments.roofline):
        raise GemmaryError("name a model to measure, or say --roofline alone for the machine")
    if not arguments.profile and not arguments.roofline:
        _speed(arguments)
        return
    from gemmary.bench import ceilings, processor_name, profile
    from gemmary.plan.ceilings import remember, speed_of

    found: dict[str, Any] = {"gemmary": gemmary.__version__, "processor": processor_name()}
    machine: list[Ceilings] = []
    profiled: Profile | None = None
    with console.bar() as progress:
        if arguments.roofline:
            isas = [arguments.isa] if arguments.isa else None
            machine = ceilings(arguments.threads, isas, repeat=arguments.repeat, progress=progress)
            if isas is None:
                remember(speed_of(machine[0]))  # what `gemmary plan` foretells speeds from
        if arguments.model is not None:
            profiled = profile(_load(arguments), **_sizes(arguments), progress=progress)
    if arguments.json:
        if machine:
            from dataclasses import asdict

            found["machine"] = [asdict(each) for each in machine]
        console.write_json({**found, **(profiled.as_dict() if profiled else {})})
        return
    console.write(f"{found['processor']}\n")
    if machine:
        _write_machine(machine)
    if profiled is not None:
        for phase in profiled.phases:
            _write_phase(phase, profiled, costs=arguments.profile, roofline=arguments.roofline)


def _sizes(arguments: argparse.Namespace) -> dict[str, Any]:
    return {"prefill": arguments.prefill, "decode": arguments.decode, "repeat": arguments.repeat}


def _load(arguments: argparse.Namespace) -> Any:
    model = loading.load_model(arguments, packed_copy=False)  # the same measurement whether or not one is kept
    console.note(loading.describe(model))
    for notice in model.notices:
        console.note(f"note: {notice}")
    return model


# Speed --------------------------------------------------------------------------------------------------------------


def _speed(arguments: argparse.Namespace) -> None:
    from gemmary.bench import bench

    with console.bar() as progress:
        found: Measurement = bench(lambda: _load(arguments), **_sizes(arguments), progress=progress)
    if arguments.json:
        console.write_json({"gemmary": gemmary.__version__, **found.as_dict()})
        return
    rows = [
        _row(f"prefill of {found.prefill} tokens", found.prefill_tokens_per_s, "tokens/s", 1),
        _row(f"decode of {found.decode} tokens", found.decode_tokens_per_s, "tokens/s", 1),
        _row("first token", found.first_token_s, "s", 3),
        _row("load", found.load_s, "s", 3),
    ]
    console.table(rows, ("measure", "median", "min", "max", "unit"))
    print(f"peak memory {size(found.peak_rss_bytes)}")


def _row(name: str, spread: Spread, unit: str, digits: int, scale: float = 1) -> tuple[str, ...]:
    values = (spread.median, spread.min, spread.max)
    return (name, *(f"{value / scale:,.{digits}f}" for value in values), unit)


# Where the time goes ------------------------------------------------------------------------------------------------


def _write_machine(machine: list[Ceilings]) -> None:
    """The ceilings of each instruction set; memory is the same for all, so that of the first stands for it."""
    rows = [_row("memory read", machine[0].read, "GB/s", 1, 1e9)]
    for each in machine:
        rows.append(_row(f"int8 products, {each.isa}", each.int8, "GOP/s", 1, 1e9))
        rows.append(_row(f"float32 multiply-adds, {each.isa}", each.float32, "GOP/s", 1, 1e9))
    threads = f"{machine[0].threads} thread{'s' if machine[0].threads > 1 else ''}"
    console.table(rows, (f"ceiling on {threads}", "median", "min", "max", "unit"))


def _write_phase(phase: Phase, found: Profile, *, costs: bool, roofline: bool) -> None:
    whole, at = phase.total, phase.ceilings
    name = f"prefill of {phase.tokens} tokens" if phase.name == "prefill" else "decode of a token"
    if phase.name == "decode":
        name += f" (of {phase.passes} after {found.prefill})"
    least, most = 1e3 * phase.pass_s.min, 1e3 * phase.pass_s.max
    console.write(
        f"\n{name}: {1e3 * phase.pass_s.median:.2f} ms ({least:.2f} … {most:.2f}), "
        f"{phase.tokens / phase.pass_s.median:,.1f} tokens/s; ceilings meanwhile: "
        f"read {at.read.median / 1e9:.1f} GB/s, int8 {at.int8.median / 1e9:.0f} GOP/s, "
        f"float32 {at.float32.median / 1e9:.0f} GOP/s\n"
    )
    every = [*phase.operations, whole]
    if costs:
        header = ("operation", "ms", "share", "MB", "GB/s", "Mop", "GOP/s", "of ceiling", "bound by")
        console.table([_costs(each, phase) for each in every], header)
    if roofline:
        columns = ("operation", "by bytes ms", "by operations ms", "bound ms", "measured ms", "accounted for")
        console.table([_bounds(each, phase) for each in every], columns)
    read = _rate(whole.weight_bytes + whole.cache_bytes, whole.seconds)
    console.write(
        f"{phase.accounted:.0%} of the time is accounted for by the bounds; weights, keys and values: {read} GB/s, "
        f"{phase.read_share:.0%} of the read probe\n"
    )


def _costs(operation: Operation, phase: Phase) -> tuple[str, ...]:
    whole, seconds = phase.total, operation.seconds
    is_whole = operation.name == whole.name
    bound = phase.bound_s if is_whole else operation.bound_s(phase.ceilings)
    return (
        operation.name,
        f"{1e3 * seconds:.3f}",
        f"{seconds / whole.seconds:.1%}",
        f"{operation.bytes / 1e6:,.2f}",
        _rate(operation.bytes, seconds),
        f"{operation.operations / 1e6:,.2f}",
        _rate(operation.operations, seconds),
        _share(bound, seconds),
        "-" if is_whole else operation.bound_by(phase.ceilings),
    )


def _bounds(operation: Operation, phase: Phase) -> tuple[str, ...]:
    at, seconds = phase.ceilings, operation.seconds
    bound = phase.bound_s if operation.name == phase.total.name else operation.bound_s(at)
    times = (operation.memory_s(at), operation.arithmetic_s(at), bound, seconds)
    return (operation.name, *(f"{1e3 * value:.3f}" for value in times), _share(bound, seconds))


def _rate(amount: float, seconds: float) -> str:
    """Billions a second; a clock may not have seen any time pass."""
    return f"{amount / seconds / 1e9:,.1f}" if seconds else "-"


def _share(bound: float, seconds: float) -> str:
    return f"{bound / seconds:.0%}" if seconds else "-"
