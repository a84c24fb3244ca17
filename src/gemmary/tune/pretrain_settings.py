"""What a run from scratch is: text or image rows, a vocabulary's size, a shape, and how `tune` is to train it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gemmary.checkpoints.fields import periodic
from gemmary.config import Config, VisionConfig
from gemmary.errors import GemmaryError
from gemmary.tune.options import Options, number, option, plain_value, whole
from gemmary.tune.options import text as a_text
from gemmary.tune.settings import Settings
from gemmary.tune.vocabulary import SMALLEST
from gemmary.zoo import alternating

_SETTINGS = {each.name: each for each in fields(Settings)}


def like_tune(name: str, **default: Any) -> Any:
    """The option of `gemmary tune` with this name, or the same with another default."""
    theirs = _SETTINGS[name]
    if not default:
        return field(default=theirs.default, metadata=theirs.metadata)
    return option(**{**theirs.metadata, "help": theirs.metadata["help"].partition(" (default")[0]}, **default)


def places(value: Any) -> tuple[str, ...]:
    """Files, folders and globs, as a list or as one."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list | tuple) or not found or not all(isinstance(each, str) and each for each in found):
        raise ValueError("one or more of: a .txt or .jsonl file, a folder of them, a glob")
    return tuple(found)


def tower(value: Any) -> VisionConfig:
    """A shape as keys (`{image_size: 128, …}`), or as text with commas (`image_size=128,…`)."""
    if isinstance(value, VisionConfig):
        return value
    if isinstance(value, str):
        value = dict(part.strip().partition("=")[::2] for part in value.split(","))
    gemma3 = {"pool": 1, "soft_norm": False}  # as they are in PaliGemma, where settings written down say them
    known = [each.name for each in fields(VisionConfig) if each.name not in ("layer_norm_eps", *gemma3)]
    plain = {key: each for key, each in value.items() if gemma3.get(key) != each} if isinstance(value, Mapping) else {}
    if set(plain) - {"layer_norm_eps"} != set(known):
        raise ValueError(f"{', '.join(known)}, each with a whole number")
    eps = number(0, above=True)(value.get("layer_norm_eps", 1e-6))
    try:
        return VisionConfig(**{name: whole(1, 1 << 16)(value[name]) for name in known}, layer_norm_eps=eps)
    except ValueError as error:
        raise ValueError(f"a shape that a tower can have ({error})") from None


