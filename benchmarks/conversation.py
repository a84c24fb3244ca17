"""What a conversation gains from what was read before: seconds to the first token of each turn, with the keys of the
turns before it and with all of them read again, alternating.

    python benchmarks/conversation.py [--model starter] [--turns 6] [--tokens 64] [--repeat 3] [--threads 2]

The starter has its chat adapter, as in `gemmary chat starter`. Text is greedy. Exits with 1 if it differs in any turn.
"""

from __future__ import annotations

import argparse
import statistics
import warnings

import gemmary
from gemmary.checkpoints import starter
from gemmary.generate import Completion
from gemmary.verify import builtin_text

QUESTION_CHARACTERS = 240


def conversation(model: gemmary.Model, turns: int, tokens: int, cached: bool) -> list[Completion]:
    """The model's answers, each asked for with all that was said before. Nothing of earlier conversations is known."""
    model.scheduler.prefixes.clear()
    text = builtin_text()
    messages: list[dict[str, str]] = []
    answers = []
    for turn in range(turns):
        begin = turn * QUESTION_CHARACTERS % (len(text) - QUESTION_CHARACTERS)
        passage = text[begin : begin + QUESTION_CHARACTERS]
        messages.append({"role": "user", "content": f"What does this say?\n\n{passage}"})
        prompt = model.chat_prompt(messages)
        answers.append(model.generate(prompt, max_tokens=tokens, temperature=0.0, cache_prompt=cached))
        messages.append({"role": "assistant", "content": answers[-1].text})
    return answers


def measure(model: gemmary.Model, turns: int, tokens: int, repeat: int) -> bool:
    """Prints a line for each turn. Whether all of its texts were the same."""
    runs: dict[bool, list[list[Completion]]] = {True: [], False: []}
    for number in range(repeat + 1):
        for cached in (True, False) if number % 2 else (False, True):
            answers = conversation(model, turns, tokens, cached)
            if number:  # the first round warms up
                runs[cached].append(answers)
    same = True
    for turn in range(turns):
        seconds = {cached: [each[turn].stats.first_token_s for each in found] for cached, found in runs.items()}
        medians = {cached: statistics.median(times) for cached, times in seconds.items()}
        told = {c: f"{medians[c]:.3f} s ({min(times):.3f} … {max(times):.3f})" for c, times in seconds.items()}
        stats = runs[True][0][turn].stats
        alike = len({each[turn].tokens for found in runs.values() for each in found}) == 1
        same = same and alike
        print(
            f"turn {turn + 1}: {stats.prompt_tokens} tokens, {stats.cached_tokens} of them cached; first token after "
            f"{told[True]}, all read {told[False]}: {medians[False] / medians[True]:.1f} x; "
            f"text {'the same' if alike else 'DIFFERENT'}",
            flush=True,
        )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=starter.NAME)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    warnings.simplefilter("ignore", gemmary.GemmaryWarning)
    adapter = starter.chat_adapter() if args.model == starter.NAME else None
    with gemmary.load(args.model, threads=args.threads, adapter=adapter) as model:
        return int(not measure(model, args.turns, args.tokens, args.repeat))


if __name__ == "__main__":
    raise SystemExit(main())
