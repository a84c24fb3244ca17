"""What bounding the output head is worth: greedy decoding with the full head and with the bounded one, alternating, and
for several numbers of candidates the time of the head and how many of its rows are computed exactly.

    python benchmarks/output_head.py [--model starter] [--tokens 128] [--repeat 5] [--positions 100] [--threads 2]

Exits with 1 if a text differs, or a row of logits that counts. See docs/output-head.md.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from typing import Any

import numpy as np

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.verify import builtin_text

PROMPT = "Write a list of strange animals and describe each of them with new words."
CANDIDATES = (0, 1, 2, 4, 8)


def decoding(full: Any, bounded: Any, tokens: int, repeat: int) -> bool:
    """Prints tokens/s of both. Whether their texts are the same."""
    speeds: dict[str, list[float]] = {"full": [], "bounded": []}
    same = True
    for number in range(repeat + 1):
        texts = []
        for name, model in (("full", full), ("bounded", bounded)):
            out = model.generate(PROMPT, max_tokens=tokens, temperature=0.0, ignore_eos=True, speculate=False)
            texts.append(out.tokens)
            if number:  # the first round warms up
                speeds[name].append(out.stats.decode_tokens_per_s)
        same = same and texts[0] == texts[1]
    medians = {name: statistics.median(runs) for name, runs in speeds.items()}
    for name, runs in speeds.items():
        print(f"{name:8} {medians[name]:.1f} tokens/s ({min(runs):.1f} … {max(runs):.1f})")
    print(f"ratio    {medians['bounded'] / medians['full']:.2f}; text {'the same' if same else 'DIFFERENT'}")
    return same


def one_head(model: Any, positions: int) -> bool:
    """Prints the head's time at places of the built-in text. Whether the rows that count are the full head's."""
    engine = model.engine
    ids = model.tokenizer.encode(builtin_text())
    start = min(64, len(ids) // 2)
    places = np.linspace(start, min(len(ids), model.context) - 2, positions).astype(int)
    cache = engine.new_cache(len(ids))
    seconds: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    computed: dict[int, list[float]] = {k: [] for k in CANDIDATES}
    right, held = True, 0
    engine.profile(True)
    for place in map(int, places):
        while held < place:
            piece = ids[held : min(place, held + 256)]
            engine.step(Batch.of(model.config, [Chunk(piece, held, outputs="none")]), [cache])
            held += len(piece)
        full = np.zeros(0, np.float32)
        for k in CANDIDATES:
            before = head_seconds(engine)
            (row,) = engine.step(Batch.of(model.config, [Chunk([ids[place]], place)], k), [cache])
            seconds[k].append(head_seconds(engine) - before)
            cache.truncate(place)
            there = row != -np.inf
            computed[k].append(float(there.mean()))
            if k == 0:
                full = row
            else:
                wanted = full >= np.partition(full, -k)[-k]
                right = right and bool(there[wanted].all()) and np.array_equal(row[there], full[there])
    for k in CANDIDATES:
        rows = f"{100 * statistics.mean(computed[k]):.2f} % of the rows exactly"
        time = f"{1e3 * statistics.median(seconds[k]):.2f} ms (mean {1e3 * statistics.mean(seconds[k]):.2f})"
        print(f"{'full head' if k == 0 else f'{k} wanted':10} {time}, {rows}")
    return right


def head_seconds(engine: Any) -> float:
    return sum(timing.seconds for timing in engine.timings() if timing.label == "linear embed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--positions", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore", gemmary.GemmaryWarning)
    with (
        gemmary.load(args.model, threads=args.threads) as full,
        gemmary.load(args.model, threads=args.threads) as bounded,
    ):
        full.engine.bound_head_after = None
        added = bounded.engine.bound_head()
        print(f"high halves {added / 1e6:.1f} MB beside {sum(full.info.formats.values()) / 1e6:.1f} MB of weights")
        same = decoding(full, bounded, args.tokens, args.repeat)
        right = one_head(bounded, args.positions)
    return int(not (same and right))


if __name__ == "__main__":
    raise SystemExit(main())
