"""The cache folder shared, full, damaged: nobody reads anything but what somebody wrote whole."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid.native import cache as disk

MIB = 1 << 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    return tmp_path / "things"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_was_put_is_got(folder: Path) -> None:
    assert disk.get("things", "a") is None
    assert disk.put("things", "a", b"body") and disk.get("things", "a") == b"body"
    assert disk.put("things", "a", b"") and disk.get("things", "a") == b""
    assert names(folder) == {"a"}


def test_damage_is_noticed(folder: Path) -> None:
    disk.put("things", "a", bytes(100))
    path = folder / "a"
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-1], b"\1" + whole[1:], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        assert disk.get("things", "a") is None
    path.unlink()
    path.mkdir()
    assert disk.get("things", "a") is None
    assert not disk.put("things", "a", b"body")
    assert names(folder) == {"a"}, "no half-written file is left"


def test_a_full_disk_leaves_nothing_behind(folder: Path) -> None:
    """RLIMIT_FSIZE makes a write fail in the middle, as a full disk does."""
    disk.put("things", "a", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        assert not disk.put("things", "a", bytes(MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(folder) == {"a"} and disk.get("things", "a") == b"old"


def test_the_size_is_bounded_and_the_newest_stays(folder: Path) -> None:
    for number in range(8):
        assert disk.put("things", f"n{number}", bytes(MIB), bound=4 * MIB)
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 4 * MIB
    assert disk.get("things", "n7") == bytes(MIB)


WRITER = """
import sys
from pellucid.native import cache
for n in range(60):
    cache.put("things", f"f{n % 3}", bytes([n]) * 5000, bound=12000)
    for name in ("f0", "f1", "f2"):
        body = cache.get("things", name)
        assert body is None or len(body) == 5000 and len(set(body)) == 1, name
"""


def test_processes_share_one_folder(folder: Path) -> None:
    """Three of them write, read and prune the same names: each sees whole files or none."""
    running = [subprocess.Popen([sys.executable, "-c", WRITER], env={"PYTHONPATH": ":".join(sys.path),
                                                                     "PELLUCID_CACHE": str(folder.parent)})
               for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert names(folder) <= {"f0", "f1", "f2"}
