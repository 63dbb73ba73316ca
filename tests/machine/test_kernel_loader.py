"""A kernel handed to firmware: what the option ROM finds in fw_cfg, and what is said when something is missing."""

import struct
from pathlib import Path

import pytest

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.boot import read_kernel
from pellucid.machine.boot.linux import BzImage
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.firmware import kernel_loader
from pellucid.machine.firmware.kernel_loader import (
    offer_linux,
    read_option_rom,
    setup_code,
)
from pellucid.memory import AddressSpace, MemoryRegion
from tests.machine.kernels import bzimage, vmlinux
from tests.machine.pc_machine import pc_machine

ROM = b"\x55\xaa\x02" + bytes(1021)


@pytest.fixture
def kernel(tmp_path: Path) -> BzImage:
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    read = read_kernel(tmp_path / "vmlinuz")
    assert isinstance(read, BzImage)
    return read


def item(fw_cfg: FwCfg, key: int, size: int) -> bytes:
    fw_cfg.write(0, 2, key)
    return bytes(fw_cfg.read(1, 1) for _ in range(size))


def number(fw_cfg: FwCfg, key: int) -> int:
    return int.from_bytes(item(fw_cfg, key, 4), "little")


def test_everything_is_there(kernel: BzImage) -> None:
    fw_cfg = FwCfg(AddressSpace("memory", MemoryRegion.new_container("system")))
    offer_linux(fw_cfg, kernel, b"console=ttyS0", b"initrd!", ROM)
    offset = kernel.header.payload_offset
    assert number(fw_cfg, 0x17) == offset and number(fw_cfg, 0x16) == 0x1_0000
    assert number(fw_cfg, 0x08) == len(kernel.content) - offset and number(fw_cfg, 0x07) == 0x10_0000
    assert item(fw_cfg, 0x11, 16) == kernel.content[offset : offset + 16]
    assert number(fw_cfg, 0x14) == 14 and item(fw_cfg, 0x15, 14) == b"console=ttyS0\0"
    assert number(fw_cfg, 0x0B) == 7 and item(fw_cfg, 0x12, 7) == b"initrd!"
    directory = item(fw_cfg, 0x19, 4 + 2 * 64)
    assert struct.unpack_from(">I", directory)[0] == 1 and b"genroms/linuxboot_dma.bin\0" in directory
    assert kernel_loader.kernel_rom(fw_cfg) == ["/rom@genroms/linuxboot_dma.bin"]


def test_the_loader_fills_in_its_fields(kernel: BzImage) -> None:
    setup = setup_code(kernel, 0x1234)
    assert setup[0x210] == 0xFF and setup[0x211] & 0x80
    assert struct.unpack_from("<I", setup, 0x21C) == (0x1234,)
    assert struct.unpack_from("<HxxI", setup, 0x224) == (0xFE00, 0x2_0000)
    assert setup[:0x200] == kernel.content[:0x200] and len(setup) == kernel.header.payload_offset


def test_a_command_line_too_long(kernel: BzImage) -> None:
    fw_cfg = FwCfg(AddressSpace("memory", MemoryRegion.new_container("system")))
    with pytest.raises(UserError, match="characters"):
        offer_linux(fw_cfg, kernel, b"x" * 70_000, b"", ROM)


def test_a_rom_that_is_missing_or_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="qemu-system-data"):
        read_option_rom(tmp_path / "absent")
    (tmp_path / "rom").write_bytes(b"MZ")
    with pytest.raises(UserError, match="no option ROM"):
        read_option_rom(tmp_path / "rom")


def test_the_board_offers_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.machine.firmware.kernel_loader.read_option_rom", lambda path: ROM)
    (tmp_path / "vmlinuz").write_bytes(bzimage())
    with pc_machine(tmp_path, kernel=tmp_path / "vmlinuz", append="quiet") as machine:
        machine.ports.write(0x510, 2, kernel_loader.CMDLINE_DATA)
        assert bytes(machine.ports.read(0x511, 1) for _ in range(6)) == b"quiet\0"


def test_a_kernel_that_firmware_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(vmlinux(bytes(16)))
    with pytest.raises(NotBuiltError, match="microvm"), pc_machine(tmp_path, kernel=tmp_path / "vmlinux"):
        pass
