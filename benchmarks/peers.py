"""Gemmary beside its peers on this machine: llama.cpp, OpenVINO and transformers, whichever are here, in turn.

    python benchmarks/peers.py                                             # the starter
    python benchmarks/peers.py --model random:gemma-2-2b --plot 2b.png     # a released shape with random weights
    python benchmarks/peers.py --peers gemmary:int8 llama.cpp:int8 --python openvino=ov/bin/python

Nothing is installed: `pip install llama-cpp-python` builds llama.cpp for the machine; for OpenVINO see
openvino_export.py, and give its interpreter with --python. The same file serves Gemmary and llama.cpp; others get what
their own tools make of the same weights. --prepare writes the files and ends.

Every peer has a process of its own and the same number of threads. Each round asks them in turn: a prompt, then single
tokens after it, then several sequences at once; all from token ids to logits in memory, no sampling, other ids every
round. A first round warms up and is not counted. Before and after every decode a plain read of memory is timed, and
the decode's bytes a second (weights, keys and values once a token) are given as a share of it. `first token` is the
time from the imported library, nothing loaded, to the logits of a prompt of six tokens, the file in the system's cache.
Printed are medians with the least and the largest, and what the first peer is of each other one.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from asked import Asked
from peers_files import Files, default_weights, prepare
from peers_probe import REST_S, ReadProbe
from peers_report import plot, print_table, row_of
from peers_runners import LIBRARIES, RUNNERS

from gemmary.checkpoints.starter import cache_folder
from gemmary.errors import GemmaryError

CHILD = Path(__file__).with_name("peers_child.py")


@dataclass
class Peer:
    """One peer with its files; its process while it has one; and what it answered."""

    kind: str
    weights: str
    python: str
    files: Files
    answers: list[dict[str, float]] = field(default_factory=list)
    starts: list[dict[str, Any]] = field(default_factory=list)
    process: Asked | None = None

    def begin(self, context: int, threads: int) -> None:
        command = [self.python, str(CHILD), self.kind, str(self.files.path), self.files.dtype or ""]
        self.process = Asked(f"{self.kind}:{self.weights}", [*command, str(context), str(threads)])
        self.starts.append(self.process.ready)

    def ask(self, **request: Any) -> dict[str, float]:
        assert self.process is not None
        time.sleep(REST_S)
        return self.process.ask(**request)

    def end(self) -> None:
        if self.process is not None:
            self.process.end()
            self.process = None


def is_present(kind: str, python: str) -> bool:
    """Whether an interpreter has a peer's library."""
    find = f"import importlib.util as u; raise SystemExit(u.find_spec({LIBRARIES[kind][0].split('.')[0]!r}) is None)"
    try:
        return subprocess.run([python, "-c", find], stderr=subprocess.DEVNULL).returncode == 0
    except OSError as error:
        raise GemmaryError(f"cannot run {python} for {kind}: {error.strerror}") from error


def chosen(options: argparse.Namespace) -> list[Peer]:
    """The peers that were named, or all that are present."""
    pythons = dict(pair.split("=", 1) for pair in options.python)
    peers = []
    for named in options.peers or RUNNERS:
        kind, _, weights = named.partition(":")
        python = pythons.get(kind, sys.executable)
        if kind not in RUNNERS:
            raise GemmaryError(f"no peer is called {kind!r}: choose {', '.join(RUNNERS)}")
        if not is_present(kind, python):
            if options.peers:
                raise GemmaryError(f"{python} has no {kind}: install it there, or name another with --python {kind}=")
            print(f"left out, as it is not installed: {kind}", file=sys.stderr)
            continue
        weights = weights or default_weights(kind, options.model)
        print(f"preparing {kind}:{weights}", file=sys.stderr)
        peers.append(Peer(kind, weights, python, prepare(kind, weights, options.model, options.cache, python)))
    return peers


