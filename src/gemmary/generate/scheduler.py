"""Continuous batching: each step of the engine mixes the next tokens of running requests with pieces of new prompts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile

import numpy as np

from gemmary.batch import Batch, Chunk, uncut
from gemmary.config import Config
from gemmary.engines import Engine
from gemmary.errors import GemmaryError
from gemmary.generate.ngrams import NGrams
from gemmary.generate.prefixes import Prefixes, Start
from gemmary.generate.request import Request
from gemmary.generate.sight import Sight
from gemmary.generate.speculate import Guesser, Speculation, StepCosts
from gemmary.memory import size

STEP_TOKENS = 512
"""The most tokens of one sequence that a step is given, but for a prefix that cannot be cut. Engines whose windowed
layers keep a ring of keys size it for this."""


class Scheduler:
    """Owns an engine. Any thread may submit, cancel and advance; one at a time runs a step, under `lock`.

    Each step every decoding request gets its next token, and more where guesses of what follows prove right
    (`speculate.py`); what is left of `step_tokens` (at least one) goes to prompts, in the order they came. Requests
    are admitted first come, first served, while there are fewer than `max_sequences` of them and their caches, at full
    length, fit into `kv_bytes` (None: no limit); the others wait.

    Pictures go through the tower in the step that reads their prompt. Their tokens are remembered (`sight.py`), and so
    are the keys of the last sequences (`prefixes.py`), as long as no request needs the room.

    guessers: those that are asked after the text itself. They are only asked where the engine is `batch_invariant`.
    tower_adapters: as in `Sight`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        context: int | None = None,
        step_tokens: int = STEP_TOKENS,
        max_sequences: int = 64,
        kv_bytes: int | None = None,
        guessers: Sequence[Guesser] = (),
        costs: StepCosts | None = None,
        tower_adapters: Container[int] | None = None,
    ) -> None:
        self.engine = engine
        self.config: Config = engine.config
        self.context = context or self.config.context_length
        self.step_tokens = step_tokens
        self.max_sequences = max_sequences
        self.kv_bytes = kv_bytes
        self.kv_used = 0
        self.costs = costs or StepCosts()
        guessing = (NGrams(), *guessers) if engine.info.batch_invariant else ()
        self.speculation = Speculation(guessing, self.costs)
        self.sight = Sight(engine, tower_adapters=tower_adapters)
        self.prefixes = Prefixes(engine)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.lock = threading.RLock()
        self._busy = False

    def submit(self, request: Request) -> None:
        """Queues a request. Raises GemmaryError for one that could never run."""
        prompt, asked = len(request.prompt), request.params.max_tokens
        if prompt == 0:
            raise GemmaryError("the prompt is empty: it needs at least one token")
        if prompt >= self.context:
            raise GemmaryError(
                f"the prompt has {prompt:,} tokens and the context holds {self.context:,}, prompt and answer together: "
                "shorten the prompt"
            )
        if asked is not None and prompt + asked > self.context:
            raise GemmaryError(
                f"{prompt:,} tokens of prompt and max_tokens={asked:,} do not fit the context of {self.context:,}: "
                f"max_tokens can be at most {self.context - prompt:,}"
            )
        self._check_ids(request)
        request.max_tokens = asked if asked is not None else self.context - prompt
        request.capacity = prompt + request.max_tokens
        request.kv_bytes = self.engine.cache_bytes(request.capacity)
        if request.params.speculate:
            request.kv_bytes += self.speculation.cache_bytes(request.capacity)
        if self.kv_bytes is not None and request.kv_bytes > self.kv_bytes:
            raise GemmaryError(
                f"{request.capacity:,} tokens need {size(request.kv_bytes)} of key-value cache and "
                f"{size(self.kv_bytes)} are set aside for it: lower max_tokens or shorten the prompt"
            )
        request.submitted_at = time.perf_counter()
        with self.lock:
            self.waiting.append(request)

    def _check_ids(self, request: Request) -> None:
        """Raises GemmaryError for what is no token, and where pictures and the places for them differ in number."""
        ids = np.asarray(request.prompt)
        if vision := self.config.vision:
            is_place = ids == self.config.image_token_id
            places, needed = int(is_place.sum()), len(request.pictures) * vision.num_tokens
            if places != needed:
                raise GemmaryError(
                    f"the prompt has {places:,} places (id {self.config.image_token_id}) for tokens of pictures; "
                    f"{len(request.pictures)} pictures need {needed:,}"
                )
            ids = ids[~is_place]
        elif request.pictures:
            raise GemmaryError("this model reads no pictures: it has no vision tower")
        for wrong in ids[(ids < 0) | (ids >= self.config.vocab_size)]:
            raise GemmaryError(f"token id {wrong} is outside the vocabulary (0 to {self.config.vocab_size - 1})")

    def cancel(self, request: Request) -> None:
        """Ends a request, at once or after the step that is running. Nothing happens to one that has ended."""
        request.cancelled = True
        with self.lock:
            if not self._busy:  # else a collected stream cancels from within this thread's step, which sweeps itself
                self._sweep()

    def close(self) -> None:
        """Cancels everything, and forgets what was kept."""
        with self.lock:
            for request in (*self.running, *self.waiting):
                request.cancelled = True
            self._sweep()
            self.prefixes.clear()

    def advance(self, request: Request) -> None:
        """Runs a step unless `request` has something to read or has ended meanwhile. Raises what ended it."""
        with self.lock:
            if not request.unread and request.finish_reason is None:
                self.step()
        if request.error is not None:
            raise request.error

    def step(self) -> int:
        """Runs the engine once; returns how many tokens it computed (0: there is nothing to do)."""
        with self.lock:
            self._sweep()
            self._busy = True
            try:
                self._admit()
                self._guess()
                planned = self._plan()
                self._run(planned)
            finally:
                self._busy = False
                self._sweep()
            return sum(len(chunk.tokens) for _, chunk in planned)

    def _guess(self) -> None:
        """What the decoding requests are to check besides their next token."""
        decoding = [request for request in self.running if request.decoding]
        with self._ending([request for request in decoding if self.speculation.follows(request)]):
            self.speculation.guess(decoding)
        for request in decoding:
            if request.pictures:  # the text before could be followed by a picture's place, which is no token to guess
                request.guess = list(takewhile(self.config.image_token_id.__ne__, request.guess))

    def _run(self, planned: Sequence[tuple[Request, Chunk]]) -> None:
        """One step of the engine, and each request's next token where its row is there."""
        if not planned:
            return
        now = time.perf_counter()
        with self._ending([request for request, _ in planned]):
            wanted = [request.candidates for request, chunk in planned if chunk.outputs != "none"]
            candidates = 0 if 0 in wanted else max(wanted, default=0)
            batch = Batch.of(self.config, [self._seen(request, chunk) for request, chunk in planned], candidates)
            rows = self.engine.step(batch, [request.cache for request, _ in planned])
            if all(request.decoding for request, _ in planned):
                self.costs.saw(len(batch.tokens), time.perf_counter() - now)
            taken = 0
            for request, chunk in planned:
                request.started_at = request.started_at or now
                request.computed += len(chunk.tokens)
                if chunk.outputs != "none":
                    count = 1 + len(request.guess)
                    right = request.take_all(rows[taken : taken + count])
                    self.speculation.take(request, right)
                    taken += count

    def _seen(self, request: Request, chunk: Chunk) -> Chunk:
        """The chunk with what stands in the places for pictures that are in it."""
        place, vision = self.config.image_token_id, self.config.vision
        if vision is None or not request.pictures or request.decoding or place not in chunk.tokens:
            return chunk
        first = request.tokens(0, chunk.start).count(place) // vision.num_tokens
        count = chunk.tokens.count(place) // vision.num_tokens
        return replace(chunk, pictures=self.sight.see(request.pictures[first : first + count], request.adapter))

    @contextmanager
    def _ending(self, requests: Sequence[Request]) -> Iterator[None]:
        """What goes wrong in here ends these requests: some of their caches hold half a step."""
        try:
            yield
        except BaseException as error:
            for request in requests:
                if request.finish_reason is None:
                    request.error, request.cancelled = error, True
            raise

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_sequences:
            request = self.waiting[0]
            start = self._start(request)
            if start is None:
                return
            try:
                self.prefixes.begin(request, start)
                if request.params.speculate:
                    self.speculation.open(request)
            except Exception as error:  # this request's own failure: whoever reads it is told
                request.error, request.finish_reason = error, "cancelled"
                request.cache = None
                self.speculation.close(request)
                self.waiting.popleft()
                continue
            self.waiting.popleft()
            self.kv_used += request.kv_bytes
            self.running.append(request)

    def _start(self, request: Request) -> Start | None:
        """What it begins with, so that its cache fits beside those that are in use; None: it has to wait. What is only
        kept makes way, unless that would not help."""
        if self.kv_bytes is not None and self.kv_used + request.kv_bytes > self.kv_bytes:
            return None
        while True:
            for start in self.prefixes.starts(request):
                if self.kv_bytes is None or self.kv_used + self.prefixes.nbytes + start.added_bytes <= self.kv_bytes:
                    return start
            if not self.prefixes.drop():
                return None

    def _plan(self) -> Sequence[tuple[Request, Chunk]]:
        """Decodes first, then prompts in order of arrival until the budget is spent."""
        decoding = [r for r in self.running if r.decoding]
        planned = [(r, Chunk([r.generated[-1], *r.guess], r.computed, 0, "all", r.adapter)) for r in decoding]
        left = max(1, self.step_tokens - sum(len(chunk.tokens) for _, chunk in planned))
        whole_step = left
        for request in self.running:
            if request.decoding:
                continue
            prefix = len(request.prompt) if self.config.bidirectional else request.prefix
            size = min(left, len(request.prompt) - request.computed)
            size = uncut(self.config, request.prompt, request.computed, size)
            if request.computed < prefix:
                size = max(size, prefix - request.computed)
            # Tokens that see each other go in one chunk, larger than the budget if no other prompt is in the step.
            if left < size and left < whole_step:
                break
            last = request.computed + size == len(request.prompt)
            tokens = request.tokens(request.computed, request.computed + size)
            seen = 0 if request.computed else request.prefix  # what comes later sees all of it anyway
            chunk = Chunk(tokens, request.computed, seen, "last" if last else "none", request.adapter)
            planned.append((request, chunk))
            left -= size
            if left <= 0:
                break
        return planned

    def _sweep(self) -> None:
        """Takes out what has ended: its slot and its cache are free."""
        self._busy = True
        for request in [r for r in (*self.running, *self.waiting) if r.cancelled or r.finish_reason]:
            request.finish_reason = request.finish_reason or "cancelled"
            self.prefixes.keep(request)
            request.cache = None
            self.speculation.close(request)
            if request in self.running:
                self.running.remove(request)
                self.kv_used -= request.kv_bytes
            else:
                self.waiting.remove(request)
        self._busy = False
