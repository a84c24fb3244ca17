"""A strong n-gram model of the tokens that `gemmary pretrain` trained on, measured on the text that it held out.

    python benchmarks/ngram_baseline.py OUT [--order 5]

OUT is the folder of the run. Interpolated modified Kneser-Ney (Chen and Goodman 1999): three discounts for each order,
the lower orders counting contexts instead of occurrences, the lowest interpolated with the uniform distribution. The
discounts begin at the closed form and are then tuned on the validation documents, as the neural model's settings were.
Both models predict the same tokens, each document's end among them, from that document alone.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gemmary.tokenizer import Tokenizer

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

STEPS = (0.25, 0.1, 0.04, 0.015)
"""Of the search for the discounts, each tried until it helps no more."""


@dataclass(frozen=True)
class Level:
    """The n-grams of one order. A context is an n-gram of the order below, under the id that it has there."""

    keys: Ints
    """[n-grams] context * V + token, ascending: the place of a key is the n-gram's id."""
    counts: Ints
    """[n-grams] occurrences at the highest order, below it the different tokens that stood before."""
    totals: Ints
    """[contexts] the sum of the counts of a context's n-grams."""
    few: Ints
    """[contexts, 3] how many of its n-grams have count 1, 2, and 3 or more."""

    def find(self, keys: Ints) -> Ints:
        """The ids of keys, -1 for one that is not there."""
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1)

    def closed_form(self) -> Floats:
        """The discounts [3] of counts 1, 2, 3 and more that are best for n-grams seen once too little (equation 17)."""
        n = [max(1, int((self.counts == count).sum())) for count in (1, 2, 3, 4)]
        y = n[0] / (n[0] + 2 * n[1])
        return np.clip([k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3)], 0.0, (1.0, 2.0, 3.0))


@dataclass(frozen=True)
class Seen:
    """What training saw of each of T predictions, at each of the orders: all that probabilities need."""

    counts: Ints
    """[orders, T] of the n-gram that ends in the token."""
    totals: Ints
    """[orders, T] of its context; 0 where that was never seen."""
    few: Ints
    """[orders, T, 3]"""


