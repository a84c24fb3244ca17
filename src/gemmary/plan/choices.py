"""Which format, and which context, fits."""

from __future__ import annotations

import bisect
from typing import Any

from gemmary.checkpoints.tensors import tensors
from gemmary.errors import GemmaryError
from gemmary.memory import size
from gemmary.plan.devices import CPU, Device
from gemmary.plan.make import BLOCKS, FORMATS, make_plan
from gemmary.plan.plan import Plan, tokens
from gemmary.plan.subject import Subject
from gemmary.quantize.blocks import BLOCK_SIZES
from gemmary.quantize.leaves import FLOATS

_STEP = 256
"""Contexts that are proposed are multiples of it."""


def formats_of(model: Subject, device: Device, engine: str = "native") -> list[str | None]:
    """The formats that weights may be run in: as stored (None), then those that are smaller, the best first."""
    stored = FLOATS.get(model.stored_as)
    found: list[str | None] = [None]
    if stored is not None and stored.itemsize == 4:
        found.append("bfloat16")
    if engine == "torch" or not device.is_cpu:
        return found if stored is not None else [None, "bfloat16"]
    if model.stored_as in (*FLOATS, "Q8_0"):
        found += [name for name in BLOCKS if FORMATS[name] != model.stored_as and _divides(model, FORMATS[name])]
    return found


def choices(model: Subject, *, device: Device = CPU, task: str = "run", **options: Any) -> list[Plan]:
    """The plans of every format that the task may have on the device, the best format first. options: of `make_plan`,
    without quant."""
    formats = formats_of(model, device, options.get("engine", "native")) if task == "run" else [None]
    return [make_plan(model, quant=quant, device=device, task=task, **options) for quant in formats]


def best_choice(plans: list[Plan]) -> Plan | None:
    """The first that fits."""
    return next((plan for plan in plans if plan.fits), None)


def check_fits(model: Subject, plan: Plan, *, device: Device, **options: Any) -> None:
    """Raises GemmaryError, with what fits instead, for a plan that does not. options: see `nearest_that_fits`."""
    if plan.fits:
        return
    assert plan.available_bytes is not None
    raise GemmaryError(
        f"{plan.what} needs about {size(plan.total_bytes)} of memory and {size(plan.available_bytes)} are available: "
        f"{nearest_that_fits(model, plan, device=device, **options)}"
    )


def nearest_that_fits(model: Subject, plan: Plan, *, device: Device, **options: Any) -> str:
    """What fits in place of a plan that does not, as advice: a smaller format, else a shorter context, else nothing
    but another task or model. options: of `make_plan`, as the plan was made with."""
    if plan.task in ("full", "pretrain"):
        return "choose lora or qlora, a smaller batch or a smaller model"
    common: dict[str, Any] = {"device": device, "task": plan.task, "batch": plan.batch, **options}
    formats = formats_of(model, device, options.get("engine", "native")) if plan.task == "run" else [None]
    smaller = [
        (quant, each)
        for quant in formats
        if (each := make_plan(model, quant=quant, context=plan.context, **common)).total_bytes < plan.total_bytes
    ]
    for quant, each in smaller:
        if each.fits:
            option = "" if quant is None else f" (quant={quant})" if quant in BLOCKS else f" (dtype={quant})"
            return f"{each.quant} fits, with {size(each.total_bytes)}{option}"
    own = plan.quant if plan.task == "run" and plan.quant in FORMATS and plan.quant != model.spelled else None
    for quant in (own, *(quant for quant, _ in smaller)):
        if count := longest_context(model, quant, below=plan.context, **common):
            format = "" if quant == own else f"{quant or model.spelled} and "
            return f"{format}a context of {tokens(count)} fits"
    return "choose a smaller model"


def longest_context(model: Subject, quant: str | None, *, below: int, **options: Any) -> int:
    """The longest context under `below` tokens that fits, in steps of 256; 0 where none does."""

    def is_too_long(number: int) -> bool:
        return not make_plan(model, quant=quant, context=_STEP * number, **options).fits

    return _STEP * bisect.bisect_left(range(1, -(-below // _STEP)), True, key=is_too_long)


def _divides(model: Subject, block_type: str) -> bool:
    """Whether every row that would be quantized divides into blocks; the tower's are filled up."""
    block, _ = BLOCK_SIZES[block_type]
    quantized = [tensor for tensor in tensors(model.config) if tensor.blocks(block_type) and not tensor.bias]
    return all(tensor.shape[-1] % block == 0 for tensor in quantized)
