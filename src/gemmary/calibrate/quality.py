"""What a quantization cost, measured, in a file beside the weights that says it: `quality.json`."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.checkpoints.json_files import read_json
from gemmary.errors import GemmaryError
from gemmary.memory import available_bytes, size

if TYPE_CHECKING:
    from gemmary.checkpoints import Checkpoint
    from gemmary.checkpoints.convert import Progress

FILE = "quality.json"
MEASURED_ON = "the built-in text of `gemmary verify`"


@dataclass(frozen=True)
class Measured:
    """The quantized model against its source, on a text that was not calibrated on. Likelihoods in nats."""

    text: str
    tokens: int
    mean_kl: float | None
    """KL(source ‖ quantized), mean over the positions. None for an embedding model, as all that follow."""
    top1_agreement: float | None
    nll: float | None
    nll_source: float | None
    perplexity: float | None
    perplexity_source: float | None
    cosine: float | None
    """The least similarity of two embeddings of one text; None for a model that writes."""


@dataclass(frozen=True)
class Quality:
    """How a model was quantized, and what that cost."""

    source: str
    source_formats: tuple[str, ...]
    """What the source stores its matrices in: anything but floats was rounded twice."""
    method: str
    calibration: dict[str, Any] | None
    """The text and its tokens; None where the method reads none."""
    formats: dict[str, str]
    """The format of the matrices, by their kind (`embed`, `layers.down`, …); of a mix within a kind all of them."""
    bits_per_weight: dict[str, float]
    """Of `all` matrices, the embedding table (`embed`) and the `others`, scales included."""
    measured: Measured | None
    why_not_measured: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def beside(path: Path) -> Path:
    """Where the quality of a folder, or of a single file, is said."""
    return path / FILE if path.is_dir() else path.with_name(f"{path.name}.{FILE}")


def measure(
    made: Path, name: str | Path, checkpoint: Checkpoint, threads: int | None, progress: Progress
) -> Measured | str:
    """What was made against the model `name`, opened as `checkpoint`, that it was made from; or why that fails."""
    from gemmary.api import load
    from gemmary.verify import verify

    needed = checkpoint.stored_bytes() + sum(file.stat().st_size for file in [made, *made.glob("*.safetensors")])
    free = available_bytes()
    if free is not None and needed > free:
        return f"source and result need {size(needed)} of memory together, and {size(free)} were available"
    try:
        with (
            load(made, threads=threads, packed_copy=False) as model,
            load(name, threads=threads, packed_copy=False) as source,
        ):
            found = verify(model, source, progress=lambda done, total: progress("measuring", done, total))
    except GemmaryError as error:
        return str(error)

    def perplexity(nll: float | None) -> float | None:
        return math.exp(nll) if nll is not None and nll < 700 else None

    return Measured(
        MEASURED_ON,
        found.tokens,
        found.mean_kl,
        found.top1_agreement,
        found.nll_model,
        found.nll_against,
        perplexity(found.nll_model),
        perplexity(found.nll_against),
        found.cosine,
    )


def read(path: Path) -> dict[str, Any] | None:
    """What a model on disk says of its quality; None where it says nothing. Raises GemmaryError for an unsound file."""
    stated = beside(path)
    return read_json(stated) if stated.is_file() else None


def lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Names and values to show of what `read` gave (from anyone's file: nothing in it is taken for granted)."""
    bits = found.get("bits_per_weight")
    rows = [("quantized by", f"{found.get('method')} from {found.get('source')}")]
    if isinstance(bits, dict):
        rows.append(("bits per weight", ", ".join(f"{_number(value)} {name}" for name, value in bits.items())))
    measured = found.get("measured")
    if not isinstance(measured, dict):
        return [*rows, ("quality", f"not measured: {found.get('why_not_measured')}")]
    said = [f"{name} {_number(measured[key])}" for key, name in _SHOWN.items() if measured.get(key) is not None]
    return [*rows, ("quality", f"{', '.join(said)} ({measured.get('tokens')} tokens of {measured.get('text')})")]


_SHOWN = {
    "mean_kl": "mean KL",
    "top1_agreement": "top-1 agreement",
    "perplexity": "perplexity",
    "perplexity_source": "of the source",
    "cosine": "least cosine",
}


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ascii(value)
