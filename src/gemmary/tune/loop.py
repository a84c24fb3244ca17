"""`tune`: from settings to a folder with what was learnt, its metrics, its checkpoints and its exact settings."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gemmary.checkpoints import Checkpoint, open_named
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file, fsync_folder
from gemmary.tune.augment import Augment
from gemmary.tune.data import load_data
from gemmary.tune.device import choose_device, choose_dtype, matmul_ceiling, memory_told, training_flops
from gemmary.tune.fit import CHECKPOINTS, Fit
from gemmary.tune.metrics import METRICS, peak_rss_bytes
from gemmary.tune.model import TuneModel, build
from gemmary.tune.packing import Batches
from gemmary.tune.parallel import ALONE, World, gather, joined
from gemmary.tune.progress import Overview, Progress, Result, Silent
from gemmary.tune.room import settle
from gemmary.tune.rows import Example
from gemmary.tune.settings import Settings

CONFIG = "config.yaml"
FREE = {"model", "data", "out", "validation", "test", "device", "threads", "gradient_checkpointing"} | {
    "tensor_parallel",
    "checkpoint_every",
    "keep_checkpoints",
    "resume",
    "json",
}
"""Settings that a resumed run may change: they leave what is computed alone, or it is compared itself."""

_RESULT = ".result.tmp"
_LEFTOVER = re.compile(r"\.{1,2}(config\.yaml|metrics\.jsonl|loss\.png|result)\..*tmp")
"""What a write that a kill cut short leaves in the folder of a run."""


def tune(settings: Settings, progress: Progress | None = None) -> Result:
    """Tunes a model and writes the result into `settings.out`. The same settings and rows give the same bytes, however
    often the run was killed and resumed (with as many threads on the same machine and version of PyTorch).

    Raises GemmaryError for whatever is wrong with settings, rows, model, memory or disk, and KeyboardInterrupt after
    Ctrl-C, with a checkpoint written.
    """
    out = Path(settings.out).expanduser()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    with joined(device, settings.tensor_parallel) as world:
        return _tune(settings, out, device, dtype, world, progress or Silent() if world.leads else Silent())


def _tune(
    settings: Settings, out: Path, device: torch.device, dtype: torch.dtype, world: World, progress: Progress
) -> Result:
    checkpoint = open_named(settings.model)
    data = load_data(settings, checkpoint)
    sizes: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "sequence_length": settings.sequence_length,
        "seed": settings.seed,
    }
    augment = Augment(checkpoint.tokenizer, settings.seed) if settings.augment else None
    batches = Batches(data.train, checkpoint.config, **sizes, augment=augment)
    held_out = [
        Batches(rows, checkpoint.config, **sizes, shuffle=False) if rows else None for rows in (data.valid, data.test)
    ]
    stands = checkpoint.config.vision is not None and not settings.trains_tower
    still = ("the vision tower and its projection stand still",) if stands else ()
    for notice in [*checkpoint.notices, *data.notices, *batches.notices, *still]:
        progress.note(notice)
    with claimed(out, settings.resume, progress, world), memory_told():
        settled = settle(settings, checkpoint, dtype, device)
        torch.manual_seed(settings.seed)
        model = build(checkpoint, settled, device, dtype)
        world.shard(model)
        ceiling = matmul_ceiling(dtype, device)

        def share(tokens: int, scored: int, pictures: int, seconds: float) -> float:
            full, tower = settings.method == "full", settings.trains_tower
            flops = training_flops(checkpoint.config, tokens, scored, full=full, pictures=pictures, tower=tower)
            return flops / seconds / ceiling

        fixed = _fixed(settings, checkpoint, device, dtype, {"data": data.train, "validation": data.valid})
        fit = Fit(
            model, settings, batches, held_out[0], folder=out, fixed=fixed, progress=progress, share=share, world=world
        )
        if world.leads:
            with atomic_file(out / CONFIG) as file:
                file.write(dataclasses.replace(settings, resume=False).to_yaml().encode())
        progress.begin(_overview(fit, settled, checkpoint, device, dtype))
        fit.run()
        test_loss = fit.evaluate(held_out[1]) if held_out[1] is not None else None
        weights = gather(fit.trained, world)
        if world.leads:
            publish(model, weights, out)
    state = fit.state
    done = fit.step_tokens, fit.step_scored, fit.step_pictures, fit.step_seconds
    return Result(
        folder=out,
        steps=state.step,
        stopped_early=state.stopped,
        tokens=state.tokens,
        scored=state.scored,
        loss=state.loss,
        first_val_loss=state.first_val_loss,
        best_val_loss=state.best_val_loss,
        best_step=state.best_step,
        test_loss=test_loss,
        seconds=fit.seconds,
        tokens_per_s=fit.step_tokens / fit.step_seconds if fit.step_tokens else None,
        flops_share=share(*done) if fit.step_tokens else None,
        peak_rss_bytes=peak_rss_bytes(),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


@contextmanager
def claimed(out: Path, resume: bool, progress: Progress, world: World = ALONE) -> Iterator[None]:
    """The folder of a run, for this process alone (or those that it leads). Raises GemmaryError where another run is in
    it, or at work on it."""
    if not world.leads:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        number = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise GemmaryError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            advice = "let it end, or choose another --out"
            raise GemmaryError(f"another process is training into {out}: {advice}") from None
        leftovers = {path for path in out.iterdir() if _LEFTOVER.fullmatch(path.name)}
        holds = {path.name for path in out.iterdir()} - {path.name for path in leftovers}
        if holds and not resume:
            raise GemmaryError(f"{out} already holds something: --resume goes on with a run, or choose another --out")
        if holds and not holds & {CONFIG, METRICS, CHECKPOINTS}:
            raise GemmaryError(f"{out} holds no run to resume: choose another --out")
        for path in leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if resume and not (out / CHECKPOINTS).is_dir():
            progress.note(f"{out} has no checkpoint yet: the run begins at the beginning")
        yield
    finally:
        os.close(number)


def publish(model: TuneModel, weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Saves what was learnt (`weights`, whole) into the folder of the run, each file whole; the weights last."""
    hidden = out / _RESULT
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        model.save(hidden, weights)
        for file in sorted(hidden.iterdir(), key=lambda path: (path.suffix == ".safetensors", path.name)):
            os.replace(file, out / file.name)
        hidden.rmdir()
        fsync_folder(out)
    except OSError as error:
        raise GemmaryError(f"cannot write {out}: {error.strerror or error}; --resume tries again") from error


