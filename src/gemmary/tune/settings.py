"""What a tuning run is: every number and path of it, checked, and the reason for each default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gemmary.errors import GemmaryError
from gemmary.tune.options import Options, as_float, choice, number, option, switch, text, whole

METHODS = ("lora", "qlora", "full")
TARGETS = ("q", "k", "v", "o", "gate", "up", "down", "projector")
"""The linear layers of a block, by their names in the tensor table, and the one between tower and decoder. A tower's
blocks have those of the same name but for `gate`."""
TOWER_TARGETS = ("vision.q", "vision.k", "vision.v", "vision.o", "vision.up", "vision.down")
"""Those of the tower alone."""
_SIGLIP = {"out": "vision.o", "fc1": "vision.up", "fc2": "vision.down"}
"""What Hugging Face calls layers that only a tower has, without `_proj`."""
LEARNING_RATES = {"lora": 2e-4, "qlora": 2e-4, "full": 2e-5}
"""LoRA's is that of the QLoRA paper (arXiv 2305.14314, table 9); a whole model takes about a tenth of an adapter's."""


def targets(value: Any) -> tuple[str, ...]:
    """Names of linear layers, ours or Hugging Face's (`q_proj`, `fc1`), as a list or with commas; `all`: every one."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        names = []
    short = {name.strip().removesuffix("_proj") for name in names}
    short = {_SIGLIP.get(name, name) for name in short}
    if short in ({"all"}, {"all-linear"}):
        return TARGETS
    known = (*TARGETS, *TOWER_TARGETS)
    if not short or short - set(known):
        raise ValueError(f"all, or some of {', '.join(known)}")
    return tuple(name for name in known if name in short)


def rows_apart(value: Any) -> str | float:
    """A path, or a fraction of the rows."""
    share = as_float(value)
    if share is None:
        return text(value)
    if not 0 < share < 1:
        raise ValueError("a path, or a fraction between 0 and 1")
    return share


