"""The drives of a whole board: where they go, what firmware is told of them, errors that stop the machine, media."""

import errno
import os
import struct
from pathlib import Path

import pytest

from pellucid.block import BlockNode, Buffers, DriveOptions
from pellucid.cli.drives import parse_drive
from pellucid.errors import UserError
from pellucid.machine.config import BootConfig
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.firmware.pc_config import boot_order_file
from pellucid.machine.ide.boot import boot_devices
from pellucid.runtime import RunState, ShutdownCause
from tests.block.helpers import image
from tests.machine.pc_machine import device, pc_machine


def drives(*texts: str) -> tuple[DriveOptions, ...]:
    return tuple(parse_drive(text) for text in texts)


def names(folder: Path, *texts: str, **changes: object) -> list[str]:
    image(folder, size=10 << 20)
    with pc_machine(folder, drives=drives(*(text.format(folder=folder) for text in texts)), **changes) as machine:
        return [drive.backend.name for drive in machine.drives]


DISK = "file={folder}/disk.img,format=raw,snapshot=on"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ((), ["ide1-cd0", "floppy0"]),
        ((DISK,), ["ide0-hd0", "ide1-cd0", "floppy0"]),
        ((DISK, DISK, DISK), ["ide0-hd0", "ide0-hd1", "ide1-hd0", "floppy0"]),
        ((DISK + ",index=3", DISK), ["ide1-hd1", "ide0-hd0", "ide1-cd0", "floppy0"]),
        ((DISK + ",bus=1", DISK + ",bus=1"), ["ide1-hd0", "ide1-hd1", "floppy0"]),
        ((DISK + ",id=mine", DISK + ",if=none"), ["mine", "none0", "ide1-cd0", "floppy0"]),
        (("media=cdrom,index=0",), ["ide0-cd0", "floppy0"]),
        (("if=floppy,unit=1", DISK, "if=floppy"), ["floppy1", "ide0-hd0", "floppy0", "ide1-cd0"]),
    ],
)
def test_places(tmp_path: Path, texts: tuple[str, ...], expected: list[str]) -> None:
    assert names(tmp_path, *texts) == expected


