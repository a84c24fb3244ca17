"""How much memory a load or a cache may take."""

from __future__ import annotations

from pathlib import Path

from gemmary.errors import GemmaryError


def available_bytes(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be had without swapping, within the container's limit (cgroup 2); None where nothing tells."""
    fields = _table(proc / "meminfo")
    free = fields["MemAvailable:"] * 1024 if "MemAvailable:" in fields else None
    limit, used = _number(cgroup / "memory.max"), _number(cgroup / "memory.current")
    if limit is not None and used is not None:
        # Pages of files that were read count as used but are given back on demand.
        room = max(0, limit - used + _table(cgroup / "memory.stat").get("inactive_file", 0))
        free = room if free is None else min(free, room)
    return free


def require(needed: int, what: str, advice: str) -> None:
    """Raises GemmaryError when `needed` bytes for `what` are more than there are."""
    available = available_bytes()
    if available is not None and needed > available:
        raise GemmaryError(f"{what} needs about {size(needed)} of memory and {size(available)} are available: {advice}")


def size(count: int) -> str:
    """Such as `812 MB` or `5.03 GB` (powers of ten)."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB" if count >= 1e6 else f"{count:,} bytes"


def _number(path: Path) -> int | None:
    """The file's number; None where there is none (`max` means no limit)."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _table(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) >= 2 and line[1].isdigit()}
