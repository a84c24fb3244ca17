"""The Python face: `load` a model, ask it, `save` it; `random_model` to measure a shape without its weights.

import gemmary
model = gemmary.load("starter")
model.generate("The capital of France is", max_tokens=32, temperature=0.0).text
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gemmary
from gemmary.adapters import open_adapters, wrapped
from gemmary.checkpoints import Checkpoint, kept, open_named, save_checkpoint
from gemmary.checkpoints.hub import RANDOM
from gemmary.checkpoints.kept import PackedCopy
from gemmary.checkpoints.peft import Adapter
from gemmary.checkpoints.tensors import tensors
from gemmary.config import Config
from gemmary.engines import ENGINES, KV_DTYPES, Engine, open_engine
from gemmary.errors import GemmaryError
from gemmary.loaded import GemmaryWarning, Model, warn
from gemmary.memory import available_bytes, size
from gemmary.quantize import blocks
from gemmary.quantize.leaves import FLOATS, Affine, Leaf
from gemmary.quantize.leaves import quantized as in_blocks

__all__ = ["GemmaryWarning", "Model", "load", "random_model", "save"]

DTYPES = ("float32", "bfloat16")
QUANT = {"int8": "Q8_0", "int4": "Q4_0"}
"""Block types of `quant=`: groups of 32 weights with one float16 scale."""
CONVENTIONS = ("big_vision", "transformers")
LEAST_CONTEXT = 512
"""Tokens that there must be memory for where none are asked for."""


def load(
    name: str | Path,
    *,
    engine: str = "native",
    threads: int | None = None,
    dtype: str | None = None,
    quant: str | None = None,
    kv_dtype: str = "auto",
    context: int | None = None,
    draft: str | Path | Model | None = None,
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    isa: str | None = None,
    conventions: str = "big_vision",
    packed_copy: bool = True,
) -> Model:
    """Opens a checkpoint and builds an engine for it.

    name: "starter", a short name ("gemma-2-2b-it"), a hub id, a folder or a `.gguf` file; nothing is downloaded
    (`gemmary pull` does that). engine: "native", "torch" or "reference". threads: None = all cores. dtype: None = as
    stored; "float32" or "bfloat16" for that, whatever is stored (a quantized weight is dequantized exactly). quant:
    None = as stored; "int8" or "int4" quantizes every matrix, the embedding table too. kv_dtype: what keys and values
    are kept as, "bfloat16", "float32" or "int8" (scales for each value and for 32 elements of a key); "auto" =
    bfloat16, or float32 where all weights are. context: tokens of prompt and answer together; None = the model's own,
    or as much of it as memory has room for, which `Model.notices` then says. draft: a smaller model with the same
    tokenizer that guesses tokens for this one to check, which changes how soon text comes and never what it is; a name
    (loaded with the same options) or a loaded model. adapter: a folder of a LoRA adapter in PEFT's format, which is
    called as the folder is, or several by name, of which each request chooses one (`Model.adapters`). isa: "scalar",
    "avx2", "avx512" or "neon" for the native engine's kernels, with the same results; None = the best. conventions, of
    a PaliGemma 2 in a Hugging Face folder: "big_vision" runs it as it was trained, without the sliding window and the
    cap of the logits that its config.json has from Gemma 2; "transformers" with them, as transformers 5 does.
    packed_copy: where a packed copy of the weights was kept (`Model.keep_packed`, or by the command line) the native
    engine maps it, which changes how soon the model is there and nothing else; False reads and packs the original.

    Raises GemmaryError where something is wrong, missing, or foreseeably larger than the memory.
    """
    _check_options(engine, threads, dtype, quant, kv_dtype)
    checkpoint = as_run_by(open_named(name), conventions)
    # The gains of DoRA are those of the weights as they are stored, which a copy in another dtype does not hold.
    may_copy = packed_copy and engine == "native" and (dtype is None or not adapter)
    copy = kept.copy_of(checkpoint, gemmary.__version__, quant, dtype) if may_copy else None
    options: dict[str, Any] = {"threads": threads, "dtype": dtype, "kv_dtype": kv_dtype, "isa": isa}
    if draft is not None and not isinstance(draft, Model):
        draft = load(draft, engine=engine, quant=quant, packed_copy=packed_copy, **options)
    adapters = open_adapters(adapter, checkpoint.config)
    return _loaded(checkpoint, engine, quant, context, draft, options, adapters, copy)


def random_model(
    name: str,
    quant: str | None = None,
    seed: int = 0,
    *,
    engine: str = "native",
    threads: int | None = None,
    dtype: str | None = None,
    kv_dtype: str = "auto",
    context: int | None = None,
    isa: str | None = None,
) -> Model:
    """A model of a released shape with random weights, to measure what that shape costs: `random:NAME`.

    name: a row of the zoo ("gemma-2-2b"). quant: None: bfloat16; "int8": Q8_0; "int4": Q4_0 with the embedding table
    in Q6_K (Q8_0 where its rows do not divide into blocks of 256). The weights are made in these formats directly, and
    the same seed makes the same ones. The other options: see `load`. The tokenizer is a stand-in: a token a byte.

    Raises GemmaryError as `load` does.
    """
    from gemmary.checkpoints.random_weights import open_random

    _check_options(engine, threads, dtype, quant, kv_dtype)
    checkpoint = open_random(RANDOM + name + (f":{quant}" if quant else ""), seed=seed)
    options: dict[str, Any] = {"threads": threads, "dtype": dtype, "kv_dtype": kv_dtype, "isa": isa}
    return _loaded(checkpoint, engine, None, context, None, options)


def load_checkpoint(checkpoint: Checkpoint, *, engine: str = "native", context: int | None = None) -> Model:
    """A model of an opened checkpoint, as it is stored. Raises GemmaryError as `load` does."""
    options: dict[str, Any] = {"threads": None, "dtype": None, "kv_dtype": "auto", "isa": None}
    return _loaded(checkpoint, engine, None, context, None, options)


def as_run_by(checkpoint: Checkpoint, conventions: str) -> Checkpoint:
    """The checkpoint under the conventions of `CONVENTIONS`."""
    if conventions not in CONVENTIONS:
        raise GemmaryError(f"conventions must be {' or '.join(CONVENTIONS)}, not {conventions!r}")
    if conventions == "big_vision" or checkpoint.config.family == "paligemma":  # the first generation has neither
        return checkpoint
    if checkpoint.stored_config is None:
        raise GemmaryError(f"{checkpoint.name} has no conventions to choose from: PaliGemma 2 in a folder has")
    notices = [notice for notice in checkpoint.notices if "conventions=" not in notice]
    return replace(checkpoint, config=checkpoint.stored_config, notices=notices)


def _loaded(
    checkpoint: Checkpoint,
    engine: str,
    quant: str | None,
    context: int | None,
    draft: Model | None,
    options: dict[str, Any],
    adapters: Mapping[str, Adapter] | None = None,
    copy: PackedCopy | None = None,
) -> Model:
    """The model of an opened checkpoint; options: those of `open_engine`. copy: where its packed weights may lie."""
    adapters = adapters or {}
    lookup: Callable[[str], Leaf] = checkpoint.lookup
    notices: list[str] = []
    if quant is not None:
        lookup = quantized(checkpoint, quant, notices)
    _check_context(checkpoint.config, context)
    least = context or min(checkpoint.config.context_length, LEAST_CONTEXT)
    extra = sum(adapter.nbytes for adapter in adapters.values()) + _draft_bytes(draft, least)
    _require_room(checkpoint, engine, quant, least, extra, options)
    packed = copy.open(checkpoint, notices) if copy is not None else None
    if packed is not None:  # its weights are the engine's alone: what the model says and saves is the checkpoint's
        checkpoint, copy = replace(checkpoint, load_tokenizer=packed.load_tokenizer), None
    held = packed.lookup if packed is not None else lookup
    adapted = wrapped(held, checkpoint.config, list(adapters.values())) if adapters else held
    built = _open_engine(engine, checkpoint.config, adapted, options)
    kv_bytes = None if (free := available_bytes()) is None else free // 2
    if kv_bytes is not None and context is not None:  # for which the plan has found room
        kv_bytes = max(kv_bytes, built.cache_bytes(context) + _draft_bytes(draft, context))
    fitted = _fit_context(built, context, kv_bytes, notices, draft)
    model = Model(
        checkpoint,
        built,
        lookup=lookup,
        context=fitted,
        kv_bytes=kv_bytes,
        notices=notices,
        draft=draft,
        adapters=adapters,
        packed_copy=copy,
    )
    warn(notices)
    return model


def save(
    model: Model,
    path: str | Path,
    format: str = "safetensors",
    *,
    dtype: str | None = None,
    shard_bytes: int | None = None,
) -> list[str]:
    """Writes a model with its tokenizer and chat template. Returns what should be known, also as GemmaryWarnings.

    format: "safetensors" (a Hugging Face folder that transformers loads), "packed" (a folder that the native engine
    maps as it is), "orbax" (one in DeepMind's layout; none of these may exist, unless empty) or "gguf" (one `.gguf`
    file that llama.cpp loads, replaced). dtype: None = as the weights were loaded (after `quant=`), or "float32",
    "bfloat16", "float16" (not in orbax), and for GGUF and packed "int8" or "int4". shard_bytes: the largest file of a
    Hugging Face folder. Nothing is ever half-written.

    Raises GemmaryError for a model with adapters too: `gemmary.merge` puts one into the weights.
    """
    if model.adapters:
        raise GemmaryError(
            f"{model.name} has adapters, which no checkpoint holds: load it without, or merge one (`gemmary merge`)"
        )
    notices = save_checkpoint(model, path, format=format, dtype=dtype, shard_bytes=shard_bytes)
    warn(notices)
    return notices


def quantized(checkpoint: Checkpoint, quant: str, notices: list[str]) -> Callable[[str], Leaf]:
    """A lookup that gives every matrix in `quant`'s blocks, made when asked for.

    Raises GemmaryError where a row does not divide into blocks. Matrices that were quantized already are dequantized
    first, and a notice says so; those that are stored in just this type stay as they are.
    """
    block_types = {tensor.name: tensor.blocks(QUANT[quant]) for tensor in tensors(checkpoint.config)}
    again: set[str] = set()
    for name, block_type in block_types.items():
        if block_type is None:
            continue
        leaf = checkpoint.lookup(name)
        if leaf.format not in (*FLOATS, block_type):
            again.add(leaf.format)
        if isinstance(leaf, Affine):
            continue  # its rows may be filled up: no file of blocks holds such weights
        try:
            blocks.row_bytes(block_type, leaf.shape[-1])
        except GemmaryError as error:
            raise GemmaryError(f"{checkpoint.name} cannot be quantized to {quant}: in {name} {error}") from None
    if again:
        notices.append(
            f"weights stored as {', '.join(sorted(again))} are dequantized and quantized again to {quant}, "
            "which loses accuracy twice: start from the unquantized checkpoint where you can"
        )

    def lookup(name: str) -> Leaf:
        leaf = checkpoint.lookup(name)
        block_type = block_types[name]
        return leaf if block_type is None or leaf.format == block_type else in_blocks(leaf, block_type)

    return lookup


def _check_options(engine: str, threads: int | None, dtype: str | None, quant: str | None, kv_dtype: str) -> None:
    if engine not in ENGINES:
        raise GemmaryError(f"no engine is called {engine!r}: choose {', '.join(ENGINES)}")
    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise GemmaryError(f"threads must be a whole number of at least 1, not {threads!r}")
    if dtype in ("float16", "fp16", "half"):
        raise GemmaryError(
            f"no {dtype}: Gemma's activations pass its largest number, 65504; choose float32 or bfloat16"
        )
    if dtype is not None and dtype not in DTYPES:
        raise GemmaryError(f"dtype must be {' or '.join(DTYPES)}, or None for as stored; not {dtype!r}")
    if quant is not None and quant not in QUANT:
        raise GemmaryError(f"quant must be {' or '.join(QUANT)}, or None for as stored; not {quant!r}")
    if kv_dtype not in KV_DTYPES:
        raise GemmaryError(f"kv_dtype must be {', '.join(KV_DTYPES[:-1])} or {KV_DTYPES[-1]}, not {kv_dtype!r}")


def _open_engine(name: str, config: Config, lookup: Callable[[str], Leaf], options: dict[str, Any]) -> Engine:
    try:
        return open_engine(name, config, lookup, **options)
    except ImportError as error:
        if name == "torch":
            raise GemmaryError('the torch engine needs PyTorch: pip install "gemmary[torch]"') from error
        raise GemmaryError(f"the {name} engine is not built into this installation: {error}") from error


def _check_context(config: Config, context: int | None) -> None:
    most = config.context_length
    if context is not None and (not isinstance(context, int) or not 1 <= context <= most):
        shown = f"{context:,}" if isinstance(context, int) else repr(context)
        raise GemmaryError(f"context must be from 1 to the model's own {most:,} tokens, not {shown}")


def _draft_bytes(draft: Model | None, tokens: int) -> int:
    """Of the draft's keys and values beside so many tokens."""
    if draft is None:
        return 0
    return draft.engine.cache_bytes(min(tokens, draft.engine.config.context_length))


