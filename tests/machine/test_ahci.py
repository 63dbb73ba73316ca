"""ICH9 AHCI with a disk and a CD drive: QEMU's registers, commands, queuing, FISes, errors, resets, interrupts."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.block.helpers import image
from tests.machine.helpers import round_trip
from tests.machine.ide_bench import AHCI_BASE, INDEX_DATA, Ahci, command_fis, queued_fis

DISK, CD = random.Random(1).randbytes(4 << 20), random.Random(2).randbytes(1 << 20)
PORT = [0, 0, 0, 0, 0, 0, 0x6, 0, 0x7F, 0xFFFF_FFFF, 0x113, 0, 0, 0, 0, 0]
"""QEMU's registers of a port with a drive, at reset."""
CONFIG = {0x00: "86802229", 0x08: "02010601", 0x0C: "00008000", 0x20: "01000000", 0x34: "80000000", 0x3C: "00010000",
          0x80: "05a88000", 0x90: "40000000", 0xA8: "1200100048000000"}  # fmt: skip


@pytest.fixture
def ahci(tmp_path: Path) -> Iterator[Ahci]:
    made = Ahci(image(tmp_path, DISK), image(tmp_path, CD, name="cd.iso"))
    yield made
    made.close()


def test_configuration_space_is_qemu_s(ahci: Ahci) -> None:
    ahci.function.reset()
    for at, expected in CONFIG.items():
        size = len(expected) // 2
        assert bytes(ahci.function.config[at : at + size]).hex() == expected, hex(at)


def test_registers_at_reset_are_qemu_s(ahci: Ahci) -> None:
    assert [ahci.read(at) for at in range(0, 0x18, 4)] == [0xC014_1F05, 0x8000_0000, 0, 0x3F, 0x1_0000, 0]
    assert [ahci.read(at, 0) for at in range(0, 0x40, 4)] == PORT
    assert ahci.read(0x28, 1) == 0 and ahci.read(0x28, 2) == 0x113
    ahci.ports.write(INDEX_DATA + 0x10, 4, 0x128)
    assert ahci.ports.read(INDEX_DATA + 0x14, 4) == 0x113


def test_what_can_be_written(ahci: Ahci) -> None:
    for at in (0x00, 0x04, 0x08, 0x0C, 0x14, 0x18, 0x2C):
        ahci.write(at, 0xFFFF_FFF0 if at == 0x18 else 0xFFFF_FFFF, 2)
    assert [ahci.read(at, 2) for at in (0, 4, 8, 0xC)] == [0xFFFF_FFFF] * 4
    assert (ahci.read(0x14, 2), ahci.read(0x18, 2), ahci.read(0x24, 2)) == (0xFDC0_00FF, 0x0F82_4010, 0xEB14_0101)


def test_identify(ahci: Ahci) -> None:
    ahci.start(0)
    assert ahci.run(0, command_fis(0xEC), [(0x20000, 512)]) == 0x50
    words = struct.unpack("<256H", ahci.memory.read_bytes(0x20000, 512))
    assert words[75:77] == (31, 0x0100) and words[60] == 8192
    setup = ahci.memory.read_bytes(0x2020, 20)
    assert setup[0] == 0x5F and setup[1] == 0x60 and setup[15] == 0x50 and setup[16:18] == b"\0\2"
    assert ahci.read(0x10, 0) == 0x02 and ahci.read(8) == 1 and ahci.intx
    assert ahci.memory.read(0x404, 4) == 512, "PRDBC"
    ahci.write(0x10, 2, 0)
    ahci.write(8, 1)
    assert not ahci.intx and ahci.read(8) == 0


