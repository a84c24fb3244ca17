"""How fast a model is here, where its time goes, and what the machine would allow."""

from __future__ import annotations

from gemmary.bench.machine import Ceilings, Machine, ceilings, processor_name, read_bandwidth
from gemmary.bench.measure import Measurement, Spread, bench, peak_rss_bytes, prompt_ids
from gemmary.bench.profile import Operation, Phase, Profile, profile

__all__ = [
    "Ceilings",
    "Machine",
    "Measurement",
    "Operation",
    "Phase",
    "Profile",
    "Spread",
    "bench",
    "ceilings",
    "peak_rss_bytes",
    "processor_name",
    "profile",
    "prompt_ids",
    "read_bandwidth",
]
