"""The most memory that quantizing a sharded checkpoint takes, which is not to grow with it.

    python benchmarks/quantize_memory.py gemma-2-27b --layers 1 4 --folder DIR

A bfloat16 folder of the model's shape with so many of its layers, in shards, is laid out in DIR as files of holes,
which take no room; every weight of it is zero. A process of its own rounds it to 4 bits, without measuring the result
(which would load both models), and tells the most that it had resident at once, mapped pages among it. What it wrote is
removed after each run; it takes 1.2 bytes of disk a weight for a while.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

SHARD_BYTES = 5_000_000_000


def lay_out(name: str, layers: int, folder: Path) -> int:
    """Writes the folder; returns the bytes that its files claim to have."""
    from gemmary import zoo
    from gemmary.checkpoints.config_json import write_config
    from gemmary.checkpoints.json_files import write_json
    from gemmary.checkpoints.random_tokenizer import stand_in
    from gemmary.checkpoints.safetensors import layout
    from gemmary.checkpoints.tensors import hub_name, tensors

    config = zoo.get(name).config
    config = replace(config, num_layers=layers, layer_types=config.layer_types[:layers], vision=None)
    folder.mkdir()
    write_json(folder / "config.json", write_config(config, "bfloat16", [1]))
    stand_in(config).save(folder)
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    room = SHARD_BYTES
    for tensor in tensors(config):
        part = (hub_name(config, tensor), "BF16", tensor.shape)
        nbytes = layout([part])[1]
        if nbytes > room and shards[-1]:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(part)
        room -= nbytes
    places: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards, 1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, nbytes = layout(shard)
        with open(folder / file_name, "wb") as file:
            file.write(header)
            file.truncate(len(header) + nbytes)
        places |= {part[0]: file_name for part in shard}
        total += len(header) + nbytes
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return total


def quantize(source: Path, out: Path, format: str) -> dict[str, Any]:
    from gemmary.bench import peak_rss_bytes
    from gemmary.calibrate import quality
    from gemmary.calibrate.quantize import quantize

    quality.measure = lambda *given: "left out"
    before = peak_rss_bytes()
    quantize(source, out, format=format)
    return {"before_bytes": before, "peak_bytes": peak_rss_bytes()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="gemma-2-27b", help="a row of the zoo")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--format", choices=("packed", "compressed-tensors"), default="packed")
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(quantize(*options.child, options.format)))
        return
    for layers in options.layers:
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            claimed = lay_out(options.model, layers, folder / "source")
            command = [sys.executable, __file__, "--format", options.format]
            command += ["--child", str(folder / "source"), str(folder / "out")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        finally:
            shutil.rmtree(folder)
        row = {"model": options.model, "layers": layers, "source_bytes": claimed, **json.loads(done.stdout)}
        said = (
            f"{row['model']} with {layers} layers, {claimed / 1e9:.1f} GB: at most {row['peak_bytes'] / 1e9:.2f} GB "
            f"resident, {row['before_bytes'] / 1e9:.2f} GB of them before it began"
        )
        print(json.dumps(row) if options.json else said, flush=True)


if __name__ == "__main__":
    main()
