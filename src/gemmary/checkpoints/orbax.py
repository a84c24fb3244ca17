"""Reads Orbax checkpoints of DeepMind's Gemma, with TensorStore, the library that Orbax writes them with.

An array is a zarr (version 2 or 3): in a folder of its own (older releases), or all of them in one OCDBT database.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints.checkpoint import Checkpoint
from gemmary.checkpoints.flax import read_tree
from gemmary.checkpoints.huggingface import read_chat_template
from gemmary.checkpoints.sizes import beside
from gemmary.checkpoints.stored import Array, Index, Stored, formats_of, leaves_of
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

_MANIFEST = "manifest.ocdbt"
_ITEMS = ("", "default", "params")
"""Where the arrays may be below what a training loop calls a checkpoint."""
_ENDINGS = {".zarray": "zarr", "zarr.json": "zarr3"}
_MOST_ARRAYS = 20_000


def find_orbax(path: Path) -> Path | None:
    """The folder of arrays that a folder is, or holds as its only one; None where there is none."""
    is_other = any(path.glob("*.safetensors"))
    folders = (path, *(inner for inner in sorted(path.iterdir()) if inner.is_dir() and not is_other))
    found = [folder / item for folder in folders for item in _ITEMS if _holds_arrays(folder / item)]
    return found[0] if found and (found[0] == path or len(set(found)) == 1) else None


def _holds_arrays(folder: Path) -> bool:
    """By what Orbax writes beside the arrays, or did: of its oldest checkpoints the arrays themselves."""
    if (folder / _MANIFEST).is_file() or (folder / "_METADATA").is_file():
        return True
    tables = ("*embedder*/.zarray", "transformer/embedder*/.zarray")
    return (folder / "checkpoint").is_file() and any(any(folder.glob(table)) for table in tables)


def open_orbax(path: Path, name: str | None = None) -> Checkpoint:
    """Raises GemmaryError, one line, where the folder holds no Gemma whole and sound, or TensorStore is missing."""
    folder = find_orbax(path)
    assert folder is not None
    notices: list[str] = []
    stored = _stored(folder)
    config, made = read_tree(folder, folder, stored, notices)
    return Checkpoint(
        path,
        "orbax",
        config,
        name or path.resolve().name,
        leaves_of(folder, config, made),
        partial(_tokenizer, folder, path.resolve()),
        partial(read_chat_template, folder),
        notices,
        made_formats=formats_of(config, made),
        weight_files=tuple(file for file in folder.rglob("*") if file.is_file()),
    )


def tensorstore() -> Any:
    """The library. Raises GemmaryError where it is not installed."""
    try:
        import tensorstore
    except ImportError:
        raise GemmaryError('Orbax checkpoints need TensorStore: pip install "gemmary[orbax]"') from None
    return tensorstore


def _stored(folder: Path) -> dict[str, Stored]:
    ts = tensorstore()
    base: dict[str, Any] = {"driver": "file", "path": f"{folder.resolve()}/"}
    if (folder / _MANIFEST).is_file():
        base = {"driver": "ocdbt", "base": base}
    elif any(folder.glob("ocdbt.process_*")):
        raise GemmaryError(f"{folder} was never finished: its processes' parts were not merged into {_MANIFEST}")
    context = ts.Context({"cache_pool": {"total_bytes_limit": 0}})
    try:
        keys = [key.decode() for key in ts.KvStore.open(base, context=context).result().list().result()]
    except (ValueError, OSError, UnicodeDecodeError) as error:
        raise _unsound(folder, error) from None
    found = [(name, ending) for name, _, ending in (key.rpartition("/") for key in keys) if ending in _ENDINGS and name]
    if not found or len(found) > _MOST_ARRAYS:
        raise GemmaryError(f"{folder} holds {len(found):,} arrays of Orbax's, not those of a Gemma")
    return {name: _open(ts, folder, base, context, name, ending) for name, ending in found}


def _open(ts: Any, folder: Path, base: dict[str, Any], context: Any, name: str, ending: str) -> Stored:
    """One array's header. Chunks that are missing are an error when they are read, not zeros."""
    place = {**base, "path": base["path"] + name + "/"} if base["driver"] == "file" else {**base, "path": name + "/"}
    spec = {"driver": _ENDINGS[ending], "kvstore": place, "fill_missing_data_reads": False}
    try:
        array = ts.open(spec, open=True, read=True, context=context).result()
    except (ValueError, OSError) as error:
        raise _unsound(folder, error) from None
    shape, chunk = tuple(array.shape), array.chunk_layout.read_chunk.shape or ()
    if any(a > max(b, 1) for a, b in zip(chunk, shape, strict=False)):
        raise GemmaryError(f"{folder} is not sound: the chunks of {name!a} are larger than the array")
    return Stored(shape, array.dtype.name, partial(_read, folder, array))


def _read(folder: Path, array: Any, index: Index) -> Array:
    try:
        found: Array = array[index].read().result() if index else array.read().result()
    except (ValueError, OSError) as error:
        raise _unsound(folder, error) from None
    return found


def _unsound(folder: Path, error: Exception) -> GemmaryError:
    """TensorStore's own words, which end in the source files that they went through."""
    said = " ".join(str(error).split(" [source locations=")[0].split())
    return GemmaryError(f"{folder} is not a sound Orbax checkpoint: {ascii(said)[1:-1][:300]}")


def _tokenizer(folder: Path, path: Path) -> Tokenizer:
    from gemmary.tokenizer import Tokenizer

    return Tokenizer.from_folder(beside(path, ("tokenizer.model", "tokenizer.json"), (folder, path, path.parent)))
