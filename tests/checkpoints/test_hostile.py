"""Mutated files: each is opened, or refused in one line, and nothing else happens. 205,000 a run, the same every time.

The GGUF header's parser takes 180,000 of them under the sanitizers (fuzz_gguf_header.cc); the rest go through Python.
"""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.config_json import read_config
from gemmary.checkpoints.json_files import parse_json
from gemmary.checkpoints.safetensors import DTYPES, parse_header
from gemmary.errors import GemmaryError
from tests.checkpoints.sources import TinySource, tiny
from tests.checkpoints.test_config_json import EMBEDDING, GEMMA2_27B, GEMMA3_4B, GEMMA_2B
from tests.tiny import TINY, random_leaves

SOURCES = Path(__file__).resolve().parents[2] / "src" / "gemmary" / "csrc"
EXTREMES: list[Any] = [
    0, 1, -1, 2, 255, 1 << 31, (1 << 32) - 1, 1 << 53, 1 << 60, (1 << 63) - 1, 1 << 64, 10**40, 0.5, 1e308, -0.0,
    None, True, False, "", "F32", "F64", "../../etc/passwd", "\ud800", "a\nb", [], {}, [[]], [0], [1 << 60, 1 << 60],
]  # fmt: skip


def refused(call: Callable[[], Any]) -> bool:
    """Whether the call raised GemmaryError of one line. Any other exception fails the test."""
    message = None
    try:
        call()
    except GemmaryError as error:
        message = str(error)
    if message is not None:
        assert "\n" not in message
        assert 0 < len(message) < 600
    return message is not None


