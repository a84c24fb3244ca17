"""How well a model answers questions with given options, and whether an adapter made it better.

python -m recipes.evaluate starter qa/questions.jsonl --json base.json
python -m recipes.evaluate starter qa/questions.jsonl --adapter qa/adapter --against base.json --picture qa.png

Each option is scored by its log-likelihood after the question: of the whole option, or of each of its characters, which
does not favour short ones. Intervals are 95 % percentiles of bootstrap samples of the questions; those of a difference
are paired, since both models answer the same questions. The base model is asked as the adapter is, without examples.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file
from gemmary.generate.sampling import log_softmax_at
from gemmary.generate.scheduler import STEP_TOKENS

Item = Mapping[str, Any]
"""{"set", "prompts": one for each option, "options", "gold"}, as `recipes.question_answering` writes them."""
Correct = npt.NDArray[np.bool_]
RULES = ("character", "whole")
TOGETHER = 12
"""Prompts in one step."""
SAMPLES = 10_000


# Likelihoods ----------------------------------------------------------------------------------------------------------


def likelihoods(model: gemmary.Model, items: Sequence[Item]) -> list[list[float]]:
    """For each question the log-likelihoods (natural) of its options, each after its prompt."""
    values = [[0.0] * len(item["options"]) for item in items]
    asked = [(n, prompt) for n, item in enumerate(items) for prompt in dict.fromkeys(item["prompts"])]
    asked.sort(key=lambda each: len(each[1]))  # prompts of one length go together
    for start in range(0, len(asked), TOGETHER):
        group = asked[start : start + TOGETHER]
        places = [[i for i, p in enumerate(items[n]["prompts"]) if p == prompt] for n, prompt in group]
        prompts = [model.tokenizer.encode(prompt, bos=True) for _, prompt in group]
        options = [
            [model.tokenizer.encode(items[n]["options"][i]) for i in which]
            for (n, _), which in zip(group, places, strict=True)
        ]
        for (n, _), which, found in zip(group, places, after_prompts(model, prompts, options), strict=True):
            for i, value in zip(which, found, strict=True):
                values[n][i] = value
    return values


def after_prompts(
    model: gemmary.Model, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
) -> list[list[float]]:
    """Log-likelihoods of each prompt's options, the prompts side by side in ragged steps.

    A prompt is read once: its options are computed after it one by one, and each is forgotten again.
    """
    room = max(len(option) for some in options for option in some)
    caches = [model.engine.new_cache(len(prompt) + room) for prompt in prompts]
    adapter = len(model.adapters)  # its number in a step: at most one is loaded here

    def step(chunks: dict[int, Chunk]) -> dict[int, Any]:
        """Rows of logits of the chunks, each for the prompt of that number."""
        batch = Batch.of(model.config, list(chunks.values()))
        with model.scheduler.lock:
            rows = iter(model.engine.step(batch, [caches[s] for s in chunks]))
        return {s: [next(rows) for _ in range(len(c.tokens) if c.outputs == "all" else 1)] for s, c in chunks.items()}

    last: dict[int, Any] = {}
    for start in range(0, max(map(len, prompts)), STEP_TOKENS):
        pieces = {s: prompt[start : start + STEP_TOKENS] for s, prompt in enumerate(prompts)}
        last |= step({s: Chunk(piece, start, adapter=adapter) for s, piece in pieces.items() if piece})
    values: list[list[float]] = [[] for _ in prompts]
    for turn in range(max(map(len, options))):
        asked = {s: some[turn] for s, some in enumerate(options) if turn < len(some)}
        longer = {s: ids for s, ids in asked.items() if len(ids) > 1}
        ends = {s: Chunk(ids[:-1], len(prompts[s]), outputs="all", adapter=adapter) for s, ids in longer.items()}
        rows = step(ends) if ends else {}
        for s, ids in asked.items():
            scored = zip([*last[s], *rows.get(s, ())], ids, strict=True)
            values[s].append(sum(float(log_softmax_at(row, np.array([i]))[0]) for row, i in scored))
            caches[s].truncate(len(prompts[s]))
    return values


def right(item: Item, values: Sequence[float], rule: str) -> bool:
    """Whether the likeliest option is the right one."""
    lengths = [len(option) if rule == "character" else 1 for option in item["options"]]
    return int(np.argmax([v / n for v, n in zip(values, lengths, strict=True)])) == int(item["gold"])


# Intervals ------------------------------------------------------------------------------------------------------------


def resampled(values: npt.NDArray[Any], seed: int = 0) -> npt.NDArray[np.float64]:
    """Means of bootstrap samples: float64 [SAMPLES]."""
    generator = np.random.default_rng(seed)
    return np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(SAMPLES)])


def summary(by_set: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, float]]:
    """Mean and 95 % interval for each set, and of the mean of all sets (each set resampled by itself)."""
    samples = {name: resampled(values) for name, values in by_set.items()}
    samples["mean"] = np.mean(list(samples.values()), axis=0)
    means = {name: float(values.mean()) for name, values in by_set.items()}
    means["mean"] = float(np.mean(list(means.values())))
    edges = {name: np.percentile(some, (2.5, 97.5)) for name, some in samples.items()}
    return {
        name: {"mean": means[name], "low": float(edges[name][0]), "high": float(edges[name][1])} for name in samples
    }


# The command ----------------------------------------------------------------------------------------------------------


def choose(path: Path, count: int, seed: int, sets: Sequence[str] | None) -> dict[str, list[Item]]:
    """At most `count` questions of each set, the same for the same seed."""
    by_set: dict[str, list[Item]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        by_set.setdefault(item["set"], []).append(item)
    if missing := set(sets or ()) - set(by_set):
        raise GemmaryError(f"{path} has no set {', '.join(sorted(missing))}: it has {', '.join(by_set)}")
    chosen = {name: by_set[name] for name in sets or by_set}
    return {name: random.Random(seed).sample(some, min(count, len(some))) for name, some in chosen.items()}


def digest(items: Sequence[Item]) -> str:
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()


def measure(model: gemmary.Model, chosen: Mapping[str, Sequence[Item]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each set as it is done: its name, its questions' digest and which were right by each rule."""
    for name, items in chosen.items():
        began = time.perf_counter()
        values = likelihoods(model, items)
        answered = {rule: [right(i, v, rule) for i, v in zip(items, values, strict=True)] for rule in RULES}
        shares = ", ".join(f"{np.mean(answered[rule]):.1%} by {rule}" for rule in RULES)
        print(f"{name}: {shares} ({len(items)} questions, {time.perf_counter() - began:.0f} s)", flush=True)
        yield name, {"questions": digest(items), "right": answered}


