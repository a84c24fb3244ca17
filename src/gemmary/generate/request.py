"""One prompt on its way: what was asked, how far it is, what came out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gemmary.errors import GemmaryError
from gemmary.generate.params import Allowed, SamplingParams
from gemmary.generate.sampling import likeliest, log_softmax_at, sample
from gemmary.generate.text import TextStream

if TYPE_CHECKING:
    from gemmary.generate.sight import Picture

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of the model's own probabilities, before penalty, temperature and filters."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, the likeliest first."""


@dataclass(frozen=True)
class Piece:
    """One generated token, and the text that became certain with it (none inside a character or a stop string)."""

    text: str
    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    """Set on the last piece."""


@dataclass(frozen=True)
class Stats:
    """Counts of tokens, and seconds."""

    prompt_tokens: int
    completion_tokens: int
    prefill_s: float
    """From the first step that read the prompt to the first token."""
    decode_s: float
    """From the first token to the last."""
    first_token_s: float
    """From submission to the first token: prefill and whatever waiting came before it."""
    seed: int
    """What `SamplingParams.seed` would repeat this text with."""
    cached_tokens: int = 0
    """Those of `prompt_tokens` that had been read before (`generate/prefixes.py`): prefill computed the others."""
    guessed: int = 0
    """Tokens guessed and checked (`generate/speculate.py`)."""
    guessed_right: int = 0
    """Those of them that were the ones to come; each saved a step."""
    drafted: int = 0
    """Those of `guessed` that a draft model made; the others come from the text itself."""
    drafted_right: int = 0

    @property
    def prefill_tokens_per_s(self) -> float:
        """Of the tokens that were computed."""
        return (self.prompt_tokens - self.cached_tokens) / self.prefill_s if self.prefill_s > 0 else 0.0

    @property
    def decode_tokens_per_s(self) -> float:
        """Of the tokens after the first, which the prefill gave."""
        return (self.completion_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0


@dataclass(frozen=True)
class Completion:
    """What came of one prompt."""

    text: str
    """Without the stop string or stop token that ended it."""
    tokens: tuple[int, ...]
    """Every id that was chosen: the stop token, or the tokens of a stop string, are among them."""
    logprobs: tuple[TokenLogprob, ...] | None
    """One for each of `tokens`, where `logprobs` was asked for."""
    finish_reason: FinishReason
    """"stop": the model's end token, or a stop string or id. "length": max_tokens. "cancelled"."""
    stats: Stats
    notices: tuple[str, ...] = ()
    """What should be known about how the prompt was read (a folded system message, a model not tuned for chat …)."""


@dataclass(eq=False)
class Request:
    """A prompt and its progress. The scheduler moves it; whoever submitted it reads `unread` or waits for the end."""

    prompt: Sequence[int]
    params: SamplingParams
    text: TextStream
    stop_ids: frozenset[int] = frozenset()
    """The model's own end tokens; those of `params` come on top."""
    prefix: int = 0
    """How many tokens at the start of the prompt see each other (0: causal)."""
    seed: int = 0
    adapter: int = 0
    """Number of the adapter that all of its keys and logits are computed with; 0: none."""
    pictures: tuple[Picture, ...] = ()
    """What stands in the places that the prompt has for them, in its order."""
    allowed: Allowed | None = None
    """What each token is chosen from; log-probabilities stay those of the model."""

    max_tokens: int = 0
    """Set on submission: what was asked for, or what the context leaves."""
    kv_bytes: int = 0
    cache: Any = None
    capacity: int = 0
    """Tokens that it has room for: those of prompt and answer, or more where it served before."""
    computed: int = 0
    """Tokens whose keys the cache holds."""
    cached: int = 0
    """Tokens of the prompt whose keys it held from the beginning."""
    generated: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    unread: deque[Piece] = field(default_factory=deque)
    finish_reason: FinishReason | None = None
    cancelled: bool = False
    """Asked to end; the scheduler sees to it."""
    error: BaseException | None = None
    """Why the engine gave up, if it did."""
    guess: list[int] = field(default_factory=list)
    """Tokens that this step checks besides the one it computes."""
    guessed: int = 0
    guessed_right: int = 0
    drafted: int = 0
    drafted_right: int = 0

    submitted_at: float = 0.0
    started_at: float = 0.0
    first_token_at: float = 0.0
    last_token_at: float = 0.0

    def __post_init__(self) -> None:
        own = frozenset() if self.params.ignore_eos else self.stop_ids
        self.stop_ids = own | self.params.stop_ids

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.generated)

    @property
    def candidates(self) -> int:
        """As `SamplingParams.candidates`: a token that may not be chosen can be among the largest."""
        return self.params.candidates if self.allowed is None else 0

    @property
    def decoding(self) -> bool:
        """The prompt is read, and the next step computes the last token only."""
        return bool(self.generated) and self.computed == self.length - 1

    def tokens(self, start: int, stop: int) -> list[int]:
        """Those at the places from `start` up to `stop` of prompt and text, as far as it goes."""
        read = len(self.prompt)
        return [*self.prompt[start:stop], *self.generated[max(0, start - read) : max(0, stop - read)]]

    def take_all(self, rows: npt.NDArray[np.float32]) -> int:
        """Takes a token from each row [1 + guesses, V] for as long as the guesses before it were right, and forgets
        the others. Returns how many were right."""
        right = 0
        for row, guess in zip(rows, [*self.guess, None], strict=True):
            self.take(row)
            right += guess == self.generated[-1]
            if self.finish_reason is not None or self.generated[-1] != guess:
                break
        if right < len(self.guess):
            self.computed -= len(self.guess) - right
            self.cache.truncate(self.computed)
        return right

    def count_guesses(self, guesser: str, right: int) -> None:
        """For the statistics: of this step's guess, made by the text itself or a "draft" model, so many were right."""
        self.guessed += len(self.guess)
        self.guessed_right += right
        if guesser == "draft":
            self.drafted += len(self.guess)
            self.drafted_right += right

    def take(self, logits: npt.NDArray[np.float32]) -> None:
        """Chooses the next token from its row of logits [V], and ends the request where that token ends it."""
        index = len(self.generated)
        history = [*self.prompt, *self.generated] if self.params.repetition_penalty != 1 else ()
        token = sample(self._permitted(logits), self.params, history, self.seed, index)
        self.generated.append(token)
        self.last_token_at = time.perf_counter()
        if index == 0:
            self.first_token_at = self.last_token_at
        logprob = self._logprob(logits, token)
        text = "" if token in self.stop_ids else self.text.push(token)
        reason: FinishReason | None = None
        if token in self.stop_ids or self.text.stopped:
            reason = "stop"
        elif len(self.generated) == self.max_tokens:
            reason = "length"
        if reason:
            text += self.text.finish()
        value, top = (logprob.logprob, logprob.top) if logprob else (None, ())
        self.unread.append(Piece(text, token, value, top, reason))
        self.finish_reason = reason  # after the piece: a reader in another thread takes it to be the last one

    def _permitted(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits with -inf for each token that may not come now."""
        ids = None if self.allowed is None else self.allowed(self.generated)
        if ids is None:
            return logits
        ids = np.asarray(ids)
        if not ids.size or ids.min() < 0 or ids.max() >= len(logits):
            raise GemmaryError(f"`allowed` has to leave at least one token of the vocabulary, not {ids.tolist()[:9]}")
        permitted = np.full_like(logits, -np.inf)
        permitted[ids] = logits[ids]
        return permitted

    def _logprob(self, logits: npt.NDArray[np.float32], token: int) -> TokenLogprob | None:
        if self.params.logprobs is None:
            return None
        top = likeliest(logits, self.params.logprobs)
        values = log_softmax_at(logits, np.array([token, *top]))
        found = TokenLogprob(token, float(values[0]), tuple(zip(top.tolist(), values[1:].tolist(), strict=True)))
        self.logprobs.append(found)
        return found

    def stats(self) -> Stats:
        """Of what was done so far."""
        first = self.first_token_at if self.generated else 0.0
        return Stats(
            prompt_tokens=len(self.prompt),
            completion_tokens=len(self.generated),
            prefill_s=max(0.0, first - self.started_at) if self.generated else 0.0,
            decode_s=self.last_token_at - first if self.generated else 0.0,
            first_token_s=max(0.0, first - self.submitted_at) if self.generated else 0.0,
            seed=self.seed,
            cached_tokens=self.cached,
            guessed=self.guessed,
            guessed_right=self.guessed_right,
            drafted=self.drafted,
            drafted_right=self.drafted_right,
        )

    def completion(self, pieces: Iterable[Piece], notices: Sequence[str] = ()) -> Completion:
        """Of a finished request whose pieces were these."""
        return Completion(
            text="".join(piece.text for piece in pieces),
            tokens=tuple(self.generated),
            logprobs=tuple(self.logprobs) if self.params.logprobs is not None else None,
            finish_reason=self.finish_reason or "cancelled",
            stats=self.stats(),
            notices=tuple(notices),
        )
