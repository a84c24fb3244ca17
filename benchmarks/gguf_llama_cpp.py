"""Does llama.cpp read the GGUF files that we write, and compute the same perplexity from them?

    pip install llama-cpp-python        # builds llama.cpp, for minutes
    python benchmarks/gguf_llama_cpp.py [--model FOLDER_OR_GGUF] [--engine native] [--formats BF16 Q8_0 Q4_0]

Writes the model in each format, runs our engine and llama.cpp over the same tokens of each file, and prints both
perplexities. Exits with 1 where they differ by more than 1 %. (llama.cpp does not round the embedding scale to bfloat16
as in training; --exact makes ours do the same, which leaves only arithmetic between the two.)
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gemmary.batch import Batch, Chunk
from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.starter import starter_path
from gemmary.engines import open_engine

Logits = npt.NDArray[np.float32]
TOLERANCE = 0.01


def python_documentation() -> str:
    """Plain English that every Python carries."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def perplexity(logits: Callable[[Sequence[int]], Logits], windows: list[list[int]]) -> float:
    """exp of the mean negative log-likelihood of every token after the first of each window."""
    total, count = 0.0, 0
    for window in windows:
        rows = logits(window)[:-1].astype(np.float64)
        peak = rows.max(axis=1)
        normalizer = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
        total += float((normalizer - rows[np.arange(len(rows)), window[1:]]).sum())
        count += len(rows)
    return math.exp(total / count)


def ours(path: Path, engine_name: str, exact: bool) -> Callable[[Sequence[int]], Logits]:
    checkpoint = open_checkpoint(path)
    config = replace(checkpoint.config, exact_embedding_scale=exact)
    engine = open_engine(engine_name, config, checkpoint.lookup)

    def logits(tokens: Sequence[int]) -> Logits:
        return engine.step(Batch.of(config, [Chunk(tokens, outputs="all")]), [engine.new_cache(len(tokens))])

    return logits


def theirs(path: Path, context: int, threads: int) -> Callable[[Sequence[int]], Logits]:
    from llama_cpp import Llama

    model: Any = Llama(str(path), n_ctx=context, n_batch=context, n_threads=threads, logits_all=True, verbose=False)

    def logits(tokens: Sequence[int]) -> Logits:
        model.reset()
        model.eval(list(tokens))
        return np.array(model.scores[: len(tokens)], dtype=np.float32)

    return logits


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder or .gguf file (the starter)")
    parser.add_argument("--text", type=Path, help="a UTF-8 file (Python's own documentation)")
    parser.add_argument("--engine", default="native")
    parser.add_argument("--exact", action="store_true", help="do not round the embedding scale")
    parser.add_argument("--formats", nargs="+", default=["F32", "BF16", "F16", "Q8_0", "Q4_0"])
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=512, help="tokens of a window")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    source = open_checkpoint(options.model or starter_path())
    text = options.text.read_text(encoding="utf-8") if options.text else python_documentation()
    body = options.context - 1
    ids = source.tokenizer.encode(text[: 16 * body * options.windows])
    windows = [[source.tokenizer.bos_id, *ids[i * body : (i + 1) * body]] for i in range(options.windows)]

    worst = 0.0
    print(f"{'format':8} {'ours':>10} {'llama.cpp':>10} {'difference':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for format in options.formats:
            path = Path(folder) / f"{format}.gguf"
            for notice in save_checkpoint(source, path, format="gguf", dtype=format):
                print(f"  {notice}")
            a = perplexity(ours(path, options.engine, options.exact), windows)
            b = perplexity(theirs(path, options.context, options.threads), windows)
            worst = max(worst, abs(a / b - 1))
            print(f"{format:8} {a:10.4f} {b:10.4f} {a / b - 1:+10.3%}", flush=True)
            path.unlink()
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    raise SystemExit(main())
