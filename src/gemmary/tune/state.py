"""Checkpoints of a run: all that it needs to go on as if it had never stopped, to the bit.

    checkpoints/step-00000200/
      weights.safetensors      what is trained, float32
      optimizer-KEY.safetensors  the optimizer's state, one file for each of its keys (exp_avg, ...)
      rng.safetensors          the generators' states (order of data needs none: a position fixes it)
      state.json               step, position in the data, best loss, and the settings that may not change
      SHA256SUMS               checked before anything is believed

A folder appears under its name only when all of it is on the disk. No pickle is written or read.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gemmary.checkpoints import safetensors
from gemmary.checkpoints.json_files import read_json, write_json
from gemmary.errors import GemmaryError
from gemmary.files import HashingFile, atomic_folder, check_folder, fsync_folder
from gemmary.tune.parallel import ALONE, World, gather, shared_as

Tensors = dict[str, torch.Tensor]
_NAME = re.compile(r"step-(\d{8,})")
_DTYPES = {torch.float32: "F32", torch.uint8: "U8"}
_OPTIMIZER = "optimizer-"


@dataclass
class State:
    """How far a run is. Everything in it is the same however often the run was interrupted."""

    step: int = 0
    """Updates done."""
    epoch: int = 0
    index: int = 0
    """Micro-batches of the epoch that are done."""
    tokens: int = 0
    scored: int = 0
    """Tokens seen so far, and those of them that counted."""
    loss: float | None = None
    """Of the last step."""
    first_val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    waited: int = 0
    """Evaluations since the best one."""
    stopped: bool = False
    """Early stopping has ended the run."""


@dataclass
class Snapshot:
    """One checkpoint in memory: file -> name -> tensor, and what state.json holds."""

    state: State
    fixed: dict[str, Any]
    """What a resumed run must agree with: settings by key, and digests of what lies outside the settings."""
    files: dict[str, Tensors] = field(default_factory=dict)
    seconds: float = 0.0
    """Spent in training; of no account to what is computed."""


# Between a run and tensors by name ----------------------------------------------------------------------------------


def capture(
    trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, world: World = ALONE
) -> dict[str, Tensors]:
    """The tensors of a run by file and name, for the process that leads; views where they are on the CPU, so to be
    written before the next step."""
    files: dict[str, Tensors] = {"weights": gather(trained, world)}
    kept: dict[str, Tensors] = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state[parameter].items():
            kept.setdefault(_OPTIMIZER + key, {})[name] = value
    files |= {file: gather(values, world) for file, values in kept.items()}
    files["rng"] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        files["rng"] |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return files


def restore(
    files: Mapping[str, Tensors], trained: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """Puts back what `capture` gave, whatever the number of processes was. Raises GemmaryError where the names or
    shapes are not those of this run."""
    put_weights(files, trained)
    order = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    kept: dict[int, Tensors] = {}
    for file in (file for file in files if file.startswith(_OPTIMIZER)):
        for name, value in files[file].items():
            moved = kept.setdefault(order[id(trained[name])], {})
            moved[file.removeprefix(_OPTIMIZER)] = shared_as(value, trained[name])
    optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(files["rng"]["cpu"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in files["rng"]:
            torch.cuda.set_rng_state(files["rng"][f"cuda.{i}"], i)


def put_weights(files: Mapping[str, Tensors], trained: Mapping[str, nn.Parameter]) -> None:
    """The trained weights alone. Raises GemmaryError where the names or shapes are not those of this run."""
    weights = files["weights"]
    if weights.keys() != trained.keys() or any(weights[n].shape != p.shape for n, p in trained.items()):
        raise GemmaryError("the checkpoint's trained weights are not those of this model and these settings")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(shared_as(weights[name], parameter))


# Between tensors by name and the disk -------------------------------------------------------------------------------


class Checkpoints:
    """The folder `checkpoints` of a run. Keeps the newest `keep`, and the best one."""

    def __init__(self, folder: Path, keep: int, notice: Callable[[str], None]) -> None:
        self.folder = folder
        self._keep = keep
        self._notice = notice

    def save(self, snapshot: Snapshot) -> Path:
        """Writes one, whole or not at all, and removes those that are kept no longer. One that is there is left: the
        same step of the same run has the same bytes.

        Raises GemmaryError where the disk refuses; the checkpoints before it stand as they were.
        """
        path = self._path(snapshot.state.step)
        if path.exists():
            return path
        with atomic_folder(path) as folder:
            for name, tensors in snapshot.files.items():
                with open(folder / f"{name}.safetensors", "wb") as file:
                    plan = [(key, _DTYPES[t.dtype], tuple(t.shape)) for key, t in tensors.items()]
                    safetensors.write(HashingFile(file), plan, (_pieces(t) for t in tensors.values()))
            rest = {"state": asdict(snapshot.state), "fixed": snapshot.fixed, "seconds": snapshot.seconds}
            write_json(folder / "state.json", rest)
        self._thin(snapshot.state)
        return path

    def newest(self) -> Snapshot | None:
        """The newest one that is whole. Broken ones are told of and removed, as is what a save cut short left."""
        self.sweep()
        for step in reversed(self.steps()):
            try:
                found = self.load(step)
            except GemmaryError as error:
                self._notice(f"{error}: it is set aside for the one before it")
                self._remove(self._path(step))
            else:
                self._thin(found.state)
                return found
        return None

    def load(self, step: int) -> Snapshot:
        """One of them. Raises GemmaryError where it is missing or not what was written."""
        path = self._path(step)
        check_folder(path)
        rest = read_json(path / "state.json")
        try:
            state = State(**rest["state"])
            snapshot = Snapshot(state, dict(rest["fixed"]), seconds=float(rest["seconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise GemmaryError(f"{path} was written by another version") from error
        for file in sorted(path.glob("*.safetensors")):
            snapshot.files[file.stem] = _read(file)
        if not {"weights", "rng"} <= snapshot.files.keys():
            raise GemmaryError(f"{path} was written by another version")
        return snapshot

    def steps(self) -> list[int]:
        """Of the checkpoints there are, ascending."""
        found = self.folder.iterdir() if self.folder.is_dir() else iter(())
        return sorted(int(match[1]) for path in found if (match := _NAME.fullmatch(path.name)))

    def sweep(self) -> None:
        """Removes what a kill in the midst of a save or a removal left."""
        if self.folder.is_dir():
            for path in self.folder.glob(".step-*.tmp"):
                shutil.rmtree(path, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def _thin(self, state: State) -> None:
        """Removes those that are kept no longer once that of `state` is the newest."""
        for step in self.steps()[: -self._keep]:
            if step != state.best_step:
                self._remove(self._path(step))

    def _remove(self, path: Path) -> None:
        """First out of sight, so that what is half removed is never taken for a checkpoint."""
        hidden = path.with_name(f".{path.name}.removed.tmp")
        try:
            path.rename(hidden)
            fsync_folder(self.folder)
            shutil.rmtree(hidden)
        except OSError as error:
            raise GemmaryError(f"cannot remove the old checkpoint {path}: {error.strerror or error}") from error


def _pieces(tensor: torch.Tensor) -> Iterator[np.ndarray[Any, Any]]:
    yield tensor.cpu().numpy().reshape(-1)


def _read(path: Path) -> Tensors:
    file = safetensors.SafetensorsFile(path)
    tensors: Tensors = {}
    for name, entry in file.entries.items():
        array = file.data(name).copy()
        array = array if entry.dtype == "U8" else array.view(np.float32)
        tensors[name] = torch.from_numpy(array).reshape(entry.shape)
    return tensors
