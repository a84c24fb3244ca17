"""How fast a model is here, measured so that the figure can be repeated.

Each round reads a prompt of real text of a stated length and then writes a stated number of tokens, greedily and past
any end token, so prefill and decode alternate and slow drift of the machine falls on both. A first round warms up and
is not counted. Of every figure the median and the least and largest are told; nothing is left out.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from gemmary.api import Model

WARM_UP = 1
"""Rounds before those that count."""


@dataclass(frozen=True)
class Spread:
    """A figure over several runs."""

    median: float
    min: float
    max: float
    runs: tuple[float, ...]

    @classmethod
    def of(cls, runs: Sequence[float]) -> Spread:
        return cls(statistics.median(runs), min(runs), max(runs), tuple(runs))


@dataclass(frozen=True)
class Measurement:
    """What was measured, and of what. Seconds and tokens a second are of the wall clock."""

    model: str
    engine: str
    device: str
    dtype: str
    formats: dict[str, int]
    """Bytes of weights held, by format."""
    threads: int
    draft: str | None
    """The model that guessed, besides the text itself."""
    context: int
    prefill: int
    """Tokens of the prompt."""
    decode: int
    """Tokens written after the first, each by a step of its own, with the prompt in the cache."""
    repeat: int
    warm_up: int
    prefill_tokens_per_s: Spread
    decode_tokens_per_s: Spread
    first_token_s: Spread
    """From the request to its first token, the whole prompt read."""
    load_s: Spread
    """Of the one load, whatever of the file the system's cache held."""
    peak_rss_bytes: int
    """The most memory the process had at once, mapped pages of the file among it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench(
    load: Callable[[], Model],
    *,
    prefill: int = 512,
    decode: int = 128,
    repeat: int = 5,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Loads a model once and measures `repeat` rounds of it. progress: what, rounds done, rounds in all.

    Raises GemmaryError where prefill and decode do not fit the context, or the model writes no text.
    """
    begin = time.perf_counter()
    model = load()
    load_s = time.perf_counter() - begin
    check_context(model, prefill, decode)
    ids = prompt_ids(model, prefill)
    rounds = []
    for number in range(WARM_UP + repeat):
        # Tokens past the first: the prompt's last step gives the first one.
        options: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "cache_prompt": False}
        completion = model.generate(ids, max_tokens=decode + 1, **options)
        if number >= WARM_UP:
            rounds.append(completion.stats)
        if progress:
            progress("measuring rounds", number + 1, WARM_UP + repeat)
    return Measurement(
        model=model.name,
        engine=model.info.engine,
        device=model.info.device,
        dtype=model.info.dtype,
        formats=dict(model.info.formats),
        threads=model.info.threads,
        draft=model.draft.name if model.draft else None,
        context=model.context,
        prefill=prefill,
        decode=decode,
        repeat=repeat,
        warm_up=WARM_UP,
        prefill_tokens_per_s=Spread.of([stats.prefill_tokens_per_s for stats in rounds]),
        decode_tokens_per_s=Spread.of([stats.decode_tokens_per_s for stats in rounds]),
        first_token_s=Spread.of([stats.first_token_s for stats in rounds]),
        load_s=Spread.of([load_s]),
        peak_rss_bytes=peak_rss_bytes(),
    )


def check_context(model: Model, prefill: int, decode: int) -> None:
    """Raises GemmaryError where a prompt, its answer and the token after it do not fit the model's context."""
    if prefill + decode + 1 > model.context:
        raise GemmaryError(
            f"--prefill {prefill} and --decode {decode} do not fit the context of {model.context:,}: lower one of them"
        )


def prompt_ids(model: Model, length: int) -> list[int]:
    """BOS and real text, repeated to `length` tokens."""
    from gemmary.verify import builtin_text

    ids = list(model.tokenizer.encode(builtin_text(), bos=True))
    body = ids[1:]
    while len(ids) < length:
        ids += body
    return ids[:length]


def peak_rss_bytes(status: Path = Path("/proc/self/status")) -> int:
    """The largest resident set of this process. Linux's `ru_maxrss` would carry over that of the parent."""
    if status.is_file():
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024
