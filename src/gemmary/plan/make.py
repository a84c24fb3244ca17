"""Making a plan: each engine's bytes, from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gemmary.checkpoints.convert import NAMES
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.plan.ceilings import MachineSpeed
from gemmary.plan.devices import CPU, Device
from gemmary.plan.plan import Plan
from gemmary.plan.speed import decode_speed, prefill_speed
from gemmary.plan.subject import Subject
from gemmary.plan.training import ADAPTED, training_bytes
from gemmary.quantize.leaves import FLOATS

TASKS = ("run", "lora", "qlora", "full", "pretrain")
FORMATS: dict[str, str] = {name: NAMES[name] for name in ("float32", "bfloat16", "int8", "int4")}
"""What a user calls a format -> its name."""
BLOCKS = ("int8", "int4")
DEFAULT_CONTEXT = 8192
TRAINING_CONTEXT = 512
"""The `sequence_length` of `tune/settings.py`."""
QUESTION = 128
"""Tokens of text that are counted beside a picture where both are read in one step."""
PROCESS_BYTES = 45_000_000
"""The interpreter, numpy and the engine's library, before a weight is read (Linux on x86-64, measured)."""
PIECE_BYTES = 220
"""Of a tokenizer, for each piece of its vocabulary, with the tables that find it (measured: 200 to 250)."""
PYTORCH_BYTES = 300_000_000
"""What PyTorch adds to the process."""


@dataclass(frozen=True)
class Asked:
    """What a plan is asked for: see `make_plan`."""

    model: Subject
    quant: str | None
    context: int
    batch: int
    task: str
    device: Device
    kv_dtype: str
    extra_bytes: int


@dataclass(frozen=True)
class Needs:
    """Bytes."""

    weights: int
    activations: int
    kv: int = 0
    optimizer: int = 0
    loading: int = 0
    """At the peak of loading, the weights that stay among them."""
    process: int = 0
    """Besides `PROCESS_BYTES`."""


def make_plan(
    model: Subject,
    *,
    quant: str | None = None,
    context: int | None = None,
    batch: int = 1,
    task: str = "run",
    device: Device = CPU,
    engine: str = "native",
    kv_dtype: str = "auto",
    speed: MachineSpeed | None = None,
    extra_bytes: int = 0,
) -> Plan:
    """What `model` needs.

    quant: a key of `FORMATS`, or None: as stored. context: tokens of a sequence (None: 8,192, or in training 512, or
    the model's own where that is less). batch: sequences at once. engine: of `run` on a CPU; a GPU has the torch one.
    kv_dtype: as `load` takes it. speed: what the machine was measured to do; without it no tokens a second are told.
    extra_bytes: of adapters and such, counted with the weights.

    Raises GemmaryError for what no engine does.
    """
    for what, name, known in (("task", task, TASKS), ("format", quant or "int4", tuple(FORMATS))):
        if name not in known:
            raise GemmaryError(f"no {what} is called {name!r}: choose {', '.join(known)}")
    longest = model.config.context_length
    if context is not None and not 1 <= context <= longest:
        raise GemmaryError(f"context must be from 1 to {model.name}'s own {longest:,} tokens, not {context:,}")
    context = context or min(longest, DEFAULT_CONTEXT if task == "run" else TRAINING_CONTEXT)
    asked = Asked(model, quant, context, batch, task, device, kv_dtype, extra_bytes)
    if task != "run":
        return _training(asked)
    if engine == "torch" or not device.is_cpu:
        return _dense(asked)
    plan = _finished(asked, _native(asked))
    return plan if speed is None else _with_speed(plan, asked, speed)


def held_formats(model: Subject, quant: str | None) -> dict[str, str]:
    """Format that the native engine holds each tensor in, by `load`'s rules for `dtype` and `quant`."""
    if quant is None:
        return dict(model.formats)
    if quant not in BLOCKS:
        return dict.fromkeys(model.formats, FORMATS[quant])
    blocks = {tensor.name: tensor.blocks(FORMATS[quant]) for tensor in tensors(model.config)}
    return {name: blocks[name] or stored for name, stored in model.formats.items()}


@dataclass(frozen=True)
class Weights:
    """Bytes of the packed weights, the most that loading takes for them (a tensor that is made or quantized lies there
    whole until it is packed), and what the pages that they lie on take more."""

    packed: int
    loading: int
    slack: int


def weights_on_cpu(model: Subject, formats: Mapping[str, str]) -> Weights:
    """Those of the native engine, which a tuned model on the CPU has too."""
    from gemmary.engines.native_memory import packed_bytes, page_bytes

    total = most = 0
    matrices = []
    for tensor in sorted(tensors(model.config), key=lambda each: each.name.startswith("vision.")):  # as they are loaded
        nbytes = packed_bytes(tensor, formats[tensor.name])
        is_changed = formats[tensor.name] not in (model.formats[tensor.name], *FLOATS)
        whole = nbytes if (model.is_made or is_changed) and len(tensor.shape) == 2 else 0
        total += nbytes
        most = max(most, total + whole)
        matrices += [nbytes] if len(tensor.shape) == 2 else []
    return Weights(total, most, page_bytes(matrices) - sum(matrices))


def step_tokens(config: Config, context: int, batch: int) -> int:
    """Tokens of the largest step: the scheduler's 512, or a prompt that cannot be cut."""
    from gemmary.engines.native_memory import MAX_CHUNK

    if config.bidirectional:
        return context
    count = min(MAX_CHUNK, context * batch)
    if config.prefix_lm and config.vision is not None:
        count = max(count, min(context, config.vision.num_tokens + QUESTION))
    return count


