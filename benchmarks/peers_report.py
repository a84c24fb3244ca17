"""What peers.py measured, as rows, a table and a plot."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peers import Peer

    from gemmary.config import Config

SPREADS = {
    "prefill": ("tokens/s", 1),
    "decode": ("tokens/s", 1),
    "read": ("GB/s", 1),
    "probe": ("GB/s", 1),
    "share": ("of probe", 2),
    "together": ("tokens/s", 1),
    "deep": ("tokens/s", 1),
    "deep_share": ("of probe", 2),
    "first_token": ("s", 2),
}
"""Figures of a row with a median and a spread: unit, and digits shown."""
RATIOS = {"prefill": 1, "decode": 1, "together": 1, "deep": 1, "first_token": -1}
"""Figures that are compared between peers; -1: less is better."""


def row_of(peer: Peer, options: argparse.Namespace) -> dict[str, Any]:
    """A peer's figures. Bytes read for a token: every weight, and every key and value that it sees, once."""
    config, element, weights = peer.files.config, peer.files.kv_element_bytes, peer.files.weight_bytes
    middle = options.prefill + options.decode // 2
    read = weights + kv_bytes(config, middle, element)
    row: dict[str, Any] = {
        "name": peer.starts[-1]["name"],
        "peer": peer.kind,
        "weights": peer.weights,
        "weight_bytes": weights,
        "kv_bytes": kv_bytes(config, options.prefill + options.decode, element),
        "peak_bytes": max(answer["peak_bytes"] for answer in peer.answers),
        "load": spread(start["load_s"] for start in peer.starts),
        "first_token": spread(start["first_token_s"] for start in peer.starts),
    }

    def add(name: str, figure: Callable[[dict[str, float]], float]) -> None:
        row[name] = spread(figure(answer) for answer in peer.answers)

    add("prefill", lambda a: options.prefill / a["prefill_s"])
    add("decode", lambda a: options.decode / a["decode_s"])
    add("read", lambda a: read * options.decode / a["decode_s"] / 1e9)
    add("probe", lambda a: a["probe"])
    add("share", lambda a: read * options.decode / a["decode_s"] / 1e9 / a["probe"])
    if options.together:
        written = options.together * max(1, options.decode // options.together)
        add("together", lambda a: written / a["together_s"])
        row["together_ratio"] = row["together"]["median"] / row["decode"]["median"]
    if options.context_decode:
        deep = weights + kv_bytes(config, options.context_decode, element)
        add("deep", lambda a: 1 / a["deep_s"])
        add("deep_share", lambda a: deep / a["deep_s"] / 1e9 / a["deep_probe"])
    return row


def kv_bytes(config: Config, tokens: int, element_bytes: int) -> int:
    """Bytes of the keys and values that the last of `tokens` sees."""
    return config.kv_cache_bytes(tokens, element_bytes)


def spread(values: Iterable[float]) -> dict[str, float]:
    found = list(values)
    return {"median": statistics.median(found), "min": min(found), "max": max(found)}


def titles(options: argparse.Namespace) -> dict[str, str]:
    return {
        "prefill": f"prefill {options.prefill}",
        "decode": f"decode {options.decode}",
        "read": "it reads",
        "probe": "read probe",
        "share": "read / probe",
        "together": f"{options.together} together",
        "deep": f"decode at {options.context_decode:,}",
        "deep_share": "its read / probe",
        "first_token": "first token",
    }


def print_table(about: dict[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """One block a peer, and the ratios of medians: the first peer to each other one."""
    print(", ".join(f"{name}: {value}" for name, value in about.items()))
    print("median (least … largest)")
    names = titles(options)
    for row in rows:
        print(f"\n{row['name']}, weights {row['weights']} ({row['weight_bytes'] / 1e9:.3f} GB)")
        for key, (unit, digits) in SPREADS.items():
            if key in row:
                low, high = f"{row[key]['min']:,.{digits}f}", f"{row[key]['max']:,.{digits}f}"
                extra = f", {row['together_ratio']:.2f} x one" if key == "together" else ""
                print(f"  {names[key]:18} {row[key]['median']:9,.{digits}f} ({low} … {high}) {unit}{extra}")
        least = row["weight_bytes"] + row["kv_bytes"]
        print(f"  {'peak memory':18} {row['peak_bytes'] / 1e6:9,.0f} MB (weights and cache: {least / 1e6:,.0f} MB)")
    for row in rows[1:]:
        parts = [f"{names[key]} {ratio:.2f} x" for key, ratio in ratios(rows[0], row).items()]
        print(f"\n{rows[0]['name']} / {row['name']}, {row['weights']}: {', '.join(parts)}")


def ratios(row: dict[str, Any], other: dict[str, Any]) -> dict[str, float]:
    """How many times as fast: above 1 the first is ahead."""
    both = [key for key in RATIOS if key in row and key in other]
    return {key: (row[key]["median"] / other[key]["median"]) ** RATIOS[key] for key in both}


def plot(about: dict[str, Any], rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Bars of the tokens a second, with the spread as whiskers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = titles(options)
    keys = [key for key in ("prefill", "decode", "together", "deep") if key in rows[0]]
    figure, axes = pyplot.subplots(1, len(keys), figsize=(3.6 * len(keys) + 1.5, 0.6 * len(rows) + 1.4), squeeze=False)
    labels = [f"{row['peer']} {row['weights']}" for row in rows]
    for number, (key, axis) in enumerate(zip(keys, axes[0], strict=True)):
        medians = [row[key]["median"] for row in rows]
        below = [row[key]["median"] - row[key]["min"] for row in rows]
        above = [row[key]["max"] - row[key]["median"] for row in rows]
        colours = ["#4285f4" if row["peer"] == "gemmary" else "#9aa0a6" for row in rows]
        axis.barh(labels, medians, xerr=[below, above], color=colours, ecolor="#202124", capsize=2)
        axis.set_title(f"{names[key]}, tokens/s", fontsize=10)
        axis.invert_yaxis()
        axis.tick_params(labelleft=number == 0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{about['model']}, {about['threads']} threads, {about['processor']}", fontsize=10)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=150)
    pyplot.close(figure)
