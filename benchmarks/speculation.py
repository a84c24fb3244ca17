"""What guessing tokens from the text is worth: decoding with and without it, alternating, on the same prompts.

    python benchmarks/speculation.py [--model starter] [--tokens 200] [--repeat 5] [--threads 2]

Two kinds of text: a copy (the prompt holds a text and the beginning of its repetition, as when a text is edited or
quoted) and free writing (sampled, nothing to copy). Exits with 1 if a text differs with and without.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from typing import Any

import gemmary
from gemmary.verify import builtin_text


def prompts() -> dict[str, tuple[str, dict[str, Any]]]:
    passage = builtin_text()[:1800]
    copy = f"{passage}\n\nThe same text once more, corrected:\n\n{passage[:200]}"
    free = "Write a list of strange animals and describe each of them with new words."
    return {"copying": (copy, {"temperature": 0.0}), "writing freely": (free, {"temperature": 1.0, "seed": 3})}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore", gemmary.GemmaryWarning)
    differs = False
    with gemmary.load(args.model, threads=args.threads) as model:
        for name, (prompt, options) in prompts().items():
            speeds: dict[bool, list[float]] = {True: [], False: []}
            texts: dict[bool, tuple[int, ...]] = {}
            guessed = right = 0
            for number in range(args.repeat + 1):
                for speculate in (True, False):
                    out = model.generate(
                        prompt, max_tokens=args.tokens, ignore_eos=True, speculate=speculate, **options
                    )
                    texts[speculate] = out.tokens
                    if speculate:
                        guessed, right = out.stats.guessed, out.stats.guessed_right
                    if number:  # the first round warms up
                        speeds[speculate].append(out.stats.decode_tokens_per_s)
            differs = differs or texts[True] != texts[False]
            lines = {
                key: f"{statistics.median(runs):.1f} ({min(runs):.1f} … {max(runs):.1f})"
                for key, runs in speeds.items()
            }
            ratio = statistics.median(speeds[True]) / statistics.median(speeds[False])
            print(
                f"{name:15} tokens/s with guesses {lines[True]}, without {lines[False]}: {ratio:.2f} x; "
                f"{right} of {guessed} guesses right; "
                f"text {'the same' if texts[True] == texts[False] else 'DIFFERENT'}"
            )
    return int(differs)


if __name__ == "__main__":
    raise SystemExit(main())
