"""LoRA adapters in PEFT's format: a folder of `adapter_config.json` and `adapter_model.safetensors`.

    W' = W + scale · B·A                                     A [r, I], B [O, r]
    W' = magnitude / ‖W + scale · B·A‖ · (W + scale · B·A)   DoRA: row by row, magnitude [O]

Both ways go by the tensor table: a linear weight `layers.3.gate` of the model is `…layers.3.mlp.gate_proj` in the file,
`vision.layers.3.up` is `…encoder.layers.3.mlp.fc1`. A bias stays what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.checkpoints import safetensors
from gemmary.checkpoints.huggingface import read_chat_template
from gemmary.checkpoints.json_files import read_json
from gemmary.checkpoints.peft_config import AdapterConfig, Described, read_config, write_config
from gemmary.checkpoints.safetensors import SafetensorsFile, show
from gemmary.checkpoints.tensors import (
    LAYOUTS,
    PROJECTOR_TABLES,
    TABLE,
    VISION_TABLE,
    Layout,
    Tensor,
    module_layout,
    tensors,
)
from gemmary.config import Config
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.quantize.lora import LoraWeights

__all__ = ["Adapter", "AdapterConfig", "LoraWeights", "linear_names", "read_adapter", "target_ends", "write_adapter"]

Floats = npt.NDArray[np.float32]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
_START = "base_model.model."
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory."""

    config: AdapterConfig
    weights: dict[str, LoraWeights]
    """By names of the tensor table: `layers.3.gate`."""
    chat_template: str | None = None
    """Of a model that this adapter makes a conversation partner: what lies in its folder as such. Never executed."""

    @property
    def changes_tower(self) -> bool:
        """Whether pictures look different with it: weights of the vision tower or its projector are among its own."""
        return any(name.startswith("vision.") for name in self.weights)

    @property
    def nbytes(self) -> int:
        arrays = [a for w in self.weights.values() for a in (w.a, w.b, w.magnitude) if a is not None]
        return sum(a.nbytes for a in arrays)


def linear_names(config: Config, layout: Layout | None = None) -> dict[str, Tensor]:
    """The weights that an adapter may have, by their paths in a layout (None: that of transformers 5): the linear
    layers of the decoder, of the tower and between them. (Between Gemma 3's stands a bare matrix, no layer.)"""
    layout = layout or module_layout(config)
    others = ("embed", "vision.patch", "vision.position")
    found = [t for t in tensors(config) if not (t.is_norm or t.is_pooled_dense or t.transposed or t.name in others)]
    return {layout.start(t.name) + t.hugging_face.removesuffix(".weight"): t for t in found}


def read_adapter(path: str | Path, config: Config) -> Adapter:
    """The adapter in the folder `path`, for a model of the shape `config`.

    Raises GemmaryError in one line where it is not LoRA or DoRA, where a tensor is missing, left over, of another shape
    or not finite, or where a file is not sound. Only `.safetensors` is read: a `.bin` file can run code.
    """
    folder = Path(path)
    if not (folder / CONFIG).is_file():
        raise GemmaryError(f"{folder} is not an adapter: it has no {CONFIG}")
    if not (folder / WEIGHTS).is_file():
        other = " (only a .bin, which can run code: save it as safetensors)" * (folder / "adapter_model.bin").exists()
        raise GemmaryError(f"the adapter {folder} has no {WEIGHTS}{other}")
    described = read_config(read_json(folder / CONFIG), str(folder / CONFIG))
    file = SafetensorsFile(folder / WEIGHTS)
    layout = _layout(file, config)
    weights: dict[str, LoraWeights] = {}
    left = set(file.entries)
    for path, tensor in linear_names(config, layout).items():
        if described.wanted(path):
            weights[tensor.name] = _weights(file, path, tensor, described, left)
    if left:
        raise GemmaryError(f"{file.path}: tensor {show(min(left))} is not among those that {CONFIG} promises")
    config_found = replace(described.config, targets=target_ends(config, weights, layout), layout=layout)
    return Adapter(config_found, weights, read_chat_template(folder))


def _layout(file: SafetensorsFile, config: Config) -> Layout:
    """The one that knows most of the file's modules."""
    modules = {re.sub(r"\.lora_(?:[AB]\.weight|magnitude_vector)$", "", name) for name in file.entries}

    def known(layout: Layout) -> int:
        return sum(_START + path in modules for path in linear_names(config, layout))

    best = max(LAYOUTS, key=known)
    if not known(best):
        example = f": {show(min(modules))} is not one of its linear layers" if modules else ""
        raise GemmaryError(f"{file.path} is not an adapter of this model{example}")
    return best


