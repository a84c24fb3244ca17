"""A process of its own that says where the tensors of a `.ckpt` lie: `python -m gemmary.checkpoints.unpickle FILE`.

A pickle is a program. PyTorch runs it with what weights need and nothing else (`weights_only`); here it also runs where
it can hurt nobody: in a child that may write no file, keep little memory and take little time, and that reads none of
the weights. Its words are JSON on standard output, which whoever started it checks like any other file.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

SECONDS = 300
MEMORY = 8 << 30
OUTPUT = 4 << 20
KEY = "model_state_dict"


def limit() -> None:
    """Binds this process, before it reads anything."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_DATA, MEMORY),
        (resource.RLIMIT_FSIZE, OUTPUT),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def places(path: str) -> dict[str, Any]:
    """{"tensors": {name: [dtype, shape, first byte]}}, or {"error": one line}."""
    import torch

    try:  # on "meta" tensors have no memory, and their storages know where they lie in the file
        data = torch.load(path, weights_only=True, map_location="meta")
    except Exception as error:  # whatever a file makes the unpickler say
        lines = str(error).split("Please file an issue")[0].split("\n")
        told = next((line for line in lines if "Unsupported" in line), lines[0])
        return {"error": " ".join(told.split("WeightsUnpickler error:")[-1].split())[:200] or type(error).__name__}
    state = data.get(KEY) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not state:
        return {"error": f"it has no {KEY}"}
    found: dict[str, Any] = {}
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            return {"error": "an entry is no tensor"}
        if not tensor.is_contiguous() or tensor.is_quantized or tensor.layout != torch.strided:
            return {"error": f"{name[:80]} is not laid out row after row"}
        begin = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        if begin is None:
            return {"error": f"{name[:80]} lies in no file"}
        begin += tensor.storage_offset() * tensor.element_size()
        found[name] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape), begin]
    return {"tensors": found}


if __name__ == "__main__":
    limit()
    print(json.dumps(places(sys.argv[1])))