@dataclass(frozen=True)
class Settings(Options):
    """A tuning run. Names of fields are keys of its YAML file and, with - for _, flags of `gemmary tune`.

    Made by `Settings.read(path, **flags)` or directly; either way a bad value raises a one-line GemmaryError, and what
    depends on other fields (`learning_rate`, `epochs`) is filled in, so that `to_yaml` tells the exact run.
    """

    model: str = option(text, "the model to tune, as `gemmary run` takes it", metavar="MODEL", is_positional=True)
    data: str = option(
        text,
        "rows: a .jsonl or .parquet file, a folder of a datasets library's save_to_disk, or a folder of train.*, "
        "valid.* and test.* of these kinds",
        metavar="DATA",
        is_positional=True,
    )
    out: str = option(text, "the folder for the result, its checkpoints and metrics", metavar="FOLDER")
    method: str = choice(*METHODS, default="lora", help="an adapter, one over an int4 model, or all weights")

    # How long and how much at once -----------------------------------------------------------------------------------

    steps: int | None = option(whole(1), "optimizer steps at most", default=None, metavar="N")
    epochs: float | None = option(
        number(0, above=True),
        "passes over the rows at most (default: 1 where --steps is not given)",
        default=None,
        metavar="N",
    )
    """Whichever of steps and epochs comes first ends the run, so --steps needs no undoing of a file's epochs."""
    batch_size: int = option(whole(1), "packs of documents computed together", default=4, metavar="N")
    sequence_length: int = option(whole(2), "tokens of a pack", default=512, metavar="N")
    """Documents do not see each other in a pack, so it bounds memory and the longest row, and wastes nothing."""
    accumulation: int = option(whole(1), "such batches summed up for one optimizer step", default=1, metavar="N")

    # The optimizer ---------------------------------------------------------------------------------------------------

    learning_rate: float = option(
        number(0, above=True),
        "at its highest (default: 2e-4, or 2e-5 for all weights)",
        default=None,
        metavar="RATE",
    )
    schedule: str = choice(
        "cosine", "linear", "constant", default="cosine", help="how the learning rate falls after the warm-up"
    )
    """Cosine to zero, as in the papers of Gemma's predecessors and most recipes since."""
    warmup_steps: int = option(whole(0), "steps in which the learning rate rises from 0", default=10, metavar="N")
    """Enough for Adam's second moments to mean something; a short run still spends most of its steps at full rate."""
    weight_decay: float = option(number(0), "AdamW's decoupled weight decay", default=0.0, metavar="X")
    """None: a few passes over small data end long before it would matter, and an adapter starts at zero anyway."""
    label_smoothing: float = option(
        number(0, 1, below=True), "learn so much of every other token in place of the target", default=0.0, metavar="X"
    )
    """PaliGemma's transfers to small or noisy data took 0.1 to 0.3. Validation and test are measured without."""
    clip: float = option(number(0), "the gradient's largest norm; 0: any", default=1.0, metavar="NORM")
    optimizer: str = choice(
        "adamw", "adafactor", "muon", default="adamw", help="the second has small state; the third is for new models"
    )

    # The adapter -----------------------------------------------------------------------------------------------------

    lora_rank: int = option(whole(1), "rank of the adapter's matrices", default=16, metavar="R")
    lora_alpha: float = option(
        number(0, above=True), "the adapter counts alpha / rank times", default=32.0, metavar="A"
    )
    """Twice the rank, as is common. PEFT's meaning, so that recipes carry over."""
    lora_dropout: float = option(number(0, 1, below=True), "dropout before the adapter", default=0.0, metavar="P")
    lora_targets: tuple[str, ...] = option(
        targets,
        f"layers with an adapter: all, or some of {','.join(TARGETS)}; vision.NAME: the tower's alone",
        default="all",
        metavar="NAMES",
    )
    """All of them: the QLoRA paper found that only this reaches full tuning (figure 2)."""
    rslora: bool = option(switch, "count the adapter alpha / sqrt(rank) times", default=False)
    dora: bool = option(switch, "learn each weight column's magnitude apart (DoRA)", default=False)

    # Pictures --------------------------------------------------------------------------------------------------------

    train_tower: bool | None = option(
        switch,
        "train the vision tower and its projection, too, or give them adapters (default: with --method full)",
        default=None,
    )
    augment: bool = option(
        switch, "change pictures a little in every epoch: window, mirror image, colours; boxes with them", default=False
    )
    mask_codec: str | None = option(
        text,
        "an .npz file that makes codes of the masks of image rows (default: the model's, or PaliGemma's)",
        default=None,
        metavar="PATH",
    )

    # The machine -----------------------------------------------------------------------------------------------------

    seed: int = option(whole(0, 2**64 - 1), "the same seed gives the same bytes", default=0, metavar="S")
    dtype: str = choice(
        "auto", "float32", "bfloat16", default="auto", help="of computing; auto: bfloat16 where the processor has it"
    )
    """What is trained is kept in float32 whatever this says."""
    device: str = option(text, "auto, cpu, cuda or cuda:N", default="auto", metavar="NAME")
    gradient_checkpointing: str = choice(
        "auto",
        "on",
        "off",
        default="auto",
        help="compute activations twice rather than keep them; auto: if they do not fit",
    )
    tensor_parallel: int = option(
        whole(1), "processes of torchrun that compute each layer together (default: 1)", default=1, metavar="N"
    )
    threads: int | None = option(whole(1), "threads (default: one for each core)", default=None, metavar="N")

    # Watching and keeping --------------------------------------------------------------------------------------------

    validation: str | float | None = option(
        rows_apart,
        "rows to measure on: a path, or a fraction of the data (default: valid.* beside train.*, if there)",
        default=None,
        metavar="PATH|X",
    )
    test: str | float | None = option(
        rows_apart,
        "rows to measure the result on, likewise (default: test.* beside train.*, if there)",
        default=None,
        metavar="PATH|X",
    )
    evaluate_every: int = option(
        whole(1), "steps between measurements on the validation rows", default=100, metavar="N"
    )
    patience: int | None = option(
        whole(1), "end after so many measurements without a better one (default: never)", default=None, metavar="N"
    )
    checkpoint_every: int = option(whole(1), "steps between checkpoints", default=100, metavar="N")
    keep_checkpoints: int = option(whole(1), "checkpoints to keep, besides the best", default=2, metavar="N")
    """Two, so that there is a whole one should the disk lose the newest."""
    resume: bool = option(switch, "go on from the last checkpoint in the out folder", default=False)
    chat_style: str = choice(
        "auto",
        "gemma1",
        "gemma3",
        "raw",
        default="auto",
        help="the chat template of prompt and completion rows; raw: none; auto: the model's, none if it is pretrained",
    )
    json: bool = option(switch, "progress and result as lines of JSON", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.learning_rate:
            object.__setattr__(self, "learning_rate", LEARNING_RATES[self.method])
        if self.steps is None and self.epochs is None:
            object.__setattr__(self, "epochs", 1.0)
        of_tower = {"projector", *TOWER_TARGETS}.intersection(self.lora_targets)
        if of_tower and self.method != "full" and not self.trains_tower and self.lora_targets != TARGETS:
            raise GemmaryError(f"--lora-targets names {min(of_tower)}, of the vision tower: give --train-tower with it")
        fractions = [share for share in (self.validation, self.test) if isinstance(share, float)]
        if sum(fractions) >= 1:
            raise GemmaryError("validation and test take all rows: give them smaller fractions")

    @property
    def trains_tower(self) -> bool:
        """Whether the vision tower and its projection are trained, where the model has them."""
        return self.method == "full" if self.train_tower is None else self.train_tower