def _fixed(
    settings: Settings,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype,
    rows: dict[str, Sequence[Example]],
) -> dict[str, Any]:
    """What decides about every bit of the run, by the names that a user knows."""
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name not in FREE}
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    values |= {"model": checkpoint.name, "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    return values | {f"rows of {name}": _digest(examples) for name, examples in rows.items()}


def _digest(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(len(example.tokens).to_bytes(8, "little") + example.prefix.to_bytes(8, "little"))
        digest.update(example.tokens.tobytes() + example.scored.tobytes())
        for picture in example.pictures:
            digest.update(f"{picture.path.name} {picture.stored_bytes}\n".encode())
    return digest.hexdigest()[:16]


def _overview(
    fit: Fit, settings: Settings, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> Overview:
    documents = fit.batches.documents
    tokens = sum(fit.batches.lengths)
    trained = sum(weight.numel() for weight in fit.trained.values())
    adapter = trained if settings.method != "full" else 0
    return Overview(
        model=checkpoint.name,
        method=settings.method,
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        recomputes=settings.gradient_checkpointing == "on",
        trained=trained,
        parameters=checkpoint.config.total_parameters + adapter,
        documents=len(documents),
        tokens=tokens,
        scored=sum(int(document.scored.sum()) for document in documents),
        packing=tokens / (len(fit.batches.packs(0)) * settings.sequence_length),
        steps=fit.steps,
        resumed=fit.state.step,
    )
