"""EmbeddingGemma's sentence-transformers folders: what follows the encoder (mean pooling, dense layers, norm)."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from gemmary.checkpoints.json_files import read_json, write_json
from gemmary.checkpoints.safetensors import DTYPES, SafetensorsFile
from gemmary.config import Config
from gemmary.errors import GemmaryError

_FOLDER = re.compile(r"[1-9]_Dense")
_IDENTITY = "torch.nn.modules.linear.Identity"
_MODULES = "sentence_transformers.models."


def open_pooling(path: Path, config: Config, notices: list[str]) -> tuple[Config, dict[str, SafetensorsFile]]:
    """The Config with its pooled dense layers, and the file of each (`dense.0`, …): `2_Dense`, `3_Dense`, ….

    Raises GemmaryError for a folder that does not chain onto the one before, has a bias or an activation.
    """
    if not config.bidirectional:
        return config, {}
    folders = sorted(p for p in path.iterdir() if p.is_dir() and _FOLDER.fullmatch(p.name))
    if [p.name for p in folders] != [f"{i + 2}_Dense" for i in range(len(folders))]:
        raise GemmaryError(f"{path}: its dense folders are not 2_Dense, 3_Dense, …")
    if not folders:
        notices.append("the folder has no 2_Dense and 3_Dense: sentence embeddings are the pooled states themselves")
    widths = [config.hidden_size]
    files: dict[str, SafetensorsFile] = {}
    for i, folder in enumerate(folders):
        if (folder / "config.json").is_file():
            data = read_json(folder / "config.json")
            if data.get("bias", False) is not False or data.get("activation_function", _IDENTITY) != _IDENTITY:
                raise GemmaryError(f"{folder}: a dense layer with a bias or an activation is not known")
        file = SafetensorsFile(folder / "model.safetensors")
        entry = file.entries.get("linear.weight")
        if len(file.entries) != 1 or entry is None or entry.dtype not in DTYPES:
            raise GemmaryError(f"{folder / 'model.safetensors'} does not hold just linear.weight, in a float dtype")
        if len(entry.shape) != 2 or entry.shape[1] != widths[-1] or not 0 < entry.shape[0] <= 1 << 20:
            raise GemmaryError(f"{folder}: linear.weight has shape {entry.shape}, but its input is {widths[-1]} wide")
        widths.append(entry.shape[0])
        files[f"dense.{i}"] = file
    return replace(config, pooled_dense=tuple(widths[1:])), files


def write_pooling(folder: Path, config: Config) -> None:
    """Everything of the sentence-transformers layout but the dense layers' weights."""
    types = ["Transformer", "Pooling", *(["Dense"] * len(config.pooled_dense)), "Normalize"]
    modules: list[dict[str, Any]] = []
    for i, kind in enumerate(types):
        place = f"{i}_{kind}" if i else ""
        modules.append({"idx": i, "name": str(i), "path": place, "type": _MODULES + kind})
        if place:
            (folder / place).mkdir()
    (folder / "modules.json").write_text(_as_list(modules), encoding="utf-8")
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": config.context_length, "do_lower_case": False})
    write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": config.hidden_size, "pooling_mode_mean_tokens": True, "include_prompt": True},
    )
    widths = (config.hidden_size, *config.pooled_dense)
    for i, (inside, outside) in enumerate(pairwise(widths)):
        write_json(
            folder / f"{i + 2}_Dense" / "config.json",
            {"in_features": inside, "out_features": outside, "bias": False, "activation_function": _IDENTITY},
        )


def _as_list(modules: list[dict[str, Any]]) -> str:
    return json.dumps(modules, indent=2) + "\n"
