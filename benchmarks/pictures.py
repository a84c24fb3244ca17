"""A picture and a question on Gemmary beside transformers on this machine: the shape of a PaliGemma, random weights.

    python benchmarks/pictures.py                                     # PaliGemma 2 3B at 224 pixels
    python benchmarks/pictures.py --model paligemma2-3b-pt-448
    python benchmarks/pictures.py --sides gemmary:int4 gemmary:int8 --model paligemma2-10b-pt-224

Each round asks every side in turn for: the tower alone; the first token after a picture never seen before and a prompt
of 16 tokens (tower, prefill, scores of the last token); 16 tokens more, given, one at a time. Sides are `gemmary:QUANT`
(int4, int8 or bfloat16: the native engine), and `transformers:DTYPE` (float32 or bfloat16: a processor without bfloat16
instructions multiplies several times as fast in float32). Each has a process of its own and the same threads; the first
picture of a process is not counted. With --restart a process lasts for one round, for models that do not fit into
memory side by side. Right before each answer PyTorch's product of large float32 matrices is timed: the tower's share of
it may be above 100 %, where it computes in 8 bits. Memory is the largest resident set of the side's process.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from asked import Asked
from peers_report import spread
from tuning_child import ceiling

from gemmary import zoo
from gemmary.config import VisionConfig
from gemmary.errors import GemmaryError

CHILD = Path(__file__).with_name("pictures_child.py")
SIDES = ("gemmary:int4", "gemmary:int8", "transformers:float32", "transformers:bfloat16")
DECODED = 16


def tower_flops(vision: VisionConfig, width: int) -> int:
    """Multiplications and additions of one picture: the matrices, and attention of every patch to every patch."""
    matrices = vision.parameters - vision.num_patches * vision.hidden_size + vision.hidden_size * width
    keys = 4 * vision.num_layers * vision.num_patches * vision.hidden_size
    return vision.num_patches * (2 * matrices + keys)


def measure(options: argparse.Namespace) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """What each side says of itself, and its answers, a round of all after the other."""
    running: dict[str, Asked] = {}
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    try:
        for number in range(options.repeat):
            for side in options.sides:
                if side not in running:
                    kind, _, how = side.partition(":")
                    command = [sys.executable, str(CHILD), kind, options.model, how, str(options.threads)]
                    running[side] = Asked(side, command)
                    running[side].ask(seed=1000 + number, decoded=1)
                top = ceiling("float32")
                answer = running[side].ask(seed=number, decoded=DECODED) | {"ceiling": top}
                found.setdefault(side, (running[side].ready, []))[1].append(answer)
                if options.restart:
                    running.pop(side).end()
    finally:
        for child in running.values():
            child.end()
    return found


def row_of(side: str, about: dict[str, Any], answers: list[dict[str, Any]], flops: int) -> dict[str, Any]:
    return {
        "side": side,
        **about,
        "tower_s": spread(a["tower_s"] for a in answers),
        "first_token_s": spread(a["first_s"] for a in answers),
        "tokens_per_s": spread(DECODED / a["decode_s"] for a in answers),
        "peak_bytes": max(a["peak_bytes"] for a in answers),
        "tower_share": spread(flops / a["tower_s"] / a["ceiling"] for a in answers),
        "ceiling": spread(a["ceiling"] / 1e9 for a in answers),
    }


def print_rows(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    print(
        f"{options.model}, random weights, {options.threads} threads, {options.repeat} rounds, "
        f"{platform.processor() or platform.machine()}"
    )
    for row in rows:
        first, speed, tower, share = (row[key] for key in ("first_token_s", "tokens_per_s", "tower_s", "tower_share"))
        print(f"{row['side']} ({row['name']}): peak {row['peak_bytes'] / 1e9:.2f} GB")
        print(f"    first token {first['median']:.2f} s ({first['min']:.2f} to {first['max']:.2f})")
        print(f"    then {speed['median']:.2f} tokens/s ({speed['min']:.2f} to {speed['max']:.2f})")
        print(
            f"    tower {tower['median']:.2f} s ({tower['min']:.2f} to {tower['max']:.2f}), {share['median']:.0%} of "
            f"PyTorch's {row['ceiling']['median']:.0f} GFLOP/s in float32"
        )
    first = rows[0]
    for row in rows[1:]:
        earlier = row["first_token_s"]["median"] / first["first_token_s"]["median"]
        faster = first["tokens_per_s"]["median"] / row["tokens_per_s"]["median"]
        memory = first["peak_bytes"] / row["peak_bytes"]
        print(
            f"{first['side']} beside {row['side']}: first token {earlier:.2f} x sooner, {faster:.2f} x the tokens/s, "
            f"{memory:.2f} x the memory"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="paligemma2-3b-pt-224", help="a row of the zoo that sees pictures")
    parser.add_argument("--sides", nargs="+", default=SIDES, metavar="SIDE", help=", ".join(SIDES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="rounds that are counted")
    parser.add_argument("--restart", action="store_true", help="a new process for each round")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        config = zoo.get(options.model).config
        if config.vision is None:
            raise GemmaryError(f"{options.model} sees no pictures")
        torch.set_num_threads(options.threads)
        answers = measure(options)
    except GemmaryError as error:
        sys.exit(f"error: {error}")
    flops = tower_flops(config.vision, config.hidden_size)
    rows = [row_of(side, *found, flops) for side, found in answers.items()]
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        print_rows(rows, options)


if __name__ == "__main__":
    main()