def _weights(file: SafetensorsFile, module: str, tensor: Tensor, described: Described, left: set[str]) -> LoraWeights:
    config, rank = described.config, described.rank(module)
    outputs, inputs = tensor.shape

    def take(end: str, shape: tuple[int, ...]) -> Floats:
        name = _START + module + end
        entry = file.entries.get(name)
        if entry is None:
            raise GemmaryError(f"{file.path} lacks tensor {show(name)}, which its configuration promises")
        if entry.dtype not in safetensors.DTYPES:
            raise GemmaryError(f"{file.path}: tensor {show(name)} is {entry.dtype}, not F32, F16 or BF16")
        if entry.shape != shape:
            raise GemmaryError(
                f"{file.path}: tensor {show(name)} is {list(entry.shape)} where this model and rank {rank} "
                f"need {list(shape)}"
            )
        left.discard(name)
        values = file.array(name).astype(np.float32)
        if not np.isfinite(values).all():
            raise GemmaryError(f"{file.path}: tensor {show(name)} holds numbers that are not finite")
        return values

    a, b = take(_A, (rank, inputs)), take(_B, (outputs, rank))
    magnitude = take(_MAGNITUDE, (outputs,)) if config.dora else None
    return LoraWeights(a, b, config.scale(rank, described.alpha(module)), magnitude)


def target_ends(config: Config, adapted: Container[str], layout: Layout | None = None) -> tuple[str, ...]:
    """The fewest ends of paths that mean these weights of the tensor table: `q_proj` where every layer that is called
    so has an adapter (a tower's are, too), else whole paths."""
    linears = linear_names(config, layout)
    ends: dict[str, list[str]] = {}
    for path in linears:
        ends.setdefault(path.rpartition(".")[2], []).append(path)
    targets: list[str] = []
    for end, paths in ends.items():
        wanted = [path for path in paths if linears[path].name in adapted]
        targets += [end] if wanted == paths else wanted
    return tuple(targets)


def write_adapter(path: str | Path, adapter: Adapter) -> None:
    """Writes the folder `path` as `peft.PeftModel.from_pretrained` loads it; other files in it stay.

    Whoever reads it meanwhile, or after a crash, finds the adapter that was there, this one, or none; never a mixture.
    Raises GemmaryError where the disk refuses, and ValueError for weights that the configuration does not target.
    """
    folder, config = Path(path), adapter.config
    arrays: dict[str, Floats] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, weights in adapter.weights.items():
        module = config.layout.start(name) + _path(name)
        if not config.targeted(module) or config.dora != (weights.magnitude is not None):
            raise ValueError(f"the adapter's configuration does not describe its weights of {name}")
        arrays[_START + module + _A] = weights.a
        arrays[_START + module + _B] = weights.b
        if weights.magnitude is not None:
            arrays[_START + module + _MAGNITUDE] = weights.magnitude
        if weights.rank != config.rank:
            ranks[module] = weights.rank
        if weights.scale != config.scale(weights.rank, config.alpha):
            alphas[module] = float(f"{weights.scale / config.scale(weights.rank, 1.0):.12g}")
    written = json.dumps(write_config(config, ranks, alphas), indent=2, ensure_ascii=False) + "\n"
    if not _holds(folder / CONFIG, written):
        _remove(folder / CONFIG)  # the old one would misread the new weights
    plan = [(name, "F32", array.shape) for name, array in arrays.items()]
    with atomic_file(folder / WEIGHTS) as out:
        safetensors.write(out, plan, (iter([array]) for array in arrays.values()))
    if adapter.chat_template is not None:
        with atomic_file(folder / TEMPLATE) as out:
            out.write(adapter.chat_template.encode())
    with atomic_file(folder / CONFIG) as out:
        out.write(written.encode())


def _path(name: str) -> str:
    """Of one of the table's linear names, in its part of the model; these are the same in every family."""
    number = re.search(r"\.(\d+)\.", name)
    generic = re.sub(r"\.\d+\.", ".{i}.", name)
    row = next(row for row in (*TABLE, *VISION_TABLE, *PROJECTOR_TABLES[False]) if row.name == generic)
    return row.hugging_face.format(i=number and number[1]).removesuffix(".weight")


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise GemmaryError(f"cannot write {path}: {error.strerror or error}; nothing was changed") from error