@dataclass(frozen=True)
class PretrainSettings(Options):
    """A run from scratch. Names of fields are keys of its YAML file and, with - for _, flags of `gemmary pretrain`.

    The defaults make a model of three million parameters. What a key shares with `gemmary tune`, its meaning too, is
    taken from there. Raises a GemmaryError of one line for a bad value, or for a shape that no Gemma can have.
    """

    out: str = like_tune("out")
    text: tuple[str, ...] | None = option(
        places, "text to learn: .txt and .jsonl files, folders of them, globs", default=None, metavar="PATH"
    )
    data: str | None = option(
        a_text, "image rows to learn, in place of text: as `gemmary tune` takes them", default=None, metavar="PATH"
    )
    held_out: float = option(
        number(0, 1, above=True, below=True),
        "share of the documents, or of the pictures, that is only measured on",
        default=0.05,
        metavar="X",
    )
    validation: float = option(
        number(0, 1, above=True, below=True),
        "share that chooses the best checkpoint",
        default=0.02,
        metavar="X",
    )

    # The tokenizer and the model --------------------------------------------------------------------------------------

    vocab_size: int = option(whole(SMALLEST + 1, 1 << 20), "pieces of the vocabulary", default=4096, metavar="N")
    num_layers: int = option(whole(1, 1024), "layers, by turns local and global", default=6, metavar="N")
    hidden_size: int = option(whole(2), "width", default=192, metavar="N")
    num_heads: int = option(whole(1), "query heads", default=3, metavar="N")
    num_kv_heads: int = option(whole(1), "key heads, that the query heads share", default=1, metavar="N")
    head_dim: int = option(whole(2), "width of a head, even", default=64, metavar="N")
    intermediate_size: int = option(whole(1), "width of the MLP", default=512, metavar="N")
    context_length: int | None = option(
        whole(2), "tokens that the model can see (default: the sequence length)", default=None, metavar="N"
    )
    sliding_window: int | None = option(
        whole(1), "keys that a local layer sees (default: half of the context)", default=None, metavar="N"
    )

    vision: VisionConfig | None = option(  # noqa: RUF009 (a field, as all the others)
        tower,
        "the tower that reads pictures: image_size, patch_size, num_layers, hidden_size, num_heads, intermediate_size",
        default=None,
        metavar="SHAPE",
    )

    # As in `gemmary tune` ---------------------------------------------------------------------------------------------

    steps: int | None = like_tune("steps")
    epochs: float | None = like_tune("epochs")
    batch_size: int = like_tune("batch_size")
    sequence_length: int = like_tune("sequence_length", default=256)
    accumulation: int = like_tune("accumulation")
    augment: bool = like_tune("augment")
    mask_codec: str | None = like_tune("mask_codec")
    learning_rate: float = like_tune("learning_rate", default=3e-3)
    """A hundred times that of tuning: there is nothing yet to be kept, and small models bear (and need) more."""
    schedule: str = like_tune("schedule")
    warmup_steps: int = like_tune("warmup_steps", default=100)
    weight_decay: float = like_tune("weight_decay", default=0.1)
    """As in most recipes for models from scratch since GPT-3's."""
    label_smoothing: float = like_tune("label_smoothing")
    clip: float = like_tune("clip")
    optimizer: str = like_tune("optimizer")
    seed: int = like_tune("seed")
    dtype: str = like_tune("dtype")
    device: str = like_tune("device")
    gradient_checkpointing: str = like_tune("gradient_checkpointing")
    threads: int | None = like_tune("threads")
    evaluate_every: int = like_tune("evaluate_every")
    patience: int | None = like_tune("patience")
    checkpoint_every: int = like_tune("checkpoint_every")
    keep_checkpoints: int = like_tune("keep_checkpoints")
    resume: bool = like_tune("resume")
    json: bool = like_tune("json")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context_length is None:
            object.__setattr__(self, "context_length", self.sequence_length)
        assert self.context_length is not None
        if self.sliding_window is None:
            object.__setattr__(self, "sliding_window", max(1, self.context_length // 2))
        if self.sequence_length > self.context_length:
            raise GemmaryError(
                f"sequence_length {self.sequence_length} is more than context_length {self.context_length}"
            )
        if (self.text is None) == (self.data is None):
            raise GemmaryError("a run from scratch learns from text or from data (image rows): give one of them")
        if (self.vision is None) != (self.data is None):
            raise GemmaryError("vision is the tower of a model that learns from data (image rows): give both")
        if self.held_out + self.validation >= 1:
            raise GemmaryError("held_out and validation take all documents: give them smaller shares")
        self.config()

    def config(self) -> Config:
        """The shape, with all that makes a Gemma 2: two norms a branch, softcaps, a window in every other layer.

        One that sees pictures is a PaliGemma 2 without any of the caps and windows, which only large models need.
        """
        assert self.context_length is not None
        try:
            decoder = Config(
                family="gemma2",
                num_layers=self.num_layers,
                hidden_size=self.hidden_size,
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                head_dim=self.head_dim,
                intermediate_size=self.intermediate_size,
                vocab_size=self.vocab_size,
                context_length=self.context_length,
                layer_types=alternating(self.num_layers),
                query_pre_attn_scalar=self.head_dim,
                sliding_window=self.sliding_window,
                attn_logit_softcap=50.0,
                final_logit_softcap=30.0,
                post_norms=True,
            )
        except ValueError as error:
            raise GemmaryError(f"no Gemma has this shape: {error}") from None
        if self.vision is None:
            return decoder
        return replace(
            decoder,
            family="paligemma2",
            layer_types=periodic(1, self.num_layers),
            sliding_window=None,
            attn_logit_softcap=None,
            final_logit_softcap=None,
            vision=self.vision,
            prefix_lm=True,
        )

    def start(self) -> dict[str, Any]:
        """What the beginning of the run depends on, besides the text: a resumed one must agree."""
        names = [each.name for each in self.options()]
        own = names[names.index("held_out") : names.index("steps")]
        return {name: plain_value(getattr(self, name)) for name in (*own, "seed")}

    def tuning(self, model: Path, data: Path, validation: float | None = None, test: float | None = None) -> Settings:
        """The same for `tune`: over the model that the start has made, into the folder `model`. data: the rows, of
        which shares validate and test; None: what lies beside them."""
        shared = {each.name for each in self.options()} & _SETTINGS.keys() - {"out", "data", "validation"}
        values = {name: getattr(self, name) for name in sorted(shared)}
        places: dict[str, Any] = {"model": str(model), "data": str(data), "out": str(Path(self.out, "model"))}
        return Settings(**places, method="full", validation=validation, test=test, **values)
