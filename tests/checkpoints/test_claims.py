"""Small files that claim to be large: nothing is allocated for a claim."""

from __future__ import annotations

import resource
import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

from gemmary.checkpoints import open_checkpoint, save_checkpoint
from gemmary.checkpoints.json_files import parse_json
from gemmary.checkpoints.safetensors import MAX_HEADER_BYTES
from tests.checkpoints.sources import tiny
from tests.checkpoints.test_hostile import refused, safetensors_file

HUGE = 1 << 60


def gguf_claims() -> list[bytes]:
    """Files of about 160 bytes: counts of tensors, values, items, characters and dimensions that no file could hold."""
    start = b"GGUF" + struct.pack("<I", 3)
    key = struct.pack("<Q", 1) + b"k"
    tensor = struct.pack("<Q", 1) + b"t" + struct.pack("<I4Q", 4, 1 << 20, 1 << 20, 1 << 20, 1 << 20)
    files = [
        start + struct.pack("<QQ", HUGE, 0),
        start + struct.pack("<QQ", 0, HUGE),
        start + struct.pack("<QQQ", 0, 1, HUGE),
        start + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 8, HUGE),
        start + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 4, HUGE),
        start + struct.pack("<QQ", 0, 1) + key + struct.pack("<IIQ", 9, 10, HUGE << 1),
        start + struct.pack("<QQ", 0, 1) + key + struct.pack("<IQ", 8, (1 << 64) - 1),
        start + struct.pack("<QQ", 1, 0) + tensor + struct.pack("<IQ", 0, 0),
        start + struct.pack("<QQ", 1, 0) + tensor[:9] + struct.pack("<IQIQ", 1, 1 << 40, 0, 0),
        start + struct.pack("<QQ", 1, 0) + tensor[:9] + struct.pack("<IQIQ", 1, 32, 0, (1 << 64) - 32),
    ]
    return [f + bytes(160 - len(f)) for f in files]


def safetensors_claims() -> list[bytes]:
    def entry(shape: list[int], offsets: list[int]) -> dict[str, Any]:
        return {"t": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}

    return [
        struct.pack("<Q", HUGE) + bytes(152),
        struct.pack("<Q", MAX_HEADER_BYTES) + bytes(152),
        safetensors_file(entry([HUGE, HUGE], [0, HUGE]), 60),
        safetensors_file(entry([1 << 40], [0, 1 << 42]), 60),
        safetensors_file(entry([1 << 40, 0], [0, 0]), 0),
        safetensors_file(entry([-1], [8, 4]), 60),
        struct.pack("<Q", 150) + b"[" * 150,
        struct.pack("<Q", 150) + b"9" * 150,
    ]


def test_claims_are_not_believed(tmp_path: Path) -> None:
    save_checkpoint(tiny("gemma"), tmp_path / "m")
    paths = []
    for i, data in enumerate(gguf_claims()):
        paths.append(tmp_path / f"{i}.gguf")
        paths[-1].write_bytes(data)
    for i, data in enumerate(safetensors_claims()):
        paths.append(shutil.copytree(tmp_path / "m", tmp_path / f"m{i}"))
        (paths[-1] / "model.safetensors").write_bytes(data)
    for path in paths:  # once before measuring, for what is imported on the way
        assert refused(lambda path=path: open_checkpoint(path)), path
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    for path in paths:
        refused(lambda path=path: open_checkpoint(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 16 << 10  # in KiB


def test_deep_nesting_and_doubled_keys() -> None:
    for text in (b"[" * 100_000, b'{"a":' * 100_000, b'{"a":1,"a":2}', b'{"a":' + b"9" * 5000 + b"}", b"\xff{}", b"3"):
        assert refused(lambda text=text: parse_json(text, "x"))
