"""What a plan says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gemmary.memory import size


@dataclass(frozen=True)
class Plan:
    """The needs of one model, in one format, on one device, for one task. Bytes of memory unless said otherwise."""

    model: str
    task: str
    device: str
    quant: str
    """Format of the weights: `bfloat16`, `int4` …, or that in which they are stored (`Q4_K`)."""
    context: int
    batch: int
    weights_bytes: int
    kv_bytes: int
    """Keys and values of `batch` sequences at the whole context."""
    activation_bytes: int
    """Of the largest step: what its layers hand on, logits, and a picture's way through the tower."""
    optimizer_bytes: int
    """Gradients and the optimizer's state."""
    load_bytes: int
    """What loading takes at its peak besides the weights that will stay."""
    process_bytes: int
    """Interpreter, libraries, tokenizer, and what weights on pages of 2 MiB leave of them."""
    total_bytes: int
    """The most at any time."""
    disk_bytes: int
    """Weights as they are stored; 0 of random ones."""
    download_bytes: int
    """What of them is not here yet."""
    available_bytes: int | None
    """Memory of the device that can be had now; None where nothing tells."""
    fits: bool
    decode_tokens_per_s: float | None = None
    """Of one sequence, the context half full. None where the machine was not measured."""
    prefill_tokens_per_s: float | None = None
    gradient_checkpointing: bool = False
    """A step of training would not fit otherwise: what the layers hand on is computed twice."""

    @property
    def what(self) -> str:
        """Such as `gemma-2-9b at int4 with 8k context`."""
        many = f" for {self.batch} at once" if self.batch > 1 else ""
        task = "" if self.task == "run" else f" for {self.task}"
        return f"{self.model} at {self.quant} with {tokens(self.context)} context{many}{task}"

    @property
    def line(self) -> str:
        """The plan in a line: `gemma-2-9b at int4 with 8k context: 6.10 GB, about 8.1 tokens/s`."""
        speed = self.decode_tokens_per_s
        told = "" if speed is None else f", about {speed:.{1 if speed < 10 else 0}f} tokens/s"
        return f"{self.what}: {size(self.total_bytes)}{told}"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def tokens(count: int) -> str:
    """How a context is told, short where it is round: `8k`, `1,000 tokens of`."""
    return f"{count // 1024}k" if count % 1024 == 0 else f"{count:,} tokens of"
