"""`adapter_config.json` of PEFT, read strictly: what it says of a LoRA adapter, or a line about what it says besides.

PEFT names the modules that it adapts by the ends of their paths or by a regular expression, and so the ranks and alphas
that differ from the rest. An expression out of a file is only run if it cannot take long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gemmary.checkpoints.fields import Fields, show
from gemmary.checkpoints.tensors import LAYOUTS, Layout
from gemmary.errors import GemmaryError

Matcher = Callable[[str], bool]

MOST = 1 << 16
"""The largest rank that is read: as many as any of the models' matrices has columns."""

_KNOWN = {
    "peft_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "base_model_name_or_path",
    "init_lora_weights",
}
_WITHOUT_EFFECT = {
    # A bias that was trained stands among the tensors, where it is refused. Linear layers are stored [out, in] whatever
    # PEFT is told (it sets that back itself).
    "bias",
    "fan_in_fan_out",
    # How it was trained, and with what.
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "ephemeral_gpu_offload",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""How A and B may have been initialised. The others (PiSSA, OLoRA, CorDA …) change the base model's weights as well."""


@dataclass(frozen=True)
class AdapterConfig:
    """What holds for a whole adapter."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    """Ends of the paths of the adapted modules, by whole names: "q_proj", "layers.3.mlp.up_proj"."""
    dropout: float = 0.0
    rslora: bool = False
    """The scale is alpha / sqrt(rank) instead of alpha / rank."""
    dora: bool = False
    base_model: str | None = None
    layout: Layout = LAYOUTS[0]
    """What stands before the tensor table's Hugging Face names in the class that is adapted."""

    def scale(self, rank: int, alpha: float) -> float:
        """The factor of B·A of one module."""
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def targeted(self, path: str) -> bool:
        return _ends_in(path, self.targets)


@dataclass(frozen=True)
class Described:
    """A configuration but for its targets and layout, and what it says of a module by its path."""

    config: AdapterConfig
    wanted: Matcher
    rank: Callable[[str], int]
    alpha: Callable[[str], float]


def read_config(data: Mapping[str, Any], where: str) -> Described:
    """Raises GemmaryError, beginning with `where`, for what is malformed, and for what is not plain LoRA or DoRA."""

    def refuse(line: str) -> GemmaryError:
        return GemmaryError(f"{where}: {line}")

    if data.get("peft_type") != "LORA":
        raise refuse(f"peft_type is {show(data.get('peft_type'))}: only LORA adapters are applied")
    if data.get("modules_to_save"):
        whole = show(data["modules_to_save"])
        raise refuse(f"modules_to_save is {whole}: adapters with modules trained whole are not read")
    if data.get("init_lora_weights", True) not in _PLAIN_STARTS:
        start = show(data["init_lora_weights"])
        raise refuse(f"it was begun as {start}, which changes the base model too: save it converted to plain LoRA")
    if odd := sorted(key for key, value in data.items() if value and key not in _KNOWN | _WITHOUT_EFFECT):
        raise refuse(f"{show(odd[0])} is {show(data[odd[0]])}, which is not applied here")
    fields = Fields(where, data)
    rank, alpha = fields.size("r", most=MOST), fields.number("lora_alpha")
    ranks, alphas = _object(data, "rank_pattern", refuse), _object(data, "alpha_pattern", refuse)
    each_rank = {key: Fields(where, {"rank_pattern": n}).size("rank_pattern", most=MOST) for key, n in ranks.items()}
    each_alpha = {key: Fields(where, {"alpha_pattern": x}).number("alpha_pattern") for key, x in alphas.items()}
    rank_key, alpha_key = _patterns(each_rank, refuse), _patterns(each_alpha, refuse)
    base = data.get("base_model_name_or_path")
    targets = data.get("target_modules")
    config = AdapterConfig(
        rank=rank,
        alpha=alpha,
        targets=(),
        dropout=_fraction(data, refuse),
        rslora=_flag(data, "use_rslora", refuse),
        dora=_flag(data, "use_dora", refuse),
        base_model=base if isinstance(base, str) and base.isprintable() else None,
    )
    wanted = _selector(targets, "target_modules", refuse)
    unwanted = _selector(data.get("exclude_modules") or [], "exclude_modules", refuse)
    layers = data.get("layers_to_transform")
    numbers = layers if isinstance(layers, list) else [] if layers is None else [layers]
    if not all(type(n) is int for n in numbers):
        raise refuse(f"layers_to_transform is {show(layers)}, not numbers of layers")
    in_layers = frozenset(numbers)

    def is_wanted(path: str) -> bool:
        number = re.search(r"\.(\d+)\.", path)
        here = not in_layers or (number is not None and int(number[1]) in in_layers)
        return here and wanted(path) and not unwanted(path)

    return Described(
        config,
        is_wanted,
        lambda path: each_rank.get(rank_key(path), rank),
        lambda path: each_alpha.get(alpha_key(path), alpha),
    )


def write_config(config: AdapterConfig, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    """The file's contents. ranks, alphas: of the modules, by path, that differ from the rest."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if config.layout.decoder else "FEATURE_EXTRACTION",
        "base_model_name_or_path": config.base_model,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "rank_pattern": {re.escape(path): rank for path, rank in ranks.items()},
        "alpha_pattern": {re.escape(path): alpha for path, alpha in alphas.items()},
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _object(data: Mapping[str, Any], key: str, refuse: Callable[[str], GemmaryError]) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict):
        raise refuse(f"{key} is {show(value)}, not an object")
    return value


def _flag(data: Mapping[str, Any], key: str, refuse: Callable[[str], GemmaryError]) -> bool:
    value = data.get(key, False)
    if not isinstance(value, bool):
        raise refuse(f"{key} is {show(value)}, not true or false")
    return value


def _fraction(data: Mapping[str, Any], refuse: Callable[[str], GemmaryError]) -> float:
    value = data.get("lora_dropout", 0.0)
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise refuse(f"lora_dropout is {show(value)}, not from 0 to 1")
    return float(value)


def _selector(value: Any, key: str, refuse: Callable[[str], GemmaryError]) -> Matcher:
    if value == "all-linear":
        return lambda path: True
    if isinstance(value, str):
        expression = _expression(value, refuse)
        return lambda path: expression.fullmatch(path) is not None
    if not isinstance(value, list) or not all(isinstance(end, str) and end for end in value):
        raise refuse(f"{key} is {show(value)}, neither names of modules nor an expression")
    ends = tuple(value)
    return lambda path: _ends_in(path, ends)


def _patterns(keys: Mapping[str, Any], refuse: Callable[[str], GemmaryError]) -> Callable[[str], str]:
    """The first of PEFT's pattern keys that the end of a path matches; the path itself if none does."""
    compiled = {key: _expression(rf"(.*\.)?({key})$", refuse) for key in keys}
    return lambda path: next((key for key, expression in compiled.items() if expression.match(path)), path)


def _expression(text: str, refuse: Callable[[str], GemmaryError]) -> re.Pattern[str]:
    """Compiled. Nothing is repeated that repeats itself, and little is repeated, so a short path is soon matched."""
    bare = re.sub(r"\\.", "x", text.removeprefix(r"(.*\.)?"))
    if len(text) > 2000 or re.search(r"\)[*+?{]", bare) or len(re.findall(r"[*+{]", bare)) > 5:
        raise refuse(f"the expression {show(text)} is too intricate to be run")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError):
        raise refuse(f"{show(text)} is not a regular expression") from None


def _ends_in(path: str, ends: tuple[str, ...]) -> bool:
    return any(path == end or path.endswith("." + end) for end in ends)
