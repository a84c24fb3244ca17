"""The files that each peer of peers.py reads, written once into a cache: the same weights where a format allows it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from openvino_export import export

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.hub import is_random, resolve
from gemmary.config import Config

FLOATS = {"bfloat16": 2, "float32": 4}
"""Bytes of a weight."""
GGUF = ("gemmary", "llama.cpp")
"""Peers that read GGUF files, the same one."""


@dataclass(frozen=True)
class Files:
    """What a peer is started on."""

    path: Path
    dtype: str | None
    """For a peer that is told it: what it computes in."""
    weight_bytes: int
    """Read for a token: every weight once."""
    kv_element_bytes: int
    config: Config


def default_weights(peer: str, model: str) -> str:
    """For a model with random weights: 4 bits where the peer has them. Else as stored, or what is nearest above it."""
    if peer == "transformers":
        return "bfloat16" if is_random(model) else "float32"
    if is_random(model):
        return "int4"
    return "stored" if peer in GGUF else "int8"


def prepare(peer: str, weights: str, model: str, cache: Path, python: str) -> Files:
    """The files of one peer, made where the cache lacks them. weights: a format, "stored", or a path for `gemmary` and
    `llama.cpp`. python: the interpreter with the peer's library (OpenVINO's exporter is called with it).

    Raises GemmaryError for a model that cannot be found or written.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if peer in GGUF:
        path = _gguf(weights, model, cache)
        checkpoint = open_checkpoint(path)
        held = sum(checkpoint.lookup(name).nbytes for name in checkpoint.names())
        return Files(path, None, held, 2, checkpoint.config)
    stored = "bfloat16" if is_random(model) else "float32"
    folder = _folder(weights if weights in FLOATS else stored, model, cache)
    config = open_checkpoint(folder).config
    if peer == "transformers":
        return Files(folder, weights, config.parameters * FLOATS[weights], FLOATS[weights], config)
    path = cache / f"{_stem(model)}-openvino-{weights}"
    if not path.exists():
        export(python, folder, path, weights)
    return Files(path, None, (path / "openvino_model.bin").stat().st_size, 1, config)


def _gguf(weights: str, model: str, cache: Path) -> Path:
    if weights == "stored":
        return resolve(model)
    if weights.endswith(".gguf"):
        return Path(weights)
    path = cache / f"{_stem(model)}-{weights}.gguf"
    if not path.exists():
        # Random weights are made in blocks; others are quantized.
        made = is_random(model) and weights not in FLOATS
        source = open_checkpoint(resolve(f"{model}:{weights}" if made else model))
        save_checkpoint(source, path, format="gguf", dtype=None if made else weights)
    return path


def _folder(dtype: str, model: str, cache: Path) -> Path:
    path = cache / f"{_stem(model)}-{dtype}"
    if not path.exists():
        save_checkpoint(open_checkpoint(resolve(model)), path, dtype=dtype)
    return path


def _stem(model: str) -> str:
    return Path(model).stem if model.endswith(".gguf") else model.replace(":", "-").replace("/", "-")
