"""From a prompt's ids to text: requests, the scheduler that batches them, sampling, streaming."""

from __future__ import annotations

from gemmary.generate.params import SamplingOptions, SamplingParams
from gemmary.generate.request import Completion, Piece, Request, Stats, TokenLogprob
from gemmary.generate.scheduler import Scheduler
from gemmary.generate.stream import Stream

__all__ = [
    "Completion",
    "Piece",
    "Request",
    "SamplingOptions",
    "SamplingParams",
    "Scheduler",
    "Stats",
    "Stream",
    "TokenLogprob",
]
