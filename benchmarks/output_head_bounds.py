"""How many 16-row panels of the output head are left for an exact look after bounds on its logits from a part of each
code, for real final hidden states: a simulation in numpy, with the best threshold there is (the true k-th logit).

    python benchmarks/output_head_bounds.py [--model starter] [--rows 262144] [--positions 40]

The head must be Q8_0. A code is a high part and a rest; the rest is bounded by Hoelder's inequality (its largest size
times the sum of |x|) or by Cauchy-Schwarz (norms of the rest that are stored for each row or group of 32). The inputs
whose rest is read as well are the largest, in blocks of 8. Takes 4 GB and some minutes. See docs/output-head.md.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

import gemmary
from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import hub, open_checkpoint
from gemmary.verify import builtin_text

Array = npt.NDArray[Any]
PROMPTS = ("Write a list of strange animals and describe each of them.", "Once upon a time there was a small robot who")
WANTED = (1, 64)
PASSES = [
    (4, "Hölder", 0),
    (4, "norm a row", 0),
    (4, "norm a group", 0),
    (3, "norm a group", 0),
    (5, "norm a group", 0),
    (5, "Hölder", 0),
    (6, "norm a group", 0),
    (4, "Hölder", 32),
    (4, "Hölder", 64),
    (4, "Hölder", 128),
]


def hidden(model: Any, ids: list[int], first: int, count: int) -> Array:
    """Final hidden states [count, D] of evenly spaced places of a text from `first` on."""
    found: dict[str, Array] = {}
    model.engine.step(Batch.of(model.config, [Chunk(ids)]), [model.engine.new_cache(len(ids))], found)
    return found["hidden"][np.linspace(first, len(ids) - 1, count).astype(int)]


def as_quantized(x: Array) -> Array:
    """What the kernels multiply: int8 groups of 32 with their largest value kept exactly (csrc/activations.h)."""
    groups = x.reshape(len(x), -1, 32)
    largest = np.abs(groups).argmax(axis=2)[:, :, None]
    rest = groups.copy()
    np.put_along_axis(rest, largest, 0, axis=2)
    scale = np.abs(rest).max(axis=2, keepdims=True) / np.float32(127)
    rest = np.rint(rest / np.where(scale == 0, 1, scale)) * scale
    np.put_along_axis(rest, largest, np.take_along_axis(groups, largest, axis=2), axis=2)
    return rest.reshape(x.shape).astype(np.float32)


def unread(x: Array, read: int) -> Array:
    """x [B, D] with the largest `read` inputs zeroed, in blocks of 8 by their sums of |x|."""
    blocks = x.reshape(len(x), -1, 8).copy()
    order = np.argsort(-np.abs(blocks).sum(axis=2), axis=1)[:, : read // 8]
    np.put_along_axis(blocks, order[:, :, None], 0, axis=1)
    return blocks.reshape(x.shape)


def bound(codes: Array, scales: Array, x: Array, bits: int, kind: str) -> Array:
    """The most that the rest of each row's codes can add to its logit [V, B]."""
    half = (2 ** (8 - bits) - 1) / 2  # the rest, centred, is in -half..half
    groups = x.reshape(len(x), -1, 32)
    if kind == "Hölder":
        return scales @ (half * np.abs(groups).sum(axis=2)).T
    rest = (codes & (2 ** (8 - bits) - 1)).astype(np.float32) - np.float32(half)
    norms = scales * np.sqrt((rest**2).sum(axis=2))
    if kind == "norm a row":
        return np.linalg.norm(norms, axis=1)[:, None] * np.linalg.norm(x, axis=1)
    return norms @ np.linalg.norm(groups, axis=2).T


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--rows", type=int, default=262144)
    parser.add_argument("--positions", type=int, default=40)
    args = parser.parse_args()
    warnings.simplefilter("ignore", gemmary.GemmaryWarning)
    texts: dict[str, Array] = {}
    with gemmary.load(args.model) as model:
        ids = list(model.tokenizer.encode(builtin_text()))
        each = max(1, args.positions // 5)
        pieces = [hidden(model, ids[start : start + 500], 64, each) for start in range(0, 2500, 500)]
        texts["text"] = np.concatenate(pieces)
        written = []
        for prompt in PROMPTS:
            begin = list(model.tokenizer.encode(prompt))
            out = model.generate(prompt, max_tokens=160, ignore_eos=True, seed=1)
            written.append(hidden(model, [*begin, *out.tokens[:-1]], len(begin), max(1, args.positions // 2)))
        texts["generated"] = np.concatenate(written)
    leaf: Any = open_checkpoint(hub.resolve(args.model)).lookup("embed")
    blocks = np.asarray(leaf.data)[: args.rows].reshape(args.rows, -1, 34)
    scales = blocks[:, :, :2].copy().view(np.float16)[:, :, 0].astype(np.float32)
    codes = blocks[:, :, 2:].view(np.int8)
    weights = (codes * scales[:, :, None]).reshape(args.rows, -1)
    columns = [f"{text}, k = {k}" for text in texts for k in WANTED]
    print(f"| first pass, panels left in % | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    rows = {text: as_quantized(x) for text, x in texts.items()}
    logits = {text: weights @ x.T for text, x in rows.items()}
    for bits, kind, read in PASSES:
        shares = []
        for text, x in rows.items():
            upper = logits[text] + bound(codes, scales, unread(x, read), bits, kind)
            for k in WANTED:
                left = upper >= np.partition(logits[text], -k, axis=0)[-k]
                shares.append(f"{100 * left.reshape(-1, 16, left.shape[1]).any(axis=1).mean():.2f}")
        print(f"| {bits} bits, {kind}, {read} inputs read | {' | '.join(shares)} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
