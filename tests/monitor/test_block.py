"""`info block`, `change` and `eject`: QEMU's words for drives."""

import pytest

from pellucid.monitor.block import DriveInfo, ImageInfo, block_text, size_text
from pellucid.monitor.hmp import Monitor
from tests.monitor.fake_machine import FakeMachine

DISK = DriveInfo(
    "ide0-hd0",
    ImageInfo("#block192", "a.img", "raw", False, 10 << 20, 0),
    "/machine/unattached/device[21]",
    removable=False,
    locked=False,
    tray_open=False,
    cache_mode="writeback",
)
CD = DriveInfo(
    "cd",
    ImageInfo("#block328", "cd.iso", "raw", True, 2 << 20, 4096),
    "/machine/unattached/device[22]",
    removable=True,
    locked=False,
    tray_open=False,
    cache_mode="writeback",
)
EMPTY = DriveInfo("sd0", None, "", removable=True, locked=True, tray_open=True, cache_mode="writeback")

QEMU_SAYS = """\
ide0-hd0 (#block192): a.img (raw)
    Attached to:      /machine/unattached/device[21]
    Cache mode:       writeback

cd (#block328): cd.iso (raw, read-only)
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


def monitor() -> tuple[Monitor, FakeMachine]:
    machine = FakeMachine(drive_list=[DISK, CD, EMPTY])
    return Monitor(machine), machine


def test_info_block_is_qemu_s() -> None:
    assert monitor()[0].execute("info block") == QEMU_SAYS
    assert block_text([DISK], verbose=True) == monitor()[0].execute("info block -v ide0-hd0") == VERBOSE
    assert monitor()[0].execute("info block nobody") == "Device 'nobody' not found\n"
    assert monitor()[0].execute("info block -n") == ""


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (512, "512 B"), (1000, "0.977 KiB"), (3_000_320, "2.86 MiB"), (10 << 30, "10 GiB")]
)
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


def test_change_and_eject() -> None:
    talk, machine = monitor()
    assert talk.execute('change -f cd "a file.iso" raw') == "" and talk.execute("change cd b.iso") == ""
    assert talk.execute("eject -f cd") == "" and talk.execute("eject cd") == ""
    assert machine.calls == ["change cd a file.iso raw True", "change cd b.iso None False", "eject cd True",
                             "eject cd False"]  # fmt: skip
    assert talk.execute("eject hd") == "Error: Device 'hd' not found\n"
    assert "give a drive" in talk.execute("eject") and "give a drive" in talk.execute("change cd")
    assert "unterminated" in talk.execute('change cd "b') and "unsupported option -x" in talk.execute("eject -x cd")
