"""What guessing tokens is worth: decoding with and without it, alternating, on the same prompts.

    python benchmarks/speculation.py [--model starter] [--tokens 200] [--repeat 5] [--threads 2]
    python benchmarks/speculation.py --dtype bfloat16 --draft starter --draft-quant int4
    python benchmarks/speculation.py --dtype float32 --deeper 36 --draft starter-int4-gptq

The kinds of text: a copy of a text in the prompt; an edit of one; sentences picked from one, as extractive summaries do
(three texts, two of them with their sentences: a pretrained model goes on in the pattern); free writing, greedy and
sampled, the last of it so hot that nothing repeats. The starter is too small to edit and copies instead, so the edit is
dictated: the model computes everything, and its likeliest token is made the next one of the edited text. Without
--draft only the text itself guesses. Exits with 1 if a text differs with and without.

--deeper gives the model more layers whose branches are multiplied by zero: it writes what it did before, and a token
costs what one of a larger model does. So a draft's gain can be told from its agreement and its price where only one
size of trained weights is at hand: the same weights, quantized, draft for it.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import gemmary
from gemmary.checkpoints import Checkpoint, open_named
from gemmary.engines import open_engine
from gemmary.quantize.leaves import Dense
from gemmary.verify import builtin_text

TEXTS = (
    "Tom has lived in the old house by the river for twenty years. Every morning Tom walks along the water to the "
    "mill, where the boatmen tell Tom the news. When the river is high Tom helps them to carry the sacks up the "
    "steps, and in the evening Tom sits on the bench in front of the door and writes down what there was to hear in "
    "a small blue book.",
    "Tom was born in a village in the mountains. When Tom was nine years old the family sent Tom to an uncle, who "
    "kept an inn on the road to the south. There Tom learned to read from the newspapers that the travellers left "
    "behind. The inn is still there, and a picture of Tom hangs over the fireplace.",
    "Tom opened the shop in the spring of that year with money that Tom had borrowed from a sister. At first hardly "
    "anybody came, since the street was narrow and the sign could not be seen from the market. So Tom painted the "
    "whole front of the house yellow, put two chairs before the window and served tea to everyone who sat down. By "
    "the end of the summer there was a queue in front of the door every Saturday, and Tom had paid back every penny "
    "of the money.",
)
EDITS = {
    "Tom": "Anna", "hardly": "almost nobody", "yellow": "a bright yellow", "spring": "summer", "penny": "cent"
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of text: what is asked, how, and what is to be written where the model does not choose."""

    prompt: str
    options: dict[str, Any]
    tokens: int = 200
    dictated: str = ""


def kinds() -> dict[str, Kind]:
    greedy: dict[str, Any] = {"temperature": 0.0}
    passage = builtin_text()[:1800]
    picks = [f"Text:\n{text}\n\nTwo sentences from the text:\n{first_two(text)}\n\n" for text in TEXTS[:2]]
    animals = "Write a list of strange animals and describe each of them with new words."
    story = "Once upon a time there was a"
    return {
        "copying": Kind(f"{passage}\n\nThe same text once more, corrected:\n\n{passage[:200]}", greedy),
        "editing": Kind(f"Text:\n{' '.join(TEXTS)}\n\nEdited:\n", greedy, dictated=edited(" ".join(TEXTS))),
        "summarising": Kind("".join(picks) + f"Text:\n{TEXTS[2]}\n\nTwo sentences from the text:\n", greedy, 50),
        "free, greedy": Kind(animals, greedy),
        "free, sampled": Kind(animals, {"temperature": 1.0, "seed": 3}),
        "story, sampled": Kind(story, {"temperature": 1.0, "seed": 5}),
        "no repetition": Kind(story, {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "seed": 5}),
    }


def edited(text: str) -> str:
    for word, other in EDITS.items():
        text = text.replace(word, other)
    return text


def first_two(text: str) -> str:
    return ". ".join(text.split(". ")[:2]) + "."


