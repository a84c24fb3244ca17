"""What an opened checkpoint offers, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from gemmary import zoo
from gemmary.checkpoints import starter
from gemmary.checkpoints.npz import parts_of
from gemmary.config import Config
from gemmary.quantize.leaves import Leaf

if TYPE_CHECKING:
    from gemmary.tokenizer import Tokenizer

MASK_CODEC = "mask_codec.npz"
"""What decodes the masks of a model that was trained with a codec of its own, beside its weights."""
Format = Literal["safetensors", "gguf", "packed", "big_vision", "orbax", "gemma_pytorch", "keras_hub", "random"]


@dataclass
class Checkpoint:
    """A model on disk whose headers were read and found sound. Weights are mapped, and read when they are used.

    One of random weights lies on no disk: its path is its name, and weights are made when they are asked for.
    """

    path: Path
    format: Format
    config: Config
    name: str
    """What the file or folder calls the model."""
    leaves: Mapping[str, Callable[[], Leaf]]
    load_tokenizer: Callable[[], Tokenizer]
    load_chat_template: Callable[[], str | None]
    notices: list[str] = field(default_factory=list)
    """What a user should be told: parts that were set aside, numbers that were reinterpreted. One line each."""
    stored_config: Config | None = None
    """What the file says word by word, where `config` is not that (PaliGemma 2: `config_json.py`)."""
    made_bytes: int = 0
    """Bytes of weights that lie in no file."""
    made_formats: Mapping[str, str] = field(default_factory=dict)
    """Format of each weight, where asking for the weight would make it or read it whole."""
    tower_path: Path | None = None
    """The file beside `path` that holds the tower, where one does."""
    weight_files: tuple[Path, ...] = ()
    """The files that hold the weights, where `path` and its name do not say."""

    def lookup(self, name: str) -> Leaf:
        """The leaf of a name of the tensor table (`layers.3.gate`); norms are zero-centred float32."""
        return self.leaves[name]()

    def names(self) -> list[str]:
        """Every name that `lookup` takes, in the order of the tensor table."""
        return list(self.leaves)

    def formats(self) -> dict[str, str]:
        """Name of each tensor -> the format that it is stored in."""
        return dict(self.made_formats) or {name: self.lookup(name).format for name in self.leaves}

    def stored_bytes(self) -> int:
        """Bytes of weights, before any is read."""
        if self.weight_files:
            weights: Iterable[Path] = self.weight_files
        elif self.format == "big_vision":
            weights = parts_of(self.path)
        else:
            weights = self.path.glob("*.safetensors") if self.path.is_dir() else [self.path] * (not self.made_bytes)
        tower = [] if self.tower_path is None else [self.tower_path]
        return self.made_bytes + sum(file.stat().st_size for file in (*weights, *tower))

    @property
    def mask_codec_file(self) -> Path | None:
        """What decodes the masks that the model writes, where that is its own."""
        file = (self.path if self.path.is_dir() else self.path.parent) / MASK_CODEC
        return file if self.config.vision is not None and file.is_file() else None

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Built when first asked for. Raises GemmaryError where the checkpoint has none, or a corrupt one."""
        made = self.load_tokenizer()
        self.load_tokenizer = lambda: made  # lets go of what it was made from: as much memory again
        return made

    @cached_property
    def chat_template(self) -> str | None:
        """The template's source, never executed: that there is one says that the model is instruction-tuned."""
        return self.load_chat_template()

    @property
    def instruction_tuned(self) -> bool:
        """By the zoo's row where the name has one, else by whether there is a chat template."""
        row = zoo.find(starter.HUB_ID if self.name == starter.NAME else self.name)
        return row.tuning == "instruction" if row else self.chat_template is not None


class Source(Protocol):
    """What `save_checkpoint` writes: a Checkpoint, or a loaded model. tokenizer may be None (tests do that)."""

    @property
    def config(self) -> Config: ...

    @property
    def name(self) -> str: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def mask_codec_file(self) -> Path | None: ...

    def lookup(self, name: str) -> Leaf: ...
