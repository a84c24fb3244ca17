"""What is planned for: a shape, and how its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gemmary import zoo
from gemmary.checkpoints import Checkpoint, hub, open_named
from gemmary.checkpoints.convert import NAMES, stored_bytes
from gemmary.checkpoints.tensors import PADDED_ROWS, tensors
from gemmary.config import Config

_PADDED = {tokens: rows for rows, tokens in PADDED_ROWS.items()}


@dataclass(frozen=True)
class Subject:
    """A model on disk, on the hub or in the mind."""

    name: str
    config: Config
    formats: Mapping[str, str]
    """Name of each tensor -> the format that it is stored in."""
    disk_bytes: int
    """Of its weights as stored."""
    download_bytes: int
    """What is still to be fetched of them."""
    is_made: bool = False
    """Weights are made when they are asked for, each whole (`random:NAME`)."""

    @property
    def stored_as(self) -> str:
        """The format of most of the matrices."""
        return self.formats["layers.0.gate"]

    @property
    def spelled(self) -> str:
        """The same as a user has it: `bfloat16`, `int4`, `Q4_K`."""
        names = {stored: name for name, stored in NAMES.items() if stored != name}
        return names.get(self.stored_as, self.stored_as)


def subject(name: str) -> Subject:
    """What a name means, as `load` takes it; a row of the zoo need not be on this machine.

    Raises GemmaryError as `open_named`.
    """
    row = zoo.find(name)
    hub_name = hub.parse(name)
    if row is not None and hub_name is not None and hub.snapshot_of(hub_name) is None:
        return released(row)
    return of_checkpoint(open_named(name))


def released(row: zoo.Variant) -> Subject:
    """A row of the zoo as it lies on the hub: in bfloat16, the first PaliGemma in float32 (its `main` revision)."""
    held = "F32" if row.config.family == "paligemma" else "BF16"
    formats = {tensor.name: held for tensor in tensors(row.config)}
    nbytes = file_bytes(row.config, held)
    return Subject(row.name, row.config, formats, nbytes, nbytes)


def of_checkpoint(checkpoint: Checkpoint) -> Subject:
    """An opened checkpoint."""
    nbytes = checkpoint.stored_bytes()
    made = checkpoint.format == "random"
    return Subject(checkpoint.name, checkpoint.config, checkpoint.formats(), 0 if made else nbytes, 0, made)


def file_bytes(config: Config, format: str) -> int:
    """Bytes of all tensors in one dense format, with the rows that pad the table in the official files."""
    padded = _PADDED if config.vision is not None else {}
    total = 0
    for tensor in tensors(config):
        rows = padded.get(tensor.shape[0], tensor.shape[0]) if tensor.name == "embed" else tensor.shape[0]
        total += stored_bytes(format, (rows, *tensor.shape[1:]))
        total += stored_bytes(format, tensor.shape[:1]) if tensor.bias else 0
    return total
