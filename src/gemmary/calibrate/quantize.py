"""A model's weights in blocks: rounded to nearest, or calibrated by GPTQ while a text runs through the model.

Matrix by matrix the blocks go into a part folder (`parts.py`), so that no more than one of them is held at a time and a
killed run goes on where it was; what is whole is then written as a folder, measured against its source, and only then
has its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.resources import files
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.calibrate import quality
from gemmary.calibrate.formats import FORMATS, bits_per_weight, mixed, uniform
from gemmary.calibrate.forward import run
from gemmary.calibrate.parts import Parts, open_parts
from gemmary.calibrate.quality import Measured, Quality
from gemmary.checkpoints import Checkpoint, compressed, open_checkpoint, open_named
from gemmary.checkpoints.convert import Progress
from gemmary.checkpoints.gguf_write import save_gguf, text_config
from gemmary.checkpoints.huggingface_write import save_compressed
from gemmary.checkpoints.json_files import write_json
from gemmary.checkpoints.mixes import Q4_K_M, fallbacks, kind_of
from gemmary.checkpoints.packed import save_packed
from gemmary.checkpoints.tensors import tensors
from gemmary.errors import GemmaryError
from gemmary.files import staged
from gemmary.memory import require
from gemmary.quantize import gptq
from gemmary.quantize.grids import GRIDS
from gemmary.quantize.leaves import FLOATS, Affine, Blocks, Leaf, quantized
from gemmary.quantize.pieces import pieces

METHODS = ("rtn", "gptq")
LEAST_TOKENS = 256
"""Of a calibration text: fewer say nothing of most inputs."""
TABLE_DAMPING = 0.1
"""Of the embedding table: more than of other matrices, since it is also looked up in, where all columns count alike."""


@dataclass(frozen=True)
class Quantized:
    """What was written, how good it is, and what a user should be told."""

    path: Path
    format: str
    """packed, gguf or compressed-tensors."""
    quality: Quality
    notices: tuple[str, ...]


def calibration_text() -> str:
    """About 14 KB of prose, code, tables and languages, written for this purpose; not the text that is measured on."""
    return files("gemmary").joinpath("data/calibration.txt").read_text(encoding="utf-8")


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    to: str = "int4",
    method: str = "rtn",
    embed: str | None = None,
    bits: float | None = None,
    text: str | None = None,
    text_name: str = "a text of the user's",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quantized:
    """Writes `model` with its matrices in blocks as `out`, with its measured `quality.json` in it; of a file beside it.

    format: "packed"; "compressed-tensors", of which the decoder's layers alone are quantized, to int8 or int4; "gguf",
    one file; None: what the name of `out` says, packed or gguf. to: a key of `FORMATS`, for every matrix. embed:
    another for the embedding table, which is the head too. bits: instead of both, a mix of at most so many bits a
    weight, chosen by what each kind of matrix was measured to cost. method: "rtn" rounds to nearest, in Q4_K and
    Q6_K by scales that are searched for; "gptq" calibrates on `text` (None: the built-in one), whose name the report
    gives.
    progress: what is done, how much of it, and all of it.

    Raises GemmaryError, with nothing at `out`, for options that do not fit, a text that is too short, a model whose
    rows do not divide into blocks, or a disk that refuses. What was done by then is kept beside `out` for the next run.
    """
    told = progress or (lambda what, done, total: None)
    out = Path(out).expanduser()
    format = format or ("gguf" if out.suffix == ".gguf" else "packed")
    _check(out, format, to, method, embed, bits)
    checkpoint = open_named(model)
    config = text_config(checkpoint) if format == "gguf" else checkpoint.config
    reads = method == "gptq" or bits is not None
    ids = calibration_ids(checkpoint, text) if reads else []
    if bits is not None:
        measuring = partial(told, "measuring sensitivity")
        formats = mixed(checkpoint, bits, ids, measuring, layers_only=format == compressed.METHOD)
    else:
        formats = uniform(checkpoint, FORMATS[to], FORMATS[embed] if embed else None)
    if format == compressed.METHOD:
        formats = {t.name: formats[t.name] for t in tensors(config) if compressed.is_packed(t)}
    kept = {t.name for t in tensors(config)}
    formats = {name: found for name, found in formats.items() if name in kept}
    stored = tuple(sorted({checkpoint.lookup(name).format for name in formats}))
    notices = list(checkpoint.notices)
    if bits is None:
        notices += fallbacks(config, FORMATS[to], FORMATS[embed] if embed else None)
    if twice := [format for format in stored if format not in FLOATS]:
        notices.append(
            f"weights stored as {', '.join(twice)} are dequantized and quantized again, which loses accuracy twice: "
            "start from the unquantized checkpoint where you can"
        )
    job = {
        "version": 1,
        "source": [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in _files(checkpoint.path)],
        "name": checkpoint.name,
        "method": method,
        "formats": formats,
        "ids": hashlib.sha256(np.array(ids, dtype=np.int64).tobytes()).hexdigest(),
    }
    said = {"text": text_name if text is not None else "built-in", "tokens": len(ids)} if reads else None

    with open_parts(out, job) as parts:
        if len(parts):
            notices.append(f"{len(parts)} of {len(formats)} matrices were done by an earlier run")
        result = in_blocks(checkpoint, formats, method, ids, parts, told)
        stated: list[Quality] = []

        def state_quality(made: Path) -> None:
            found = quality.measure(made, model, checkpoint, threads, told)
            held = open_checkpoint(made).formats()
            held = {t.name: held[t.name] for t in tensors(config) if t.blocks("Q8_0")}
            kinds: dict[str, set[str]] = {}
            for name, block_type in held.items():
                kinds.setdefault(kind_of(name), set()).add(block_type)
            stated.append(
                Quality(
                    checkpoint.name,
                    stored,
                    method,
                    said,
                    {kind: ", ".join(sorted(types)) for kind, types in kinds.items()},
                    bits_per_weight(checkpoint, held),
                    found if isinstance(found, Measured) else None,
                    found if isinstance(found, str) else None,
                )
            )
            write_json(quality.beside(made), stated[0].to_dict())

        if format == "gguf":
            with staged(out, is_folder=False) as place:
                notices += save_gguf(result, place / out.name, None, progress)
                state_quality(place / out.name)
        else:
            save = save_packed if format == "packed" else save_compressed
            notices += save(result, out, None, progress=progress, finish=state_quality)
    return Quantized(out, format, stated[0], tuple(notices))


def in_blocks(
    checkpoint: Checkpoint, formats: dict[str, str], method: str, ids: list[int], parts: Parts, progress: Progress
) -> Checkpoint:
    """The checkpoint with the matrices of `formats` in blocks, which lie in `parts`. method and ids: as `quantize` has
    them, and `calibration_ids` gives them. Raises GemmaryError where there is no room for calibrating."""
    work = _Work(checkpoint, formats, parts, progress)
    if method == "gptq":
        work.calibrate(ids)
    work.round(formats)
    return work.result()


def working_bytes(checkpoint: Checkpoint, tokens: int) -> int:
    """Memory that calibrating takes: H, its damped copy, their factor and its work in float64 [C, C] for the widest
    matrix of the layers, that matrix in float32 twice, and what is computed for the tokens of a text."""
    shapes = [t.shape for t in tensors(checkpoint.config) if t.name.startswith("layers.") and not t.is_norm]
    rows, columns = max(shapes, key=lambda shape: shape[1])
    return 4 * 8 * columns**2 + 2 * 4 * rows * columns + 4 * 4 * tokens * columns


class _Work:
    """The matrices of one job, those that are done in `parts`."""

    def __init__(self, checkpoint: Checkpoint, formats: dict[str, str], parts: Parts, progress: Progress) -> None:
        self._checkpoint, self._formats, self._parts, self._progress = checkpoint, formats, parts, progress
        self._counts = {t.name: prod(t.shape) for t in tensors(checkpoint.config) if t.name in formats}
        self._done: dict[str, Blocks] = {}
        for tensor in tensors(checkpoint.config):
            if tensor.name in formats:
                found = parts.get(tensor.name, formats[tensor.name], (tensor.shape[0], tensor.shape[1]))
                if found is not None:
                    self._done[tensor.name] = found

    def calibrate(self, ids: list[int]) -> None:
        """Every matrix of the decoder by GPTQ. The text goes through twice: once through the source, for what arrives
        at the head, which is the table that the second reading begins with."""
        config = self._checkpoint.config
        layers = {name for name in self._formats if name.startswith("layers.")}
        has_table = "embed" in self._formats
        if layers <= self._done.keys() and (not has_table or "embed" in self._done):
            return
        require(
            working_bytes(self._checkpoint, len(ids)), f"calibrating {self._checkpoint.name}", "choose the method rtn"
        )
        if has_table and config.bidirectional:  # its table is no head, and is only looked up in
            self.round(["embed"])
        elif has_table and "embed" not in self._done:
            hidden = run(config, self._checkpoint.lookup, ids, set(), self._arrived)
            leaf = self._checkpoint.lookup("embed")
            self._keep("embed", gptq.pieces(self._formats["embed"], leaf, gptq.curvature(hidden), TABLE_DAMPING))
        run(config, self._lookup, ids, layers, self._arrived)

    def round(self, names: Iterable[str]) -> None:
        """Those that are not done to nearest."""
        for name in names:
            if name in self._done:
                continue
            leaf = self._checkpoint.lookup(name)
            if isinstance(leaf, Affine):  # its rows may need filling up; one of the tower's is small
                leaf = quantized(leaf.weight, self._formats[name])
            self._keep(name, pieces(leaf, self._formats[name]))

    def result(self) -> Checkpoint:
        """The model with the blocks in it."""
        leaves: dict[str, Callable[[], Leaf]] = {name: partial(self._lookup, name) for name in self._checkpoint.leaves}
        return replace(self._checkpoint, leaves=leaves)

    def _lookup(self, name: str) -> Leaf:
        leaf = self._checkpoint.lookup(name)
        done = self._done.get(name)
        if done is None:
            return leaf
        return Affine(done, leaf.bias) if isinstance(leaf, Affine) else done

    def _arrived(self, name: str, leaf: Leaf, hessian: npt.NDArray[np.float64]) -> Leaf:
        if name not in self._done:
            self._keep(name, gptq.pieces(self._formats[name], leaf, hessian))
        return self._done[name]

    def _keep(self, name: str, made: Iterable[npt.NDArray[np.uint8]]) -> None:
        shape = self._checkpoint.lookup(name).shape
        self._done[name] = self._parts.put(name, self._formats[name], (shape[0], shape[1]), made)
        self._progress("quantizing", sum(self._counts[done] for done in self._done), sum(self._counts.values()))


def _check(out: Path, format: str, to: str, method: str, embed: str | None, bits: float | None) -> None:
    for asked in (to, *([embed] if embed else [])):
        if asked not in FORMATS:
            raise GemmaryError(f"matrices cannot be quantized to {asked!r}: choose {', '.join(FORMATS)}")
    if method not in METHODS:
        raise GemmaryError(f"no method is called {method!r}: choose {' or '.join(METHODS)}")
    if embed == Q4_K_M:
        raise GemmaryError(f"{Q4_K_M} is a mix for a whole model: choose one type for --embed")
    wanted = {FORMATS[asked] for asked in (to, embed) if asked}
    if method == "gptq" and bits is None and not wanted <= GRIDS.keys():
        raise GemmaryError(f"gptq makes {', '.join(GRIDS)}; for Q4_K, Q6_K and {Q4_K_M} choose the method rtn")
    if format not in ("packed", "gguf", compressed.METHOD):
        raise GemmaryError(f"no format is called {format!r}: choose packed, gguf or {compressed.METHOD}")
    if (format == "gguf") != (out.suffix == ".gguf"):
        raise GemmaryError(f"{out}: a GGUF file, and nothing else, has a name that ends in .gguf")
    if format == compressed.METHOD and (FORMATS[to] not in compressed.BITS or embed is not None):
        raise GemmaryError(f"{compressed.METHOD} holds layers of int8 or int4, and the embedding table as it was")
    if bits is not None and embed is not None:
        raise GemmaryError("--bits chooses the format of the embedding table too: leave --embed out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GemmaryError(f"{out} already exists: choose another name or remove it")


def calibration_ids(checkpoint: Checkpoint, text: str | None) -> list[int]:
    """The calibration text's tokens (None: of the built-in one). Raises GemmaryError where there are too few."""
    if checkpoint.tokenizer is None:
        raise GemmaryError(f"{checkpoint.name} has no tokenizer to read a calibration text with")
    ids = checkpoint.tokenizer.encode(calibration_text() if text is None else text, bos=True)
    if len(ids) < LEAST_TOKENS:
        raise GemmaryError(f"the calibration text has {len(ids):,} tokens, and {LEAST_TOKENS} are needed at least")
    return ids


def _files(path: Path) -> list[Path]:
    """The files of a checkpoint; none of random weights."""
    return sorted(file for file in (path, *path.rglob("*")) if file.is_file())
