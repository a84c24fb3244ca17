"""Checkpoints on disk: one door to open any of them, one to write one. Each format is a reader of `tensors.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gemmary import zoo
from gemmary.checkpoints import starter
from gemmary.checkpoints.checkpoint import Checkpoint, Format, Source
from gemmary.checkpoints.hub import is_random, parse, resolve
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.checkpoints.convert import Progress

__all__ = ["Checkpoint", "Format", "Source", "open_checkpoint", "open_named", "save_checkpoint"]


def open_named(name: str | Path) -> Checkpoint:
    """Opens what a name means (`hub.resolve`) and calls it so: by its name a released model is known as what it is.

    Raises GemmaryError as `resolve` and `open_checkpoint` do.
    """
    known = zoo.find(str(name))
    is_name = isinstance(name, str) and not Path(name).exists() and (name in starter.NAMES or parse(name) is not None)
    return open_checkpoint(resolve(name), known.name if known else str(name) if is_name else None)


def open_checkpoint(path: str | Path, name: str | None = None, *, pickles: bool = False) -> Checkpoint:
    """Opens a Hugging Face folder, a packed one, a GGUF file, big_vision's `.npz`, DeepMind's Orbax folder, a KerasHub
    preset, gemma_pytorch's `.ckpt` or `random:NAME`, by its contents: reads and checks headers, maps weights.

    name: what to call the model instead of what the file says. pickles: a `.ckpt` is a pickle, which is read only
    where this is set, in a process of its own and of weights alone. Raises GemmaryError, one line, for what is not
    there, not Gemma, not whole or not sound; before any tensor is read.
    """
    if is_random(path):
        from gemmary.checkpoints.random_weights import open_random

        return open_random(path)
    path = Path(path)
    if path.is_dir():
        from gemmary.checkpoints.packed import is_packed, open_packed

        if is_packed(path):
            return open_packed(path, name)
        from gemmary.checkpoints.orbax import find_orbax, open_orbax

        if find_orbax(path) is not None:
            return open_orbax(path, name)
        from gemmary.checkpoints.keras_hub import is_keras, open_keras

        if is_keras(path):
            return open_keras(path, name)
        from gemmary.checkpoints.gemma_pytorch import find_pickle, open_pickle

        if (file := find_pickle(path)) is not None:
            return open_pickle(file, name, pickles)
        from gemmary.checkpoints.huggingface import open_folder

        return open_folder(path, name)
    if path.suffix == ".npz":
        from gemmary.checkpoints.big_vision import open_big_vision

        return open_big_vision(path, name)
    if not path.exists():
        raise GemmaryError(f"there is no file or folder {path}")
    if path.is_file() and path.suffix == ".ckpt":
        from gemmary.checkpoints.gemma_pytorch import open_pickle

        return open_pickle(path, name, pickles)
    if not path.is_file() or path.suffix != ".gguf":
        raise GemmaryError(f"{path} is neither a folder nor a .gguf, .npz or .ckpt file")
    from gemmary.checkpoints.gguf import open_gguf

    return open_gguf(path, name)


def save_checkpoint(
    source: Source,
    path: str | Path,
    *,
    format: str = "safetensors",
    dtype: str | None = None,
    shard_bytes: int | None = None,
    progress: Progress | None = None,
) -> list[str]:
    """Writes a model; returns lines that a user should be told. Nothing is ever half-written.

    format: "safetensors" (a Hugging Face folder), "compressed-tensors" (one with quantized layers), "packed" (a folder
    that the native engine maps as it is), "orbax" (one in DeepMind's layout; none of these may exist, unless empty),
    "gguf" or "big_vision" (one `.gguf` or `.npz` file, which is replaced).
    dtype: None = as stored; "float32", "bfloat16", "float16"; for GGUF and packed also "Q8_0" or "int8", "Q4_0" or
    "int4", and the others of `mixes.ASKED`; for compressed-tensors int8 or int4 only, of the layers' matrices.
    shard_bytes: the largest file of a folder (5 GB). progress: what, bytes done, bytes in all. Raises GemmaryError.
    """
    from gemmary.checkpoints.convert import NAMES

    if dtype is not None and dtype not in NAMES:
        known = "float32, bfloat16, float16, int8, int4, Q4_K, Q6_K or Q4_K_M"
        raise GemmaryError(f"weights cannot be written as {dtype!r}: choose {known}")
    stored = NAMES[dtype] if dtype is not None else None
    path = Path(path)
    if format == "gguf":
        if path.suffix != ".gguf":
            raise GemmaryError(f"{path} cannot be read again as GGUF: give the file a name that ends in .gguf")
        from gemmary.checkpoints.gguf_write import save_gguf

        return save_gguf(source, path, stored, progress)
    if format == "safetensors":
        from gemmary.checkpoints.huggingface_write import SHARD_BYTES, save_folder

        return save_folder(source, path, stored, shard_bytes or SHARD_BYTES, progress)
    if format == "compressed-tensors":
        from gemmary.checkpoints.huggingface_write import SHARD_BYTES, save_compressed

        return save_compressed(source, path, stored, shard_bytes or SHARD_BYTES, progress)
    if format == "packed":
        from gemmary.checkpoints.packed import save_packed

        return save_packed(source, path, stored, progress)
    if format == "big_vision":
        from gemmary.checkpoints.big_vision import save_big_vision

        return save_big_vision(source, path, stored, progress)
    if format == "orbax":
        from gemmary.checkpoints.orbax_write import save_orbax

        return save_orbax(source, path, stored, progress)
    known = "safetensors, compressed-tensors, gguf, packed, big_vision or orbax"
    raise GemmaryError(f"no format is called {format!r}: choose {known}")