def _require_room(
    checkpoint: Checkpoint, engine: str, quant: str | None, context: int, extra_bytes: int, options: Mapping[str, Any]
) -> None:
    """Raises GemmaryError, with what fits instead, where weights, caches of `context` tokens and a step do not fit into
    memory. extra_bytes: of what comes beside them."""
    from gemmary.plan import check_fits, find_devices, make_plan, of_checkpoint, this_cpu

    planned, device = of_checkpoint(checkpoint), this_cpu(options["threads"])
    quant = options["dtype"] or quant
    if engine == "torch":  # which has no blocks, and takes a GPU where there is one
        device = find_devices()[:2][-1]
        quant = "float32" if quant in QUANT else quant
    how: dict[str, Any] = {"engine": engine, "kv_dtype": options["kv_dtype"], "extra_bytes": extra_bytes}
    plan = make_plan(planned, quant=quant, context=context, device=device, **how)
    check_fits(planned, plan, device=device, **how)


def _fit_context(
    engine: Engine, context: int | None, kv_bytes: int | None, notices: list[str], draft: Model | None = None
) -> int:
    """The context that was asked for, or as much of the model's own as the key-value caches have room for."""
    most = engine.config.context_length
    if context is not None or kv_bytes is None:
        return context or most

    def cache_bytes(tokens: int) -> int:
        return engine.cache_bytes(tokens) + _draft_bytes(draft, tokens)

    fits = bisect.bisect_right(range(1, most + 1), kv_bytes, key=cache_bytes)
    if fits == 0:
        raise GemmaryError(f"no memory is left for keys and values: {size(kv_bytes)} can be set aside for them")
    if fits < most:
        notices.append(f"the context is {fits:,} of the model's {most:,} tokens: that is what memory has room for")
    return fits
