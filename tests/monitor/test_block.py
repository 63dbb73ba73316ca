"""`info block`, `change` and `eject`: QEMU's words for drives."""

from pathlib import Path

import pytest

from pellucid.cli.drives import parse_drive
from pellucid.monitor.commands.block import (
    BlockdevCacheInfo,
    BlockDeviceInfo,
    BlockInfo,
    ImageInfo,
    block_text,
    query_block,
    size_text,
)
from pellucid.monitor.session import Session
from tests.block.helpers import image
from tests.monitor.controlled import controlled_pc, hmp

CACHE = BlockdevCacheInfo(True, False, False)
DISK_IMAGE = ImageInfo("a.img", "raw", 10 << 20, 0)
DISK = BlockInfo(
    "ide0-hd0",
    "unknown",
    False,
    False,
    "/machine/unattached/device[21]",
    BlockDeviceInfo("a.img", "#block192", False, "raw", False, 0, 0, CACHE, 0, DISK_IMAGE),
)
CD = BlockInfo(
    "ide1-cd0",
    "unknown",
    True,
    False,
    "/machine/unattached/device[22]",
    BlockDeviceInfo("cd.iso", "#block328", True, "raw", False, 0, 0, CACHE, 0, DISK_IMAGE),
    False,
)
EMPTY = BlockInfo("sd0", "unknown", True, True, tray_open=True)

QEMU_SAYS = """\
ide0-hd0 (#block192): a.img (raw)
    Attached to:      /machine/unattached/device[21]
    Cache mode:       writeback

ide1-cd0 (#block328): cd.iso (raw, read-only)
    Attached to:      /machine/unattached/device[22]
    Removable device: not locked, tray closed
    Cache mode:       writeback

sd0: [not inserted]
    Removable device: locked, tray open
"""
VERBOSE = """\
ide0-hd0 (#block192): a.img (raw)
    Attached to:      /machine/unattached/device[21]
    Cache mode:       writeback

Images:
image: a.img
file format: raw
virtual size: 10 MiB (10485760 bytes)
disk size: 0 B
"""


def test_the_text_is_qemu_s() -> None:
    assert block_text([DISK, CD, EMPTY], verbose=False) == QEMU_SAYS
    assert block_text([DISK], verbose=True) == VERBOSE


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (512, "512 B"), (1000, "0.977 KiB"), (3_000_320, "2.86 MiB"), (10 << 30, "10 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_a_machine_s_drives(tmp_path: Path) -> None:
    disk, iso = image(tmp_path, size=1 << 20), image(tmp_path, size=4096, name="a cd.iso")
    with controlled_pc(tmp_path, drives=(parse_drive(f"file={disk},format=raw,cache=unsafe"),)) as control:
        said = hmp(control, "info block -v ide0-hd0")
        assert f": {disk} (raw)" in said and "writeback, ignore flushes" in said and "virtual size: 1 MiB" in said
        assert hmp(control, "info block -n") == "" and "'x' not found" in hmp(control, "info block x")
        said = hmp(control, f'change ide1-cd0 "{iso}" raw', "info block ide1-cd0")
        assert "a cd.iso (raw, read-only)" in said
        info = {found.device: found for found in query_block(Session(control))}["ide1-cd0"]
        assert info.inserted is not None and info.inserted.ro and info.inserted.image.virtual_size == 4096
        assert info.qdev is not None and info.qdev.startswith("/machine/unattached/device[")
        assert hmp(control, "change ide1-cd0 nowhere.iso").startswith("Error: change ide1-cd0: Could not open")
        assert hmp(control, "eject ide1-cd0", "info block ide1-cd0").startswith("ide1-cd0: [not inserted]")
        assert "is not removable" in hmp(control, "eject -f ide0-hd0") and "not found" in hmp(control, "eject x")