def flip(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut, doubled, dropped or extreme lengths written."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(max(1, len(out)))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 1 << 20, 1 << 32, 1 << 60, (1 << 64) - 1, len(out)]))
        elif kind == 3:
            out[at:at] = out[at : at + rng.randrange(60)]
        elif kind == 4:
            del out[at : at + rng.randrange(20)]
        else:
            out += bytes(rng.randrange(40))
    return bytes(out)


def alter(rng: random.Random, value: Any) -> Any:
    """A JSON value with something inside it replaced, dropped or added."""
    value = json.loads(json.dumps(value))
    node, parents = value, []
    while isinstance(node, (dict, list)) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        parents.append((node, key))
        node = node[key]
        if rng.random() < 0.3:
            break
    if not parents:
        return rng.choice(EXTREMES)
    node, key = rng.choice(parents)
    kind = rng.randrange(5)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[rng.choice(["x", "", "lm_head.weight", "model.norm.weight", "rope_scaling"])] = rng.choice(EXTREMES)
    elif isinstance(node[key], int) and kind == 2:
        node[key] += rng.choice([-8, -1, 1, 8])
    else:
        node[key] = rng.choice(EXTREMES)
    return value


def safetensors_file(header: Any, body: int, length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


def sound_header(rng: random.Random) -> tuple[dict[str, Any], int]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for i in range(rng.randint(0, 6)):
        dtype, shape = rng.choice(list(DTYPES)), [rng.randint(0, 5) for _ in range(rng.randint(0, 3))]
        size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        header[f"t{i}"] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    return header, end


def test_safetensors_headers() -> None:
    counts = [0, 0]
    for run in range(14_000):
        rng = random.Random(run)
        header, body = sound_header(rng)
        data = safetensors_file(header, body)
        assert len(parse_header(data, len(data)).entries) == len(header) - 1
        if run % 2:
            data = flip(rng, data)
        else:
            data = safetensors_file(alter(rng, header), body + rng.choice([0, 0, 0, 1, -1 if body else 0, 1 << 10]))

        def parse(data: bytes = data) -> None:
            end = 8 + struct.unpack_from("<Q", data)[0] if len(data) >= 8 else 0
            spans = sorted((e.begin, e.end) for e in parse_header(data, len(data)).entries.values())
            for begin, stop in spans:  # what is accepted has no hole and no overlap
                assert begin == end
                end = stop
            assert end == len(data)

        counts[refused(parse)] += 1
    assert counts[0] > 500
    assert counts[1] > 5000


def test_config_json() -> None:
    counts = [0, 0]
    bases = [GEMMA_2B, GEMMA2_27B, GEMMA3_4B, EMBEDDING]
    for run in range(7_000):
        rng = random.Random(run)
        base = bases[run % 4]
        data = json.dumps(alter(rng, base) if run % 3 else base).encode()
        if not run % 3:
            data = flip(rng, data)
        counts[refused(lambda data=data: read_config(parse_json(data, "config.json"), []))] += 1
    assert counts[0] > 500
    assert counts[1] > 2000


@pytest.mark.parametrize("layout", ["single", "sharded", "embedding"])
def test_folders(layout: str, tmp_path: Path) -> None:
    source = tiny("embeddinggemma" if layout == "embedding" else "gemma")
    folder = tmp_path / "m"
    save_checkpoint(source, folder, shard_bytes=20_000 if layout == "sharded" else None)
    names = [p for p in sorted(folder.rglob("*")) if p.suffix in (".json", ".safetensors") and "sentence" not in p.name]
    whole = {p: p.read_bytes() for p in names}
    counts = [0, 0]
    for run in range(700):
        rng = random.Random(run)
        path = rng.choice(names)
        data = whole[path]
        if path.suffix == ".safetensors":
            length = 8 + struct.unpack_from("<Q", data)[0]
            header = json.loads(data[8:length])
            changed = flip(rng, data[:length]) + data[length:]
            path.write_bytes(changed if run % 2 else safetensors_file(alter(rng, header), 0) + data[length:])
        else:
            path.write_bytes(flip(rng, data) if run % 2 else json.dumps(alter(rng, json.loads(data))).encode())

        def use() -> None:
            checkpoint = open_checkpoint(folder)
            for name in checkpoint.names():
                leaf = checkpoint.lookup(name)
                assert leaf.dequantize().shape == leaf.shape

        counts[refused(use)] += 1
        path.write_bytes(data)
    assert counts[0] > 20
    assert counts[1] > 150


def gguf_seeds(folder: Path) -> list[Path]:
    """Small real files: every family and format, every type of metadata value."""
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    paths = []
    for name, format in [("gemma-q32", "Q8_0"), ("gemma3-q32", "Q4_0"), ("embeddinggemma-q32", "BF16")]:
        small = {"num_layers": 1, "hidden_size": 32, "num_heads": 1, "num_kv_heads": 1, "head_dim": 32, "vocab_size": 3}
        dense = (32, 32) if TINY[name].pooled_dense else ()
        config = replace(TINY[name], **small, intermediate_size=32, layer_types=("global",), pooled_dense=dense)
        source = TinySource(config, random_leaves(config))
        save_checkpoint(source, path := folder / f"{name}.gguf", format="gguf", dtype=format)
        paths.append(path)
    writer = gguf.GGUFWriter(path := folder / "made.gguf", "gemma3")
    writer.add_custom_alignment(64)
    writer.add_token_list([b"<pad>", b"", b"\xff\xfe", "é".encode(), b"x" * 90])
    writer.add_token_scores([0.0, -1.0, -2.0, 3.5, 1e30])
    writer.add_token_types([3, 1, 1, 6, 4])
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{kind}")(f"x.{kind}", 7)
    writer.add_float32("x.f32", 1.5)
    writer.add_float64("x.f64", 1.5)
    writer.add_bool("x.bool", True)
    writer.add_array("x.flags", [True, False, True])
    writer.add_string("tokenizer.chat_template", "{{ bos_token }}")
    for i, shape in enumerate([(3,), (2, 32), (2, 2, 32), (1, 2, 2, 32)]):
        writer.add_tensor(f"t{i}", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [*paths, path]


def test_gguf_headers_under_the_sanitizers(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    program = tmp_path / "fuzz"
    here = Path(__file__).with_name("fuzz_gguf_header.cc")
    flags = ["-std=c++20", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-Wall", "-Wextra"]
    build = [compiler, *flags, "-Werror", str(here), str(SOURCES / "gguf_header.cc"), "-o", str(program)]
    subprocess.run(build, check=True)
    seeds = [str(p) for p in gguf_seeds(tmp_path)]
    done = subprocess.run([str(program), "180000", *seeds], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    accepted, rejected = map(int, done.stdout.split())
    assert accepted + rejected == 180_000
    assert accepted > 5000
    assert rejected > 90_000


def test_gguf_files(tmp_path: Path) -> None:
    seeds = [p.read_bytes() for p in gguf_seeds(tmp_path)]
    path = tmp_path / "m.gguf"
    counts = [0, 0]
    for run in range(1900):
        rng = random.Random(run)
        data = rng.choice(seeds)
        head = data[:1800]  # the metadata and the first tensors
        path.write_bytes(flip(rng, head) + data[1800:])

        def use() -> None:
            checkpoint = open_checkpoint(path)
            assert [checkpoint.lookup(n).shape for n in checkpoint.names()]
            assert refused(lambda: checkpoint.tokenizer)  # the tiny ones have none
            refused(lambda: checkpoint.chat_template)

        counts[refused(use)] += 1
    assert counts[0] > 50
    assert counts[1] > 1000