def measure(peers: list[Peer], options: argparse.Namespace) -> None:
    """Fills the peers' `starts` and `answers`."""
    length = max(options.prefill + options.decode, options.context_decode)
    for number in range(options.loads):
        for peer in peers:
            warm(peer.files.path)
            peer.begin(length + 16, options.threads)
            if number < options.loads - 1:
                peer.end()
    probe = ReadProbe(options.threads)
    for number in range(options.repeat + 1):
        for peer in peers:
            answer = ask_round(peer, options, np.random.default_rng(number), probe)
            if number:
                peer.answers.append(answer)
    if options.context_decode:
        for peer in peers:
            ask_deep(peer, options, probe)


def ask_round(
    peer: Peer, options: argparse.Namespace, random: np.random.Generator, probe: ReadProbe
) -> dict[str, float]:
    def ids(*shape: int) -> list[list[int]]:
        return random_ids(random, peer, shape)

    start = peer.ask(prompts=ids(1, options.prefill))
    before = probe()
    write = peer.ask(steps=ids(options.decode, 1))
    answer = {"prefill_s": start["start_s"], "decode_s": write["write_s"], "probe": (before + probe()) / 2}
    answer["peak_bytes"] = write["peak_bytes"]
    if options.together:
        each = max(1, options.prefill // options.together)
        steps = max(1, options.decode // options.together)
        peer.ask(prompts=ids(options.together, each))
        answer["together_s"] = peer.ask(steps=ids(steps, options.together))["write_s"]
    return answer


def ask_deep(peer: Peer, options: argparse.Namespace, probe: ReadProbe) -> None:
    """Decodes at the end of a long context, which is filled once."""
    steps = max(1, options.decode // 8)
    total = steps * len(peer.answers)
    (ids,) = random_ids(np.random.default_rng(options.context_decode), peer, (1, options.context_decode))
    peer.ask(prompts=[ids[: options.context_decode - total]])
    for number, answer in enumerate(peer.answers):
        begin = options.context_decode - total + steps * number
        before = probe()
        answer["deep_s"] = peer.ask(steps=[[i] for i in ids[begin : begin + steps]])["write_s"] / steps
        answer["deep_probe"] = (before + probe()) / 2


def random_ids(random: np.random.Generator, peer: Peer, shape: tuple[int, ...]) -> list[list[int]]:
    """Ids of words: markers and bytes lie at the ends of the vocabulary."""
    size = peer.files.config.vocab_size
    ids: list[list[int]] = random.integers(size // 200, size - size // 200, shape).tolist()
    return ids


def warm(path: Path) -> None:
    """Brings a file, or those of a folder, into the system's cache."""
    for file in [path] if path.is_file() else path.iterdir():
        with open(file, "rb") as stream:
            while stream.read(1 << 24):
                pass


def machine(threads: int) -> dict[str, Any]:
    names = Path("/proc/cpuinfo")
    lines = names.read_text(encoding="utf-8").splitlines() if names.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "threads": threads,
        "python": platform.python_version(),
        "numpy": importlib.metadata.version("numpy"),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a name, random:NAME or a .gguf file")
    parser.add_argument(
        "--peers", nargs="+", metavar="PEER[:WEIGHTS]", help=f"{', '.join(RUNNERS)}; weights: stored, int4, int8, …"
    )
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH", help="a peer's interpreter")
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=128)
    parser.add_argument("--together", type=int, default=8, metavar="N", help="sequences at once; 0: not measured")
    parser.add_argument("--context-decode", type=int, default=0, metavar="N", help="also decode after so many tokens")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--loads", type=int, default=3, help="how often each peer is started")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "benchmarks", help="where files are kept")
    parser.add_argument("--prepare", action="store_true", help="only write the files")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help='needs matplotlib: pip install "gemmary[bench]"')
    return parser.parse_args()


def main() -> int:
    options = parse()
    peers: list[Peer] = []
    try:
        peers = chosen(options)
        if options.prepare:
            return 0
        measure(peers, options)
    except GemmaryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        for peer in peers:
            peer.end()
    rows = [row_of(peer, options) for peer in peers]
    about = {"model": options.model, **machine(options.threads), "rounds": options.repeat}
    if options.json:
        print(json.dumps({**about, "peers": rows}, indent=2))
    else:
        print_table(about, rows, options)
    if options.plot:
        plot(about, rows, options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
