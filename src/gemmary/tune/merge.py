"""An adapter put into the weights that it was trained on, for programs that know no adapters.

The sum is formed in float32 from unquantized weights, a few rows of one tensor at a time, and rounded or quantized
once, as it is stored. What was stored is then held against base and adapter before it gets its name: a merge that
changed the answers more than its format excuses leaves nothing behind.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.api import GemmaryWarning, load
from gemmary.calibrate.formats import FORMATS as CALIBRATED
from gemmary.calibrate.formats import uniform
from gemmary.calibrate.parts import open_parts
from gemmary.calibrate.quantize import METHODS, calibration_ids, in_blocks
from gemmary.checkpoints import Checkpoint, open_named, save_checkpoint
from gemmary.checkpoints.convert import Progress
from gemmary.checkpoints.peft import read_adapter
from gemmary.errors import GemmaryError
from gemmary.files import fsync_folder
from gemmary.quantize.leaves import FLOATS, Leaf, with_weight
from gemmary.quantize.lora import LoraWeights, merged_rows
from gemmary.verify import INT4, INT8, SAME, Limits, Report, verify

FORMATS = ("safetensors", "packed", "gguf")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Merged:
    """A leaf: a weight with an adapter in it, float32, made a few rows at a time when they are asked for."""

    base: Leaf
    weights: LoraWeights

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    @property
    def format(self) -> str:
        return "F32"

    @property
    def nbytes(self) -> int:
        return 4 * int(np.prod(self.shape, dtype=np.int64))

    def dequantize(self) -> npt.NDArray[np.float32]:
        return self.rows(np.arange(self.shape[0]))

    def rows(self, index: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        return merged_rows(self.base, self.weights, index)

    def stored(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self.rows(np.arange(start, stop)).reshape(-1).view(np.uint8)

    def release(self, start: int, stop: int) -> None:
        self.base.release(start, stop)


@dataclass(frozen=True)
class MergeResult:
    """What was written, how near it is to base and adapter, and what a user should be told."""

    path: Path
    format: str
    dtype: str
    report: Report
    notices: tuple[str, ...]


def merge(
    model: str | Path,
    adapter: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    quant: str | None = None,
    method: str = "rtn",
    text: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Writes `model` with the adapter of folder `adapter` in its weights to `out`, and compares the two.

    format: "safetensors" (a Hugging Face folder), "packed" (a folder for the native engine) or "gguf"; None: "gguf" for
    a name that ends so, "packed" where `quant` is given, else "safetensors". quant: "int8" or "int4" quantizes the
    merged weights (packed and gguf); method: to nearest ("rtn"), or calibrated ("gptq") on `text` (None: the built-in
    one), as `gemmary.calibrate` does it. dtype: of those that are not, "float32", "bfloat16" or "float16"; None: as the
    model's are stored, "bfloat16" where they are quantized. progress: what, how much of it is done, and all of it.

    Raises GemmaryError, with nothing left behind, where something does not fit, the disk refuses, or the merged model
    differs from base and adapter beyond the limits that `verify` has for the format that is written.
    """
    out = Path(out).expanduser()
    format = format or ("gguf" if out.suffix == ".gguf" else "packed" if quant else "safetensors")
    if quant is not None and (dtype is not None or format == "safetensors"):
        why = "dtype says otherwise" if dtype else "a Hugging Face folder has no blocks, choose packed or gguf"
        raise GemmaryError(f"the merged weights cannot be stored as {quant}: {why}")
    if method not in METHODS or (method == "gptq" and quant is None) or (method == "rtn" and text is not None):
        raise GemmaryError("weights are quantized by rtn, which reads no text, or by gptq: give quant with it")
    if out.exists() and (out.is_file() != (format == "gguf") or (out.is_dir() and any(out.iterdir()))):
        raise GemmaryError(f"{out} already exists: choose another name or remove it")
    checkpoint = open_named(model)
    source, notices = _source(checkpoint, adapter), []
    held = checkpoint.lookup("layers.0.gate").format
    stored = quant or dtype or _DTYPES.get(held, "bfloat16")
    if held not in FLOATS:
        notices.append(f"the model's weights are stored as {held}: dequantized exactly, merged, and stored as {stored}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp") as folder:
            staged = Path(folder) / out.name
            if quant is not None and method == "gptq":
                formats, ids = uniform(source, CALIBRATED[quant]), calibration_ids(source, text)
                with open_parts(staged, {}) as parts:
                    made = in_blocks(source, formats, method, ids, parts, progress or (lambda what, done, total: None))
                    notices += save_checkpoint(made, staged, format=format, progress=progress)
            else:
                notices += save_checkpoint(source, staged, format=format, dtype=stored, progress=progress)
            # What the base lost by its own format is lost on both sides: only the one that is written excuses anything.
            limits = INT4 if quant == "int4" else SAME if quant is None and held in FLOATS else INT8
            report = _compare(model, adapter, staged, limits, threads, progress)
            if not report.passed:
                advice = f": try {'int8' if method == 'gptq' else 'gptq, or int8'}" if quant == "int4" else ""
                raise GemmaryError(
                    f"the merged model is not base and adapter: {'; '.join(report.failures)} ({limits.name}); "
                    f"nothing was written{advice}"
                )
            os.replace(staged, out)
        fsync_folder(out.parent)
    except OSError as error:
        raise GemmaryError(f"cannot write {out}: {error.strerror or error}; nothing was written") from error
    return MergeResult(out, format, stored, report, (*checkpoint.notices, *notices))


def _source(checkpoint: Checkpoint, adapter: str | Path) -> Checkpoint:
    """The checkpoint with merged leaves in place of its own."""
    read = read_adapter(adapter, checkpoint.config)

    def leaf(name: str, weights: LoraWeights | None) -> Callable[[], Leaf]:
        if weights is None:
            return checkpoint.leaves[name]
        return lambda: with_weight(checkpoint.lookup(name), lambda base: Merged(base, weights))

    leaves = {name: leaf(name, read.weights.get(name)) for name in checkpoint.names()}
    template = read.chat_template
    return replace(
        checkpoint,
        leaves=leaves,
        load_chat_template=checkpoint.load_chat_template if template is None else lambda: template,
    )


def _compare(
    model: str | Path,
    adapter: str | Path,
    staged: Path,
    limits: Limits,
    threads: int | None,
    progress: Progress | None,
) -> Report:
    def told(done: int, total: int) -> None:
        if progress is not None:
            progress("comparing tokens", done, total)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GemmaryWarning)  # how the two were loaded is no news here
        with (
            load(model, adapter=adapter, threads=threads, packed_copy=False) as base,
            load(staged, threads=threads, packed_copy=False) as merged,
        ):
            return verify(merged, base, limits=limits, progress=told)