class Dictated:
    """An engine that computes as another does and then says that the next token is the next one of `ids`."""

    def __init__(self, inner: Any, ids: Sequence[int]) -> None:
        self.inner, self.ids = inner, ids
        self.config, self.info = inner.config, inner.info

    def step(self, batch: Any, caches: Any, taps: Any = None) -> Any:
        rows = self.inner.step(batch, caches, taps)
        for row, place in zip(rows, batch.positions[batch.outputs], strict=True):
            row[self.ids[min(place + 1, len(self.ids) - 1)]] = 1e4
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def deeper(checkpoint: Checkpoint, more: int) -> Checkpoint:
    """The same function with so many more layers, each one of its own again, with nothing of it added to the stream."""
    config, leaves = checkpoint.config, dict(checkpoint.leaves)
    kinds = [config.layer_types[number % config.num_layers] for number in range(config.num_layers + more)]
    for number in range(config.num_layers, len(kinds)):
        twin = f"layers.{number % config.num_layers}."
        for name in [name for name in checkpoint.leaves if name.startswith(twin)]:
            leaves[f"layers.{number}." + name.removeprefix(twin)] = checkpoint.leaves[name]
        for norm in ("post_attn_norm", "post_ffn_norm"):  # zero-centred: -1 is a gain of 0
            leaves[f"layers.{number}.{norm}"] = partial(Dense, np.full(config.hidden_size, -1, dtype=np.float32))
    return replace(checkpoint, config=replace(config, num_layers=len(kinds), layer_types=tuple(kinds)), leaves=leaves)


def opened(args: argparse.Namespace) -> gemmary.Model:
    """The model that is measured, with its draft."""
    draft = gemmary.load(args.draft, threads=args.threads, quant=args.draft_quant) if args.draft else None
    if not args.deeper:
        return gemmary.load(args.model, threads=args.threads, dtype=args.dtype, quant=args.quant, draft=draft)
    if args.quant:
        raise SystemExit("--deeper is of a model as it is stored, or in a --dtype: no --quant")
    checkpoint = open_named(args.model)
    if not checkpoint.config.post_norms:
        raise SystemExit(f"--deeper needs norms behind the branches, which {checkpoint.name} does not have")
    checkpoint = deeper(checkpoint, args.deeper)
    engine = open_engine("native", checkpoint.config, checkpoint.lookup, threads=args.threads, dtype=args.dtype)
    return gemmary.Model(checkpoint, engine, context=4096, draft=draft)


def measure(model: gemmary.Model, args: argparse.Namespace) -> bool:
    """Prints a line for each kind of text. Whether all texts were the same with and without."""
    same = True
    engine = model.engine
    for name, kind in kinds().items():
        speeds: dict[bool, list[float]] = {True: [], False: []}
        texts: dict[bool, tuple[int, ...]] = {}
        ids = model.tokenizer.encode(kind.prompt, bos=True)
        written = model.tokenizer.encode(kind.dictated)
        model.scheduler.engine = Dictated(engine, [*ids, *written]) if written else engine
        count = min(args.tokens, kind.tokens, len(written) or kind.tokens)
        for number in range(args.repeat + 1):
            for speculate in (True, False) if number % 2 else (False, True):
                out = model.generate(ids, max_tokens=count, ignore_eos=True, speculate=speculate, **kind.options)
                texts[speculate] = out.tokens
                if speculate:
                    stats = out.stats
                    if args.show and not number:
                        print(out.text)
                if number:  # the first round warms up
                    speeds[speculate].append(out.stats.decode_tokens_per_s)
        same = same and texts[True] == texts[False]
        lines = {
            key: f"{statistics.median(runs):.1f} ({min(runs):.1f} … {max(runs):.1f})" for key, runs in speeds.items()
        }
        ratio = statistics.median(speeds[True]) / statistics.median(speeds[False])
        counts = f"{stats.guessed_right} of {stats.guessed} guesses right"
        if args.draft:
            counts += f" (draft: {stats.drafted_right} of {stats.drafted})"
        print(
            f"{name:14} tokens/s with guesses {lines[True]}, without {lines[False]}: {ratio:.2f} x; {counts}; "
            f"text {'the same' if texts[True] == texts[False] else 'DIFFERENT'}",
            flush=True,
        )
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--dtype", help="of the model, as in gemmary.load")
    parser.add_argument("--quant", help="of the model")
    parser.add_argument("--deeper", type=int, default=0, metavar="N", help="so many more layers that change nothing")
    parser.add_argument("--draft", metavar="MODEL", help="a small model that guesses")
    parser.add_argument("--draft-quant", metavar="QUANT")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the texts too")
    args = parser.parse_args()
    warnings.simplefilter("ignore", gemmary.GemmaryWarning)
    with opened(args) as model:
        return int(not measure(model, args))


if __name__ == "__main__":
    raise SystemExit(main())
