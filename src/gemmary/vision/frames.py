"""Pictures to ask about, one after the other: the files of a folder, or the frames of a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemmary.errors import GemmaryError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def pictures(source: Path, every: int = 1) -> tuple[list[str] | None, Iterator[tuple[str, Any]]]:
    """Names and pictures, in an order that is always the same: what `open_image` opens. The names of a folder's are
    known beforehand; of a video None: how many frames it has shows at its end.

    A folder's pictures are called as their paths below it. The frames of a video are called by their numbers from 0,
    and only every so many of them are given. Raises GemmaryError where there is nothing of the kind.
    """
    if source.is_dir():
        names = sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*") if path.suffix.lower() in SUFFIXES
        )
        if not names:
            raise GemmaryError(f"{source} holds no picture: no file ends in {', '.join(SUFFIXES)}")
        return names, ((name, source / name) for name in names)
    if not source.exists():
        raise GemmaryError(f"there is no folder or video {source}")
    if source.suffix.lower() in SUFFIXES:
        raise GemmaryError(f"{source} is one picture: ask about it with --image")
    return None, _frames(source, every)


def _frames(path: Path, every: int) -> Iterator[tuple[str, Any]]:
    try:
        import av
    except ImportError:
        raise GemmaryError('the frames of a video need PyAV: pip install "gemmary[video]"') from None
    try:
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number % every == 0:
                    yield str(number), frame.to_image()
    except (av.FFmpegError, IndexError, OSError) as error:
        raise GemmaryError(f"{path} cannot be read as a video: {error}") from None