def _native(asked: Asked) -> Needs:
    from gemmary.engines import native_memory as native

    config, context, threads = asked.model.config, asked.context, asked.device.threads
    formats = held_formats(asked.model, asked.quant)
    weights = weights_on_cpu(asked.model, formats)
    places = config.vision.num_tokens if config.vision is not None else 0
    rows = native.Rows(step_tokens(config, context, asked.batch), asked.batch, asked.batch, places)
    step = native.step_bytes(config, formats, rows, threads)
    cache_bytes = native.shared_cache_bytes if config.bidirectional else native.cache_bytes
    return Needs(
        weights=weights.packed + asked.extra_bytes,
        activations=max(step, native.tower_bytes(config, formats, threads)),
        kv=asked.batch * cache_bytes(config, context, kv_type(asked.kv_dtype, formats)),
        loading=weights.loading + asked.extra_bytes,
        process=PIECE_BYTES * config.vocab_size + weights.slack,
    )


def kv_type(kv_dtype: str, formats: Mapping[str, str]) -> str:
    """What the native engine keeps keys and values as."""
    if kv_dtype != "auto":
        return kv_dtype
    return "float32" if all(format == "F32" for format in formats.values()) else "bfloat16"


def _with_speed(plan: Plan, asked: Asked, speed: MachineSpeed) -> Plan:
    config, formats = asked.model.config, held_formats(asked.model, asked.quant)
    keys = kv_type(asked.kv_dtype, formats)
    return replace(
        plan,
        decode_tokens_per_s=None if config.bidirectional else decode_speed(config, formats, plan.context, keys, speed),
        prefill_tokens_per_s=prefill_speed(config, formats, step_tokens(config, plan.context, 1), speed),
    )


def _dense(asked: Asked) -> Plan:
    """The torch engine: every weight in one dtype, every key of every layer kept; activations are estimated."""
    config, on_gpu = asked.model.config, not asked.device.is_cpu
    if on_gpu and asked.quant in BLOCKS:
        raise GemmaryError(
            f"the weights of a model are quantized on the CPU only: on {asked.device.name} choose bfloat16 or float32"
        )
    is_narrow = asked.quant is None and asked.model.formats["embed"] == "BF16"
    quant = asked.quant if asked.quant not in (None, *BLOCKS) else "bfloat16" if is_narrow else "float32"
    width = 2 if quant == "bfloat16" else 4
    stream = 4 * config.hidden_size + 2 * (config.query_size + config.kv_size) + 3 * config.intermediate_size
    rows = step_tokens(config, asked.context, asked.batch)
    needs = Needs(
        weights=config.total_parameters * width + asked.extra_bytes,
        activations=rows * stream * width + 8 * asked.batch * config.vocab_size,
        kv=asked.batch * asked.context * config.kv_bytes_per_token(width),
        process=0 if on_gpu else PYTORCH_BYTES + PIECE_BYTES * config.vocab_size,
    )
    return _finished(replace(asked, quant=quant), needs)


def _training(asked: Asked) -> Plan:
    """What `tune` and `pretrain` hold. Activations are computed twice where a step would not fit otherwise."""
    model, task, device, quant = asked.model, asked.task, asked.device, asked.quant
    if task == "qlora" and not device.is_cpu:
        raise GemmaryError(f"a quantized base is tuned on the CPU only, not on {device.name}: choose lora")
    if quant is not None:
        raise GemmaryError(f"{task} chooses the format of its weights itself: leave --quant out")
    base = loading = 0
    if task in ADAPTED and device.is_cpu:
        quant = "int4" if task == "qlora" and model.stored_as in FLOATS else None
        weights = weights_on_cpu(model, held_formats(model, quant))
        base, loading = weights.packed, weights.loading
    elif task in ADAPTED:
        base, quant = 2 * model.config.total_parameters, "bfloat16"
    else:
        quant = "float32"
    width = 4 if device.is_cpu else 2
    counted = training_bytes(model.config, base, asked.context * asked.batch, width, full=task not in ADAPTED)
    process = PYTORCH_BYTES + PIECE_BYTES * model.config.vocab_size if device.is_cpu else 0
    needs = Needs(counted.weights, counted.activations, optimizer=counted.optimizer, loading=loading, process=process)
    asked = replace(asked, quant=quant)
    plan = _finished(asked, needs)
    if plan.fits:
        return plan
    return replace(_finished(asked, replace(needs, activations=counted.checkpointed)), gradient_checkpointing=True)


def _finished(asked: Asked, needs: Needs) -> Plan:
    base = PROCESS_BYTES if asked.device.is_cpu else 0
    running = needs.process + needs.weights + needs.kv + needs.activations + needs.optimizer
    total, available = base + max(needs.loading, running), asked.device.available_bytes
    return Plan(
        model=asked.model.name,
        task=asked.task,
        device=asked.device.name,
        quant=asked.quant or asked.model.spelled,
        context=asked.context,
        batch=asked.batch,
        weights_bytes=needs.weights,
        kv_bytes=needs.kv,
        activation_bytes=needs.activations,
        optimizer_bytes=needs.optimizer,
        load_bytes=max(0, needs.loading - needs.weights),
        process_bytes=base + needs.process,
        total_bytes=total,
        disk_bytes=asked.model.disk_bytes,
        download_bytes=asked.model.download_bytes,
        available_bytes=available,
        fits=available is None or total <= available,
    )