@pytest.mark.parametrize(("read", "write"), [(0x25, 0x35), (0xC8, 0xCA), (0x24, 0x34), (0xC4, 0xC5)])
def test_reading_and_writing(ahci: Ahci, read: int, write: int) -> None:
    """DMA and, in its place, PIO; 48 and 28 bits."""
    ahci.start(0)
    entries = [(0x20001, 511), (0x30000, 2), (0x31000, 1023)]
    assert ahci.run(0, command_fis(read, 5, 3), entries) == 0x50
    content = b"".join(ahci.memory.read_bytes(address, size) for address, size in entries)
    assert content == DISK[5 * 512 : 8 * 512]
    new = random.Random(read).randbytes(1536)
    ahci.memory.write_bytes(0x40000, new)
    assert ahci.run(0, command_fis(write, 100, 3), [(0x40000, 1536)], is_write=True) == 0x50
    assert ahci.run(0, command_fis(0xEA)) == 0x50
    assert ahci.run(0, command_fis(0x25, 100, 3), [(0x50000, 1536)]) == 0x50
    assert ahci.memory.read_bytes(0x50000, 1536) == new


def test_queued_commands(ahci: Ahci) -> None:
    ahci.start(0)
    new = random.Random(9).randbytes(32 * 4096)
    ahci.memory.write_bytes(0x40000, new)
    for is_write, base in ((True, 0x40000), (False, 0x80000)):
        for tag in range(32):
            fis = queued_fis(is_write, tag, 8 * tag, 8, fua=tag % 2 == 0)
            ahci.fill(0, tag, fis, [(base + 4096 * tag, 4096)], is_write=is_write)
        ahci.write(0x34, 0xFFFF_FFFF, 0)
        ahci.write(0x38, 0xFFFF_FFFF, 0)
        assert ahci.read(0x34, 0) == ahci.read(0x38, 0) == 0 and ahci.read(0x20, 0) == 0x50
        assert ahci.read(0x10, 0) == 0x08
        ahci.write(0x10, 8, 0)
    assert ahci.memory.read_bytes(0x80000, len(new)) == new
    assert ahci.memory.read_bytes(0x2058, 2) == b"\xa1\x40"


def test_a_queued_command_that_fails(ahci: Ahci) -> None:
    ahci.start(0)
    ahci.fill(0, 3, queued_fis(False, 3, 8190, 8), [(0x20000, 4096)])
    ahci.write(0x34, 8, 0)
    ahci.write(0x38, 8, 0)
    assert ahci.read(0x20, 0) == 0x0451 and ahci.read(0x34, 0) == 8
    assert ahci.read(0x10, 0) & 0x4000_0000
    ahci.write(0x18, 0x16, 0)
    assert ahci.read(0x34, 0) == 0 and ahci.read(0x18, 0) & 0x8000 == 0
    ahci.write(0x10, 0xFFFF_FFFF, 0)
    ahci.start(0)
    assert ahci.run(0, command_fis(0x2F, 0x10, 1), [(0x30000, 512)]) == 0x50
    page = ahci.memory.read_bytes(0x30000, 512)
    assert page[0] == 3 and page[2:4] == b"\x51\x04" and page[4:6] == (8190).to_bytes(2, "little")
    assert sum(page) & 0xFF == 0
    ahci.write(0x18, 0x16, 0)
    ahci.start(0)
    assert ahci.run(0, command_fis(0x2F, 0x10, 1), [(0x30000, 512)]) == 0x0441, "told once"


def test_a_command_that_fails_stops_the_list(ahci: Ahci) -> None:
    ahci.start(0)
    ahci.fill(0, 0, command_fis(0x25, 8192, 1), [(0x20000, 512)])
    ahci.fill(0, 1, command_fis(0xE7), [])
    ahci.write(0x38, 3, 0)
    assert ahci.read(0x20, 0) == 0x0441 and ahci.read(0x38, 0) == 3
    assert ahci.read(0x10, 0) == 0x4000_0001
    assert ahci.memory.read_bytes(0x2040, 4) == bytes((0x34, 0x40, 0x41, 4))