def answers(result: Mapping[str, Any], rule: str) -> dict[str, npt.NDArray[np.float64]]:
    return {name: np.array(some["right"][rule], dtype=np.float64) for name, some in result["sets"].items()}


def compare(result: Mapping[str, Any], base: Mapping[str, Any], rule: str) -> dict[str, dict[str, Any]]:
    """For each set: both accuracies and their difference, paired. Raises GemmaryError where the questions differ."""
    if any(base["sets"].get(name, {}).get("questions") != some["questions"] for name, some in result["sets"].items()):
        raise GemmaryError(
            "the two runs did not answer the same questions: give both the same --items, --seed and file"
        )
    tuned, before = answers(result, rule), answers(base, rule)
    before = {name: before[name] for name in tuned}
    sides = {
        "base": summary(before),
        "tuned": summary(tuned),
        "gain": summary({n: tuned[n] - before[n] for n in tuned}),
    }
    return {name: {side: values[name] for side, values in sides.items()} for name in sides["gain"]}


def table(compared: Mapping[str, Mapping[str, Any]], rule: str) -> str:
    """As Markdown, in percent."""
    lines = [f"| likelihood by {rule} | base | adapter | gain |", "|---|---|---|---|"]
    for name, row in compared.items():
        cells = [f"{row[side]['mean'] * 100:.1f}" for side in ("base", "tuned")]
        gain = row["gain"]
        cells.append(f"{gain['mean'] * 100:+.1f} ({gain['low'] * 100:+.1f} to {gain['high'] * 100:+.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(path: Path, compared: Mapping[str, Mapping[str, Any]], rule: str) -> None:
    """Accuracies of both models, each set a line, with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.6 + 0.5 * len(compared)), layout="constrained")
    axes = figure.add_subplot()
    for side, colour, shift in (("base", "tab:gray", 0.12), ("tuned", "tab:blue", -0.12)):
        rows = [row[side] for row in compared.values()]
        means = np.array([row["mean"] for row in rows])
        reach = np.abs([[row["low"] for row in rows] - means, [row["high"] for row in rows] - means])
        places = -np.arange(len(rows)) + shift
        axes.errorbar(100 * means, places, xerr=100 * reach, fmt="o", capsize=3, color=colour, label=side)
    axes.set_yticks(-np.arange(len(compared)), list(compared))
    axes.set_xlabel(f"right, % (the likeliest option by {rule}; 95 % intervals)")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("questions", type=Path)
    parser.add_argument("--adapter", metavar="FOLDER")
    parser.add_argument("--items", type=int, default=500, help="questions of each set, at most (default: %(default)s)")
    parser.add_argument("--sets", nargs="+", metavar="SET")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--against", type=Path, metavar="FILE", help="what --json wrote for the model to compare with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="which questions were right, and the comparison")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="the comparison, drawn (by character)")
    arguments = parser.parse_args()
    chosen = choose(arguments.questions, arguments.items, arguments.seed, arguments.sets)
    options = {"adapter": arguments.adapter} if arguments.adapter else {}
    result: dict[str, Any] = {"sets": {}}
    with gemmary.load(arguments.model, threads=arguments.threads, **options) as model:
        result["model"] = model.description
        for name, measured in measure(model, chosen):
            result["sets"][name] = measured
            save(arguments.json, result)
    if arguments.against:
        base = json.loads(arguments.against.read_text(encoding="utf-8"))
        result["comparison"] = {rule: compare(result, base, rule) for rule in RULES}
        for rule, compared in result["comparison"].items():
            print(f"\n{table(compared, rule)}")
        if arguments.picture:
            draw(arguments.picture, result["comparison"]["character"], "character")
    save(arguments.json, result)


def save(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        with atomic_file(path) as file:
            file.write(json.dumps(result).encode())


if __name__ == "__main__":
    main()
