"""The disk cache: whole files or none, damaged ones ignored, bounded, shared; where it cannot write, work goes on."""

import hashlib
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.native import cache
from tests.native.harness import few


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    return tmp_path / "kind"


def test_what_is_put_is_got(folder: Path) -> None:
    assert cache.get("kind", "a") is None
    assert cache.put("kind", "a", b"body")
    assert cache.get("kind", "a") == b"body"
    assert cache.put("kind", "a", b"other") and cache.get("kind", "a") == b"other"
    assert cache.put("kind", "empty", b"") and cache.get("kind", "empty") == b""
    assert cache.get("another", "a") is None


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELLUCID_CACHE", "/one")
    assert cache.folder("images") == Path("/one/images")
    monkeypatch.delenv("PELLUCID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache.folder("images") == Path("/two/pellucid/images")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/three")
    assert cache.folder("images") == Path("/three/.cache/pellucid/images")


@few
@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_damaged_file_is_no_file(body: bytes, data: st.DataObject) -> None:
    assert cache.put("kind", "a", body)
    path = cache.folder("kind") / "a"
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(changed), whole[:at], whole + b"x"):
        path.write_bytes(damaged)
        assert cache.get("kind", "a") is None
    assert cache.put("kind", "a", body) and cache.get("kind", "a") == body


def test_a_folder_in_place_of_a_file_is_no_file(folder: Path) -> None:
    (folder / "a").mkdir(parents=True)
    assert cache.get("kind", "a") is None
    assert not cache.put("kind", "a", b"body")
    assert [p.name for p in folder.iterdir()] == ["a"]


def test_a_place_that_cannot_be_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "file"))
    assert not cache.put("kind", "a", b"body")
    assert cache.get("kind", "a") is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_folder_serves_and_takes_nothing(folder: Path) -> None:
    cache.put("kind", "a", b"body")
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert cache.get("kind", "a") == b"body"
        assert not cache.put("kind", "b", b"body")
    finally:
        folder.chmod(stat.S_IRWXU)


def test_a_file_whose_time_cannot_be_set_serves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only mount, as far as root can have one without mounting."""
    cache.put("kind", "a", b"body")

    def refuse(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.get("kind", "a") == b"body"


def test_a_full_disk_leaves_nothing(folder: Path) -> None:
    """A file size limit makes the kernel refuse the write half way, as a full disk does."""
    cache.put("kind", "old", b"body")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        assert not cache.put("kind", "big", bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in folder.iterdir()] == ["old"]
    assert cache.get("kind", "old") == b"body" and cache.get("kind", "big") is None


def test_the_files_used_longest_ago_go(folder: Path) -> None:
    for i, name in enumerate("abcd"):
        assert cache.put("kind", name, bytes(1000), bound=10_000)
        os.utime(folder / name, (i, i))
    assert cache.get("kind", "a") is not None   # used again: now the youngest
    assert cache.put("kind", "e", bytes(1000), bound=3200)
    assert {p.name for p in folder.iterdir()} == {"a", "d", "e"}


def test_what_a_dead_writer_left_goes_too(folder: Path) -> None:
    """A file that another process writes just now stays."""
    cache.put("kind", "a", b"body")
    (folder / ".newdead").write_bytes(bytes(1000))
    (folder / ".newalive").write_bytes(bytes(1000))
    os.utime(folder / ".newdead", (1, 1))
    cache.put("kind", "b", b"body", bound=100)
    assert {p.name for p in folder.iterdir()} == {"a", "b", ".newalive"}


def test_a_folder_that_cannot_be_listed_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert cache.put("kind", "a", b"body", bound=0)


def test_a_name_shows_whole_bodies_only(folder: Path) -> None:
    """A reader that looks all the time while two bodies replace each other sees one or the other."""
    bodies = [bytes([n]) * 300_000 for n in (1, 2)]
    cache.put("kind", "a", bodies[0])
    path, done, seen = folder / "a", threading.Event(), []

    def look() -> None:
        while not done.is_set():
            raw = path.read_bytes()
            seen.append(raw[:-32] in bodies and hashlib.sha256(raw[:-32]).digest() == raw[-32:])

    reader = threading.Thread(target=look)
    reader.start()
    for i in range(40):
        cache.put("kind", "a", bodies[i & 1])
    done.set()
    reader.join()
    assert all(seen)
    assert [p.name for p in folder.iterdir()] == ["a"]


WRITER = """
import sys
from pellucid.native import cache
for i in range(60):
    body = (sys.argv[1] * (1 + i * 37)).encode()
    assert cache.put("kind", f"n{i % 7}", body, bound=8_000)
    found = cache.get("kind", f"n{i % 7}")
    assert found is None or set(found.decode()) <= {"x", "y"}
"""


def test_two_processes_at_once(folder: Path) -> None:
    """Both write, read and prune one folder: no error, no torn file, no rest of either."""
    paths = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", WRITER]
    running = [subprocess.Popen([*command, c], env={**os.environ, "PYTHONPATH": paths}) for c in "xy"]
    assert [p.wait() for p in running] == [0, 0]
    for path in folder.iterdir():
        assert path.name.startswith("n") and cache.get("kind", path.name) is not None
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 8_000


def test_keys_tell_parts_apart() -> None:
    assert cache.key("ab", "c") != cache.key("a", "bc") != cache.key("abc")
    assert cache.key("a") == cache.key(b"a")