def test_nodefaults_has_no_drives(tmp_path: Path) -> None:
    assert names(tmp_path, default_drives=False) == []


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ((DISK + ",index=1", DISK + ",bus=0,unit=1"), r"drive with bus=0, unit=1 \(index=1\) exists"),
        ((DISK + ",index=9",), "does not support if=ide,bus=4,unit=1"),
        ((DISK + ",if=floppy,unit=2",), "does not support if=floppy,bus=0,unit=2"),
        ((DISK + ",if=floppy",) * 3, "does not support if=floppy,bus=0,unit=2"),
        ((DISK + ",unit=2",), r"unit 2 too big \(max is 1\)"),
        ((DISK + ",index=1,unit=1",), "index cannot be used with bus and unit"),
        ((DISK,) * 5, "does not support if=ide,bus=2,unit=0"),
        ((DISK + ",id=a", DISK + ",id=a"), "Duplicate ID 'a'"),
        (("index=0",), "Device needs media, but drive is empty"),
        (("file={folder}/disk.img,readonly=on",), "Block node is read-only"),
    ],
)
def test_places_that_cannot_be(tmp_path: Path, texts: tuple[str, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        names(tmp_path, *texts)


def test_cmos_is_qemu_s(tmp_path: Path) -> None:
    image(tmp_path, size=10 << 20)
    with pc_machine(tmp_path, drives=drives(DISK.format(folder=tmp_path))) as machine:
        cmos = device(machine, Rtc).cmos
        found = [cmos[index] for index in (0x12, 0x19, 0x1A, 0x39, 0x3D, 0x38)]
        assert found == [0xF0, 0x2F, 0, 0, 0x12, 0x30]
        assert bytes(cmos[0x1B:0x24]).hex() == "140010ffffc814003f"
    with pc_machine(tmp_path, boot=BootConfig(check_floppy=False)) as machine:
        assert device(machine, Rtc).cmos[0x38] == 0x31 and device(machine, Rtc).cmos[0x10] == 0x50


def test_boot_orders(tmp_path: Path) -> None:
    boot = BootConfig(order="c", once="dn", menu=True, splash_time=700, reboot_timeout=9, strict=True)
    with pc_machine(tmp_path, boot=boot) as machine:
        rtc, fw_cfg = device(machine, Rtc), device(machine, FwCfg)
        assert (rtc.cmos[0x3D], rtc.cmos[0x38]) == (0x43, 0)
        for action in machine.system.on_reset[1:]:
            action(ShutdownCause.GUEST_RESET)
        assert (rtc.cmos[0x3D], rtc.cmos[0x38]) == (0x02, 0)
        item = fw_cfg.files
        assert item["bootorder"] == b"HALT\0" and item["etc/boot-menu-wait"] == struct.pack("<H", 700)
        assert item["etc/boot-fail-wait"] == struct.pack("<I", 9) and fw_cfg._items[0x0E] == b"\1\0"


def test_boot_indices(tmp_path: Path) -> None:
    image(tmp_path, size=10 << 20)
    with pc_machine(tmp_path, drives=drives(DISK.format(folder=tmp_path))) as machine:
        disk, cd, _ = (drive.backend.user for drive in machine.drives)
        cd.bootindex, disk.bootindex = 1, 2  # type: ignore[union-attr]
        paths = boot_devices(machine.drives.controllers)
        assert paths == ["/pci@i0cf8/ide@1,1/drive@1/disk@0", "/pci@i0cf8/ide@1,1/drive@0/disk@0"]
        assert boot_order_file(paths, strict=False) == "\n".join(paths).encode() + b"\0"


class Full(BlockNode):
    """A host's disk that is full until somebody makes room."""

    driver = "full"
    full = True

    def __init__(self) -> None:
        super().__init__("full", 1 << 20, read_only=False)
        self.written = self.flushed = 0

    def read(self, offset: int, buffers: Buffers) -> None:
        """Nothing to say."""

    def write(self, offset: int, buffers: Buffers) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.written += 1

    def flush(self) -> None:
        self.flushed += 1


def test_a_full_disk_stops_the_machine_and_cont_tries_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path, size=10 << 20)
    with pc_machine(tmp_path, drives=drives(DISK.format(folder=tmp_path))) as machine:
        ended: list[int] = []
        backend = machine.drives.by_name["ide0-hd0"].backend
        backend.change(node := Full())
        machine.system.vm_start()
        backend.write(0, [memoryview(bytes(512))], ended.append)
        machine.drives.pool.drain()
        assert machine.system.run_state.state is RunState.IO_ERROR and ended == [] and "no space" in caplog.text
        node.full = False
        flushed = node.flushed
        machine.system.vm_start()
        machine.drives.pool.drain()
        assert ended == [0] and node.written == 1
        machine.system.vm_stop()
        assert node.flushed == flushed + 1, "a stopped machine's writes are on the disk"



def test_change_and_eject(tmp_path: Path) -> None:
    iso = image(tmp_path, size=1 << 20, name="a.iso")
    with pc_machine(tmp_path) as machine:
        table, backend = machine.drives, machine.drives.by_name["ide1-cd0"].backend
        table.change("ide1-cd0", str(iso))
        assert backend.inserted and backend.size == 1 << 20
        with pytest.raises(UserError, match="Could not open"):
            table.change("ide1-cd0", str(tmp_path / "none"))
        assert backend.inserted, "the old medium stays"
        backend.locked = True
        with pytest.raises(UserError, match="is locked and force was not specified"):
            table.eject("ide1-cd0")
        table.eject("ide1-cd0", force=True)
        assert not backend.inserted and backend.tray_open
        for name, said in (("ide0-hd0", "not found"), ("frob", "not found")):
            with pytest.raises(UserError, match=said):
                table.eject(name)
