"""The devices that a plan is for: this machine's memory, a GPU that PyTorch has, or one that is only named."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass

from gemmary import memory
from gemmary.errors import GemmaryError

_SPELLED = re.compile(
    r"(?P<name>cpu|cuda(:\d+(?![\d.]*[gm]b))?)(:(?P<count>\d+(\.\d+)?)(?P<unit>[gm])b)?", re.IGNORECASE | re.ASCII
)
_UNITS = {"g": 10**9, "m": 10**6}


@dataclass(frozen=True)
class Device:
    """Where a model would lie."""

    name: str
    available_bytes: int | None
    """Memory that can be had; None: nothing tells, and everything fits."""
    threads: int = 1

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("cpu")


CPU = Device("cpu", None)
"""A CPU of unlimited memory, on one thread."""


def this_cpu(threads: int | None = None) -> Device:
    """The memory that is free on this machine now, and its processors."""
    return Device("cpu", memory.available_bytes(), threads or _processors())


def find_devices() -> list[Device]:
    """This machine's memory and, where PyTorch has CUDA, the memory of each GPU."""
    found = [this_cpu()]
    if importlib.util.find_spec("torch") is not None and os.path.exists("/dev/nvidiactl"):  # torch takes a second
        import torch

        for number in range(torch.cuda.device_count()):
            found.append(Device(f"cuda:{number}", torch.cuda.mem_get_info(number)[0]))
    return found


def parse_devices(text: str) -> list[Device]:
    """Devices with commas between them: `cpu`, `cuda:0`, or with the memory of one that is not there, `cuda:24GB`.

    Raises GemmaryError for what is neither here nor has a memory.
    """
    return [_device(part.strip()) for part in text.split(",")]


def _device(text: str) -> Device:
    found = _SPELLED.fullmatch(text)
    if found is None:
        raise GemmaryError(f"no device is called {text!r}: say cpu, cuda, or one with its memory, as cuda:24GB")
    name = found["name"].lower()
    if found["count"] is not None:
        nbytes = int(float(found["count"]) * _UNITS[found["unit"].lower()])
        return Device(name, nbytes, _processors() if name == "cpu" else 1)
    here = find_devices()
    for device in here:
        if device.name == name or device.name == f"{name}:0":
            return device
    raise GemmaryError(f"there is no {name} here: give its memory, as {name.partition(':')[0]}:24GB")


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
