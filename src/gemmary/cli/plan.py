"""`gemmary plan`: what a model needs and whether it fits here, before anything is downloaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gemmary.cli import console, parser
from gemmary.errors import GemmaryError
from gemmary.memory import size

if TYPE_CHECKING:
    from gemmary.plan import Device, MachineSpeed, Plan, Subject

TASKS = ("run", "lora", "qlora", "full", "pretrain")
FORMATS = ("float32", "bfloat16", "int8", "int4")


def add(commands: Any) -> None:
    details = (
        "From its sizes alone: nothing is downloaded and no weight is read. Without a model, every size of the series "
        "on this machine. Tokens a second come from what the machine was measured to do, about a second, once."
    )
    command = parser.command(commands, "plan", run, "tell what a model needs and whether it fits", details)
    command.add_argument("model", metavar="MODEL", nargs="?", help=parser.MODEL_HELP)
    command.add_argument("--quant", choices=FORMATS, help="of the weights (default: the best that fits)")
    command.add_argument(
        "--context",
        type=parser.count,
        metavar="N",
        help="tokens of a sequence (default: 8192 or the model's own, 512 for training)",
    )
    command.add_argument("--batch", type=parser.count, default=1, metavar="N", help="sequences at once (default: 1)")
    command.add_argument("--task", choices=TASKS, default="run", help="what is to be done with it (default: run)")
    command.add_argument(
        "--devices", metavar="NAMES", help="such as cpu,cuda:0 or, not here, cuda:24GB (default: all that are here)"
    )
    command.add_argument("--json", action="store_true", help="for programs")
    command.add_argument("--markdown", action="store_true", help="docs/hardware.md, the table of every machine")


def run(arguments: argparse.Namespace) -> None:
    from gemmary import plan

    if arguments.markdown:
        from gemmary.plan.page import page

        console.write(page())
        return
    devices = plan.parse_devices(arguments.devices) if arguments.devices else plan.find_devices()
    asked = {"context": arguments.context, "batch": arguments.batch, "task": arguments.task}
    model = plan.subject(arguments.model) if arguments.model else None
    if model is not None:  # a mistake is told before the machine is measured
        _plans(model, arguments.quant, devices[0], asked, None)
    speed = _speed(devices) if arguments.task == "run" else None
    if model is None:
        _whole_series(arguments, devices, asked, speed)
        return
    found = [_plans(model, arguments.quant, device, asked, speed) for device in devices]
    best = [plan.best_choice(plans) or plans[-1] for plans in found]
    if arguments.json:
        console.write_json({**best[0].as_dict(), "choices": [each.as_dict() for plans in found for each in plans]})
        return
    for device, plans, chosen in zip(devices, found, best, strict=True):
        _write(model, device, plans, chosen, asked)


def _plans(
    model: Subject, quant: str | None, device: Device, asked: dict[str, Any], speed: MachineSpeed | None
) -> list[Plan]:
    """The one that was asked for, or that of every format."""
    from gemmary.plan import choices, make_plan

    options = {**asked, "device": device, "speed": speed if device.is_cpu else None}
    return [make_plan(model, quant=quant, **options)] if quant else choices(model, **options)


def _speed(devices: Sequence[Device]) -> MachineSpeed | None:
    """What this machine was measured to do, now if it never was; None, with a note, where it cannot be."""
    from gemmary.plan import measure_speed, remembered_speed

    threads = next((device.threads for device in devices if device.is_cpu), None)
    if threads is None:
        console.note("note: tokens a second are told for the CPU only")
        return None
    try:
        speed = remembered_speed(threads) or measure_speed(threads)
        console.note(
            f"note: speeds from {speed.read / 1e9:.1f} GB/s of memory, {speed.int8 / 1e9:,.0f} GOP/s of int8 products "
            f"on {threads} threads, measured once: `gemmary bench --roofline` measures them again"
        )
        return speed
    except GemmaryError as error:
        console.note(f"note: no tokens a second: {error}")
        return None


# One model ----------------------------------------------------------------------------------------------------------


def _write(model: Subject, device: Device, plans: list[Plan], chosen: Plan, asked: dict[str, Any]) -> None:
    from gemmary.plan import nearest_that_fits

    colour = "green" if chosen.fits else "red"
    console.write_coloured(f"{chosen.line}\n", colour)
    memory = "an unknown amount" if device.available_bytes is None else size(device.available_bytes)
    verdict = f"fits into the {memory} of {device.name} that can be had"
    if not chosen.fits:
        options = {key: value for key, value in asked.items() if key not in ("context", "batch", "task")}
        advice = nearest_that_fits(model, chosen, device=device, **options)
        verdict = f"does not fit into the {memory} of {device.name} that can be had: {advice}"
    rows = [(device.name, verdict)]
    if model.disk_bytes:
        here = f", {size(model.download_bytes)} to download" if model.download_bytes else ", on this machine"
        rows.append(("on disk", f"{size(model.disk_bytes)} as stored ({model.spelled}){here}"))
    if chosen.gradient_checkpointing:
        rows.append(("note", "with gradient checkpointing: activations are computed twice"))
    console.facts(rows)
    console.write("\n")
    header = ("format", "weights", "keys, values", "activations", "optimizer", "total", "fits", "decode/s", "prefill/s")
    cells = [
        (
            each.quant,
            size(each.weights_bytes),
            size(each.kv_bytes),
            size(each.activation_bytes),
            size(each.optimizer_bytes),
            size(each.total_bytes),
            "yes" if each.fits else "no",
            _rate(each.decode_tokens_per_s),
            _rate(each.prefill_tokens_per_s),
        )
        for each in plans
    ]
    console.table(cells, header, [_colour(each) for each in plans])


def _rate(speed: float | None) -> str:
    return "-" if speed is None else f"{speed:,.{1 if speed < 100 else 0}f}"


def _colour(plan: Plan | None) -> str:
    return "green" if plan is not None and plan.fits else "red"


# The whole series ---------------------------------------------------------------------------------------------------


def _whole_series(
    arguments: argparse.Namespace, devices: Sequence[Device], asked: dict[str, Any], speed: MachineSpeed | None
) -> None:
    from gemmary.plan import best_choice
    from gemmary.plan.series import sizes

    found: list[tuple[Device, Subject, list[Plan]]] = []
    for device in devices:
        for model in sizes():
            context = min(arguments.context or model.config.context_length, model.config.context_length)
            own = {**asked, "context": context if arguments.context else None}
            if arguments.task == "run" or not model.config.bidirectional:  # an encoder is not tuned
                found.append((device, model, _plans(model, arguments.quant, device, own, speed)))
    if arguments.json:
        console.write_json([{**(best_choice(plans) or plans[-1]).as_dict()} for _, _, plans in found])
        return
    for device in devices:
        memory = "unknown memory" if device.available_bytes is None else f"{size(device.available_bytes)} can be had"
        console.write(f"{device.name}: {memory}\n")
        rows: list[tuple[str, ...]] = []
        colours: list[str | None] = []
        for _, model, plans in (each for each in found if each[0] is device):
            best = best_choice(plans)
            shown = best or plans[-1]
            needs = ", ".join(f"{each.quant} {size(each.total_bytes)}" for each in plans)
            parameters = f"{model.config.total_parameters / 1e9:.2f} B"
            rows.append(
                (model.name, parameters, best.quant if best else "nothing", _rate(shown.decode_tokens_per_s), needs)
            )
            colours.append(_colour(best))
        console.table(rows, ("model", "parameters", "what fits", "decode/s", "memory"), colours)