class KneserNey:
    """An interpolated modified Kneser-Ney model. Documents are arrays of ids [T], their last token the end of text."""

    def __init__(self, documents: Sequence[Ints], vocab_size: int, bos_id: int, order: int = 5) -> None:
        self.vocab_size, self.bos_id, self.order = vocab_size, bos_id, order
        stream, scored = self._stream(documents)
        ids = [np.zeros_like(stream)]  # of the n-gram that ends at each place: at order 0, the empty one
        keys, lasts = [], []
        for _ in range(order):
            key = np.concatenate(([0], ids[-1][:-1])) * vocab_size + stream
            unique, last, each = np.unique(key, return_index=True, return_inverse=True)
            keys.append(unique)
            lasts.append(last)
            ids.append(each)
        self.levels = []
        for n in range(order):
            if n == order - 1:
                counts = np.bincount(ids[n + 1][scored], minlength=len(keys[n]))
            else:  # each different longer n-gram that ends in a token of the text gives its tail one
                longer = np.unique(ids[n + 2][scored], return_index=True)[1]
                counts = np.bincount(ids[n + 1][scored][longer], minlength=len(keys[n]))
            context = keys[n] // vocab_size
            contexts = len(keys[n - 1]) if n else 1
            few = [np.bincount(context[counts_are], minlength=contexts) for counts_are in _few(counts)]
            totals = np.bincount(context, weights=counts, minlength=contexts).astype(np.int64)
            self.levels.append(Level(keys[n], counts, totals, np.stack(few, axis=1)))
        self.discounts = np.stack([level.closed_form() for level in self.levels])

    def seen(self, documents: Sequence[Ints]) -> Seen:
        """Looks every prediction of the documents up, once for any number of discounts."""
        stream, scored = self._stream(documents)
        before = np.zeros_like(stream)
        counts, totals, few = [], [], []
        for level in self.levels:
            context = np.concatenate(([0], before[:-1]))
            known = context >= 0
            found = np.where(known, level.find(context * self.vocab_size + stream), -1)
            counts.append(np.where(found >= 0, level.counts[found], 0)[scored])
            totals.append(np.where(known, level.totals[context], 0)[scored])
            few.append(np.where(known[:, None], level.few[context], 0)[scored])
            before = found
        return Seen(np.stack(counts), np.stack(totals), np.stack(few))

    def probabilities(self, seen: Seen, discounts: Floats | None = None) -> Floats:
        """[T]: of each token given those before it. discounts: [orders, 3], the model's own by default."""
        table = np.pad(self.discounts if discounts is None else discounts, ((0, 0), (1, 0)))
        p: Floats = np.full(seen.counts.shape[1], 1.0 / self.vocab_size)
        for count, total, few, discount in zip(seen.counts, seen.totals, seen.few, table, strict=True):
            kept = np.maximum(count - discount[np.minimum(count, 3)], 0.0)
            p = np.where(total > 0, (kept + few @ discount[1:] * p) / np.maximum(total, 1), p)
        return p

    def tune(self, documents: Sequence[Ints]) -> None:
        """Moves one discount at a time while that makes the documents more likely."""
        seen, best = self.seen(documents), self.discounts
        loss = -np.log(self.probabilities(seen)).sum()
        for step in STEPS:
            moved = True
            while moved:
                moved = False
                for place in np.ndindex(best.shape):
                    for change in (step, -step):
                        tried = best.copy()
                        tried[place] = min(max(tried[place] + change, 0.0), place[1] + 1)
                        found = -np.log(self.probabilities(seen, tried)).sum()
                        if found < loss - 1e-6:
                            best, loss, moved = tried, found, True
        self.discounts = best

    def _stream(self, documents: Sequence[Ints]) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """All documents, each behind as many <bos> as the longest n-gram has tokens; and which places are predicted."""
        start = np.full(self.order, self.bos_id, np.int64)
        stream = np.concatenate([part for document in documents for part in (start, document)])
        scored = np.concatenate([np.arange(-self.order, len(document)) >= 0 for document in documents])
        return stream, scored


def _few(counts: Ints) -> tuple[npt.NDArray[np.bool_], ...]:
    return counts == 1, counts == 2, counts >= 3


def read(path: Path, tokenizer: Tokenizer) -> tuple[list[Ints], int]:
    """The documents of a .jsonl file as ids, and their bytes. Markers in a text are text, as they were to the model."""
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    ids = [np.array(tokenizer.encode(text, eos=True, escape_markers=True), np.int64) for text in texts]
    return ids, sum(len(text.encode()) for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder of a run of `gemmary pretrain`")
    parser.add_argument("--order", type=int, default=5, metavar="N", help="tokens of the longest n-gram (default: 5)")
    arguments = parser.parse_args()
    start = arguments.out / "start"
    tokenizer = Tokenizer.from_folder(start / "untrained")
    train, _ = read(start / "data" / "train.jsonl", tokenizer)
    validation, _ = read(start / "data" / "valid.jsonl", tokenizer)
    held_out, held_out_bytes = read(start / "held-out.jsonl", tokenizer)
    model = KneserNey(train, tokenizer.vocab_size, tokenizer.bos_id, arguments.order)
    print(f"{arguments.order}-gram model of {sum(map(len, train)):,} tokens")
    for is_tuned in (False, True):
        if is_tuned:
            model.tune(validation)
        nats = -np.log(model.probabilities(model.seen(held_out))).sum()
        tokens = sum(map(len, held_out))
        bits = nats / math.log(2) / held_out_bytes
        how = "tuned on the validation documents" if is_tuned else "in closed form"
        print(f"discounts {how}: perplexity {math.exp(nats / tokens):.2f} per token, {bits:.4f} bits per byte")


if __name__ == "__main__":
    main()