def test_packets(ahci: Ahci) -> None:
    ahci.start(2)
    read = bytes((0x28, 0, 0, 0, 0, 2, 0, 0, 2))
    assert ahci.run(2, command_fis(0xA0, features=1), [(0x20000, 4096)], packet=read) == 0x50
    assert ahci.memory.read_bytes(0x20000, 4096) == CD[4096:8192] and ahci.read(0x10, 2) == 1
    assert ahci.run(2, command_fis(0xA0), [(0x30000, 8)], packet=bytes((0x25,))) == 0x50
    assert ahci.memory.read_bytes(0x30000, 8).hex() == "000001ff00000800"
    assert ahci.run(2, command_fis(0xA0), packet=b"\xff") == 0x5041
    ahci.write(0x18, 0x16, 2)
    ahci.start(2)
    assert ahci.run(2, command_fis(0xA0), [(0x30000, 18)], packet=bytes((3, 0, 0, 0, 18))) == 0x50
    assert ahci.memory.read_bytes(0x30002, 1) == b"\5"


def test_resets(ahci: Ahci) -> None:
    ahci.start(0)
    ahci.write(0x2C, 1, 0)
    ahci.write(0x2C, 0, 0)
    assert ahci.read(0x24, 0) == 0x0101 and ahci.read(0x28, 0) == 0x113 and ahci.read(0x20, 0) & 0xFF == 0x50
    ahci.write(0x18, 0x17, 0)
    srst, clear = bytearray(command_fis(0)), bytearray(command_fis(0))
    srst[1] = clear[1] = 0
    srst[15] = 4
    ahci.write(0x24, 0, 0)
    ahci.run(0, bytes(srst))
    ahci.run(0, bytes(clear))
    assert ahci.read(0x38, 0) == 0 and ahci.read(0x24, 0) == 0x0101
    ahci.write(4, 1)
    assert ahci.read(4) == 0x8000_0000 and ahci.read(0x18, 0) == 6 and not ahci.intx


def test_messages(ahci: Ahci) -> None:
    ahci.function.config_write(0x84, 4, 0xFEE0_0000)
    ahci.function.config_write(0x8C, 2, 0x4041)
    ahci.function.config_write(0x82, 2, 1)
    ahci.start(0)
    ahci.run(0, command_fis(0xE7))
    assert ahci.messages == [(0xFEE0_0000, 0x4041)] and not ahci.intx
    ahci.write(0x10, 0xFFFF_FFFF, 0)
    ahci.write(8, 1)
    ahci.run(0, command_fis(0xE7))
    assert len(ahci.messages) == 2


@pytest.mark.parametrize("place", [0xF000_0000, AHCI_BASE + 0x100, 0xFFFF_FFFF_FFFF_F000])
def test_lists_and_tables_in_devices_and_in_nothing(ahci: Ahci, place: int) -> None:
    ahci.start(0)
    ahci.memory.write_bytes(0x400, struct.pack("<IIQ", 5 | 0xFFFF << 16, 0, place))
    ahci.write(0x38, 1, 0)
    ahci.fill(0, 0, command_fis(0x25, 0, 1), [(place, 512)])
    ahci.write(0x18, 0x16, 0)
    ahci.start(0)
    ahci.write(0x38, 1, 0)
    ahci.write(0x00, place & 0xFFFF_FFFF, 0)
    ahci.write(0x04, place >> 32, 0)
    ahci.write(0x08, place & 0xFFFF_FFFF, 0)
    ahci.write(0x38, 3, 0)
    assert ahci.read(0x28, 0) == 0x113


def test_saved_state(ahci: Ahci, tmp_path: Path) -> None:
    ahci.start(0)
    ahci.run(0, command_fis(0xEC), [(0x20000, 512)])
    fresh = Ahci(image(tmp_path, DISK, name="copy"), image(tmp_path, CD, name="copy.iso"))
    for one, other in zip(ahci.function.parts, fresh.function.parts, strict=True):
        round_trip(one, other)
    assert fresh.run(0, command_fis(0x25, 1, 1), [(0x20000, 512)]) == 0x50
    assert fresh.memory.read_bytes(0x20000, 512) == DISK[512:1024]
    fresh.close()
