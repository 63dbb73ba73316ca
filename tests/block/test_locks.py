"""Two writers of one image exclude each other: two of ours, and ours and qemu-img."""

import subprocess
from pathlib import Path
from shutil import which

import pytest

from pellucid.block import FOR_READING, FOR_WRITING, UNATTACHED, FileNode, ImageLocked, Permissions
from tests.block.helpers import image


def node(path: Path, permissions: Permissions) -> FileNode:
    return FileNode(str(path), read_only=permissions is not FOR_WRITING, permissions=permissions)


@pytest.mark.parametrize(
    ("first", "second", "lock"),
    [
        (FOR_WRITING, FOR_WRITING, '"write"'),
        (FOR_WRITING, FOR_READING, 'shared "write"'),
        (FOR_READING, FOR_WRITING, '"write"'),
        (FOR_READING, FOR_READING, None),
        (FOR_WRITING, UNATTACHED, None),
        (UNATTACHED, FOR_WRITING, None),
    ],
)
def test_who_excludes_whom(tmp_path: Path, first: Permissions, second: Permissions, lock: str | None) -> None:
    path = image(tmp_path, size=4096)
    holder = node(path, first)
    if lock is None:
        node(path, second).close()
    else:
        with pytest.raises(ImageLocked) as caught:
            node(path, second)
        assert str(caught.value).endswith(f"Failed to get {lock} lock")
    holder.close()
    node(path, second).close()


def test_a_device_takes_an_image_that_was_opened_for_nobody(tmp_path: Path) -> None:
    path = image(tmp_path, size=4096)
    idle, writer = node(path, UNATTACHED), node(path, FOR_WRITING)
    with pytest.raises(ImageLocked):
        idle.relock(FOR_READING)
    writer.close()
    idle.close()


def test_the_locks_are_on_qemu_s_bytes(tmp_path: Path) -> None:
    path = image(tmp_path, size=4096)
    holder = node(path, FOR_WRITING)
    lines = [line for line in Path("/proc/locks").read_text().splitlines() if f":{path.stat().st_ino} " in line]
    if not lines:
        pytest.skip("/proc/locks does not show this file's locks")
    assert sorted(tuple(line.split()[-2:]) for line in lines) == [("100", "101"), ("201", "201")]
    holder.close()


@pytest.mark.skipif(which("qemu-img") is None, reason="needs qemu-img (Debian: qemu-utils)")
def test_qemu_img_is_kept_out_and_keeps_us_out(tmp_path: Path) -> None:
    path = image(tmp_path, size=1 << 20)
    resize = ["qemu-img", "resize", "-f", "raw", str(path), "2M"]
    holder = node(path, FOR_WRITING)
    said = subprocess.run(resize, capture_output=True, text=True, timeout=60, check=False)
    assert said.returncode and 'Failed to get "write" lock' in said.stderr
    holder.close()
    subprocess.run(resize, capture_output=True, timeout=60, check=True)
    assert path.stat().st_size == 2 << 20
