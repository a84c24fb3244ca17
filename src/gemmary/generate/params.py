"""How the next token is chosen and when to stop: what a caller may ask for, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError

Allowed: TypeAlias = "Callable[[Sequence[int]], Sequence[int] | npt.NDArray[np.integer[Any]] | None]"
"""Which tokens may come after those generated so far: at least one, or None for any. A function of these alone."""

MAX_LOGPROBS = 100
"""Alternatives that may be asked for at each token: more would cost memory and tell nothing."""


class SamplingOptions(TypedDict, total=False):
    """The keyword arguments of `generate`, `stream` and `chat`: those of `SamplingParams`."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    seed: int | None
    max_tokens: int | None
    stop: str | int | Sequence[str | int]
    logprobs: int | None
    ignore_eos: bool
    speculate: bool
    cache_prompt: bool


class TextOptions(SamplingOptions, total=False):
    """Those of `generate` and `stream`."""

    allowed: Allowed | None
    """Which tokens may come next; None: any."""


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. The filters apply in the order of the fields below, temperature first (as transformers
    orders them); the repetition penalty comes before all of them.

    The defaults are those of the released Gemma 3 models (temperature 1.0, top-k 64, top-p 0.95; spec 2.4), for
    every family and for pretrained checkpoints too. `temperature=0` is greedy: the likeliest token, always.
    """

    temperature: float = 1.0
    """Logits are divided by it. 0: greedy, and top_k, top_p, min_p and seed have no effect."""
    top_k: int = 64
    """Only the k likeliest tokens (and those tied with the last of them). 0: all."""
    top_p: float = 0.95
    """Only the likeliest tokens whose probabilities first add up to it. 1: all."""
    min_p: float = 0.0
    """Only tokens at least this fraction as likely as the likeliest. 0: all."""
    repetition_penalty: float = 1.0
    """Logits of tokens of the prompt and of the text so far are divided by it, or multiplied if negative. 0.001 to
    1000, so that no logit overflows."""
    seed: int | None = None
    """0 to 2**64 - 1. The same seed gives the same text, whatever else is being generated. None: a fresh one each time,
    told in `Stats.seed`."""
    max_tokens: int | None = None
    """None: what the context leaves."""
    stop: tuple[str | int, ...] = ()
    """Strings that end the text (and are not part of it), and token ids that do, beside the model's own."""
    logprobs: int | None = None
    """None: no log-probabilities. n: those of the chosen token and of the n likeliest (0 to 100)."""
    ignore_eos: bool = False
    """Go on past the model's end-of-text and end-of-turn tokens, up to max_tokens (for measuring)."""

    speculate: bool = True
    """Guess tokens from the text so far and check them together (`generate/speculate.py`), on engines where that cannot
    change the text."""

    cache_prompt: bool = True
    """Begin with what an earlier prompt and its text have in common with this prompt instead of reading that again
    (`generate/prefixes.py`), on engines where that cannot change the text, and leave its own behind for later ones."""

    @classmethod
    def of(cls, options: SamplingOptions) -> SamplingParams:
        """From keyword arguments. Raises GemmaryError for an unknown name or a bad value."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(options) - known):
            raise GemmaryError(f"no sampling option is called {unknown[0]!r}: choose from {', '.join(sorted(known))}")
        values: dict[str, Any] = dict(options)
        stop = values.get("stop", ())
        one = isinstance(stop, str | bytes) or not isinstance(stop, Iterable)
        values["stop"] = () if stop is None else (stop,) if one else tuple(stop)
        return cls(**values)

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, math.inf)
        _integer("top_k", self.top_k, 0)
        _number("top_p", self.top_p, 0, 1, above=True)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0.001, 1000)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**64 - 1)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        for item in self.stop:
            if isinstance(item, bool) or not isinstance(item, str | int) or item == "":
                raise GemmaryError(f"stop takes non-empty strings and token ids, not {item!r}")

    @property
    def candidates(self) -> int:
        """How many of the largest logits decide the next token (ties with the last aside). 0: all may."""
        if self.logprobs is not None or self.repetition_penalty != 1:
            return 0
        return 1 if self.temperature == 0 else self.top_k

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(item for item in self.stop if isinstance(item, str))

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(item for item in self.stop if isinstance(item, int))


def _number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (good and (low < value if above else low <= value) and value <= high):  # type: ignore[operator]
        span = f"{'above' if above else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
        raise GemmaryError(f"{name} must be a number {span}, not {value!r}")


def _integer(name: str, value: object, low: int, high: int | None = None) -> None:
    good = isinstance(value, int) and not isinstance(value, bool)
    if not good or value < low or (high is not None and value > high):  # type: ignore[operator]
        span = f"of at least {low}" if high is None else f"from {low} to {high}"
        raise GemmaryError(f"{name} must be a whole number {span}, not {value!r}")
