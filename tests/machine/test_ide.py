"""PIIX3 IDE with a disk and a CD drive: QEMU's registers and answers, PIO, DMA, packets, media, saved states."""

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.block import DriveOptions, open_image
from pellucid.machine.ide.geometry import LARGE, LBA, NO_TRANSLATION, Geometry, guess_geometry
from tests.block.helpers import image
from tests.machine.helpers import round_trip
from tests.machine.ide_bench import BUS_MASTER, END, Ide

DISK, CD = random.Random(1).randbytes(10 << 20), random.Random(2).randbytes(2 << 20)

# What QEMU 7.2 answers for a disk of 10 MiB and for a CD drive, by word; all other words are 0.
QEMU_DISK = {
    0: 0x0040, 1: 20, 3: 16, 4: 0x7E00, 5: 0x0200, 6: 63, 20: 3, 21: 0x0200, 22: 4, 47: 0x8010, 48: 1, 49: 0x0B00,
    51: 0x0200, 52: 0x0200, 53: 7, 54: 20, 55: 16, 56: 63, 57: 0x4EC0, 59: 0x0110, 60: 0x5000, 62: 7, 63: 7, 64: 3,
    65: 120, 66: 120, 67: 120, 68: 120, 69: 0x4000, 80: 0x00F0, 81: 0x0016, 82: 0x4021, 83: 0x7400, 84: 0x4000,
    85: 0x4021, 86: 0x3400, 87: 0x4000, 88: 0x203F, 93: 0x6001, 100: 0x5000, 106: 0x6000, 169: 1,
}  # fmt: skip
QEMU_CD = {
    0: 0x85C0, 20: 3, 21: 0x0200, 22: 4, 48: 1, 49: 0x0300, 53: 7, 62: 7, 63: 7, 64: 3, 65: 0xB4, 66: 0xB4, 67: 0x12C,
    68: 0xB4, 71: 30, 72: 30, 80: 0x1E, 88: 0x203F,
}  # fmt: skip


@pytest.fixture
def ide(tmp_path: Path) -> Iterator[Ide]:
    made = Ide(image(tmp_path, DISK), image(tmp_path, CD, name="cd.iso"))
    yield made
    made.close()


def words(content: bytes) -> tuple[int, ...]:
    return struct.unpack("<256H", content)


def text(values: tuple[int, ...]) -> str:
    return b"".join(value.to_bytes(2, "big") for value in values).decode().rstrip()


def test_identify_is_qemu_s(ide: Ide) -> None:
    assert ide.command(0xEC) == 0x58
    disk = words(ide.data_in())
    assert ide.command(0xA1, base=0x170) == 0x58
    cd = words(ide.data_in(0x170))
    names = [(text(w[10:20]), text(w[23:27]), text(w[27:47])) for w in (disk, cd)]
    assert names == [("QM00001", "2.5+", "QEMU HARDDISK"), ("QM00003", "2.5+", "QEMU DVD-ROM")]
    strings = {*range(10, 20), *range(23, 47)}
    for values, expected in ((disk, QEMU_DISK), (cd, QEMU_CD)):
        assert {n: value for n, value in enumerate(values) if value and n not in strings} == expected


def test_registers_after_power_on_and_reset(ide: Ide) -> None:
    assert ide.registers(0x1F0) == [0, 1, 1, 0, 0, 0xA0, 0x50]
    assert ide.registers(0x170) == [0, 1, 1, 0x14, 0xEB, 0xA0, 0x50]
    ide.outb(0x176, 0xB0)
    assert ide.registers(0x170) == [0, 1, 1, 0xFF, 0xFF, 0xB0, 0]
    for control, base in ((0x3F6, 0x1F0), (0x376, 0x170)):
        ide.outb(control, 4)
        ide.outb(control, 0)
        assert ide.inb(control) == (0x50 if base == 0x1F0 else 0)
    assert ide.registers(0x1F0) == [1, 1, 1, 0, 0, 0xA0, 0x50]
    assert ide.registers(0x170) == [1, 1, 1, 0x14, 0xEB, 0xA0, 0]


def test_pio_reads_and_writes(ide: Ide) -> None:
    assert ide.command(0x20, 7, 2) == 0x58 and ide.wires[0].edges == 1
    assert ide.data_in() == DISK[7 * 512 : 8 * 512]
    assert ide.inb(0x1F7) == 0x58 and ide.data_in() == DISK[8 * 512 : 9 * 512]
    assert ide.registers(0x1F0) == [0, 0, 9, 0, 0, 0xE0, 0x50] and ide.wires[0].edges == 2
    content = random.Random(3).randbytes(3 * 512)
    assert ide.command(0x30, 20479 - 2, 3) == 0x58 and ide.wires[0].edges == 2
    for at in range(0, len(content), 512):
        ide.data_out(content[at : at + 512])
    assert ide.inb(0x1F7) == 0x50
    assert ide.command(0xC6, count=8) == 0x50 and ide.command(0xC4, 20479 - 2, 3) == 0x58
    assert ide.data_in(words=768) == content and ide.inb(0x1F7) == 0x50
    assert ide.command(0x20, 20479, 2) == 0x41 and ide.inb(0x1F1) == 4


def test_ins_takes_a_block_at_once(ide: Ide) -> None:
    ide.command(0x20, 5, 2)
    assert ide.ports.read_string(0x1F0, 2, 100) == DISK[5 * 512 : 5 * 512 + 200]
    rest = ide.ports.read_string(0x1F0, 4, 1000)
    assert rest == DISK[5 * 512 + 200 : 6 * 512], "no further than the block, whose end has a meaning"
    assert ide.inb(0x1F7) == 0x58
    assert ide.ports.read_string(0x1F7, 1, 3) == b"\x58" * 3


def test_48_bit_commands(ide: Ide) -> None:
    for offset, before, now in ((2, 0, 2), (3, 0, 9), (4, 0, 0), (5, 0, 0)):
        ide.outb(0x1F0 + offset, before)
        ide.outb(0x1F0 + offset, now)
    ide.outb(0x1F6, 0xE0)
    ide.outb(0x1F7, 0x24)
    assert ide.inb(0x1F7) == 0x58 and ide.data_in() + ide.data_in() == DISK[9 * 512 : 11 * 512]
    ide.outb(0x1F3, 0xFF)
    ide.outb(0x1F3, 0)
    ide.outb(0x1F7, 0x24)
    assert ide.inb(0x1F7) == 0x41, "sector 0xFF000000"
    ide.outb(0x3F6, 0x80)
    assert ide.inb(0x1F3) == 0xFF


def test_dma(ide: Ide) -> None:
    assert ide.command(0xC8, 10, 8) == 0x58
    ide.start_dma([(0x20000, 1024), (0x30000, 3072 | END)], into_memory=True)
    assert ide.memory.read_bytes(0x20000, 1024) == DISK[5120 : 5120 + 1024]
    assert ide.memory.read_bytes(0x30000, 3072) == DISK[6144 : 6144 + 3072]
    assert ide.inb(BUS_MASTER + 2) == 0x04 and ide.inb(0x1F7) == 0x50 and ide.wires[0].edges == 1
    content = random.Random(4).randbytes(2048)
    ide.memory.write_bytes(0x40000, content)
    ide.command(0xCA, 50, 4)
    ide.start_dma([(0x40000, 4096 | END)], into_memory=False)
    assert ide.inb(BUS_MASTER + 2) == 0x05, "a table longer than the transfer leaves the bus master active"
    assert ide.command(0xE7) == 0x50
    assert ide.command(0x20, 51) == 0x58 and ide.data_in() == content[512:1024]


def test_trim(ide: Ide) -> None:
    """By a driver that writes the count once, so that its high byte is what the reset left."""
    for ranges, status, error in ([(0, 2), (6, 8)], 0x50, 0), ([(10, 1), (len(DISK) // 512 - 1, 2)], 0x51, 0x04):
        content = b"".join((sector | count << 48).to_bytes(8, "little") for sector, count in ranges)
        ide.memory.write_bytes(0x20000, content.ljust(512, b"\0"))
        assert ide.command(0x06, 0, 1, features=1) == 0x58
        ide.start_dma([(0x20000, 512 | END)], into_memory=False)
        assert ide.inb(BUS_MASTER + 2) == 0x04
        assert (ide.inb(0x1F7), ide.inb(0x1F1)) == (status, error)


def test_dma_tells_whoever_must_know_of_a_write(ide: Ide) -> None:
    written: list[tuple[int, int]] = []
    ide.block.add_write_hook(written.extend)
    ide.command(0xC8, 0, 16)
    ide.start_dma([(0x20000, 4096), (0x21000, 4096 | END)], into_memory=True)
    assert (0x20000, 8192) in written, "pieces that lie together are one"


def test_a_descriptor_table_that_is_too_short_moves_nothing(ide: Ide) -> None:
    ide.command(0xC8, 0, 8)
    ide.start_dma([(0x20000, 2048 | END)], into_memory=True)
    assert ide.memory.read_bytes(0x20000, 2048) == bytes(2048)
    assert ide.inb(BUS_MASTER + 2) & 5 == 0 and ide.inb(0x1F7) == 0x50 and ide.wires[0].edges == 0


def test_dma_to_devices_and_to_nothing(ide: Ide) -> None:
    """What is not RAM gets its bytes as a device does, or drops them."""
    ide.command(0xC8, 0, 2)
    ide.start_dma([(0xF000_0000, 512), (0x20000, 512 | END)], into_memory=True)
    assert ide.memory.read_bytes(0x20000, 512) == DISK[512:1024] and ide.inb(0x1F7) == 0x50
    ide.function.config_write(4, 2, 1)  # bus mastering off: the table cannot be read
    ide.command(0xC8, 0, 2)
    ide.start_dma([(0x20000, 1024 | END)], into_memory=True)
    assert ide.inb(BUS_MASTER + 2) & 2


def test_interrupts_can_be_held_back(ide: Ide) -> None:
    ide.outb(0x3F6, 2)
    ide.command(0xE7)
    assert ide.wires[0].edges == 0 and ide.inb(BUS_MASTER + 2) == 0
    ide.outb(0x3F6, 0)
    ide.command(0xE7)
    assert ide.wires[0].edges == 1 and not ide.wires[0].level, "reading the status took it back"


def test_set_features_shows_in_identify(ide: Ide) -> None:
    ide.command(0xEF, count=0x42, features=0x03)
    assert ide.command(0xEF, count=0, features=0x82) == 0x50
    ide.command(0xEC)
    values = words(ide.data_in())
    assert (values[62], values[63], values[88], values[85]) == (7, 7, 0x043F, 0x4001)
    assert ide.command(0xEF, features=0x77) == 0x41


def test_smart(ide: Ide) -> None:
    assert ide.command(0xB0, 0xC24F00, features=0xD0) == 0x58
    content = ide.data_in()
    assert sum(content) & 0xFF == 0 and content[:10] == bytes.fromhex("01000103006464000000")
    assert ide.command(0xB0, 0xC24F00, features=0xDA) == 0x50 and ide.registers(0x1F0)[3:5] == [0x4F, 0xC2]
    assert ide.command(0xB0, 0xC24F00, features=0xD9) == 0x50
    assert ide.command(0xB0, 0xC24F00, features=0xDA) == 0x41, "switched off"
    assert ide.command(0xB0, 0, features=0xD8) == 0x41


PACKETS = {
    (0x25,): "000003ff00000800",
    (0x12, 0, 0, 0, 36): "058000211f000000" + b"QEMU    QEMU DVD-ROM    2.5+".hex(),
    (0x43, 0, 0, 0, 0, 0, 0, 0, 64): "001201010014010000000000" + "0016aa0000000400",
    (0x43, 2, 0, 0, 0, 0, 0xAA, 0, 64): "000a01010016aa0000000f31",
    (0x46, 0, 0, 0, 0, 0, 0, 0, 64): "0000001000000008" + "000003080010000000080100",
    (0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8): "0004041000020000",
    (0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 64): "001c700000000000" + "2a143b007160290002c00002020002c0000000000000",
    (0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8): "0000000000010000",
    (0x03, 0, 0, 0, 18): "f00000000000000a00000000000000000000",
}
"""QEMU's answers, for a medium of 2 MiB."""


@pytest.mark.parametrize("packet", PACKETS, ids=lambda packet: f"{packet[0]:02x}")
def test_packets_are_answered_as_qemu_does(ide: Ide, packet: tuple[int, ...]) -> None:
    assert ide.packet(packet).hex() == PACKETS[packet]
    assert ide.inb(0x177) == 0x50 and ide.inb(0x172) & 3 == 3


@pytest.mark.parametrize("limit", [0xFFFE, 2048, 3000, 1000, 512])
def test_reading_a_cd_in_blocks_of_any_size(ide: Ide, limit: int) -> None:
    assert ide.packet((0x28, 0, 0, 0, 0, 3, 0, 0, 40), limit) == CD[3 * 2048 : 43 * 2048]
    raw = ide.packet((0xBE, 0, 0, 0, 0, 1, 0, 0, 1, 0xF8), limit)
    assert len(raw) == 2352 and raw[12:16] == bytes((0, 2, 1, 1)) and raw[16:2064] == CD[2048:4096]


def test_reading_a_cd_by_dma(ide: Ide) -> None:
    for into, packet in ((0x20000, (0x28, 0, 0, 0, 0, 3, 0, 0, 2)), (0x30000, (0x25,))):
        ide.outb(0x176, 0xA0)
        ide.outb(0x171, 1)
        ide.outb(0x177, 0xA0)
        ide.data_out(bytes(packet).ljust(12, b"\0"), 0x170)
        ide.start_dma([(into, 4096 | END)], into_memory=True, channel=1)
        assert ide.inb(0x177) == 0x50
    assert ide.memory.read_bytes(0x20000, 4096) == CD[3 * 2048 : 5 * 2048]
    assert ide.memory.read_bytes(0x30000, 9) == bytes.fromhex("000003ff0000080000")


def sense(ide: Ide) -> tuple[int, int]:
    answer = ide.packet((0x03, 0, 0, 0, 18))
    return answer[2], answer[12]


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        ((0xFF,), (5, 0x20)),
        ((0x28, 0, 0, 0, 4, 0, 0, 0, 1), (5, 0x21)),
        ((0x5A, 0, 0x3F, 0, 0, 0, 0, 1, 0), (5, 0x24)),
        ((0x5A, 0, 0xEA, 0, 0, 0, 0, 1, 0), (5, 0x39)),
        ((0x43, 0, 0, 0, 0, 0, 2, 0, 64), (5, 0x24)),
    ],
)
def test_packets_that_fail(ide: Ide, packet: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert ide.packet(packet) == b"" and ide.inb(0x177) == 0x41 and ide.inb(0x171) == expected[0] << 4
    assert sense(ide) == expected and sense(ide) == (0, 0)


def test_a_changed_medium(ide: Ide, tmp_path: Path) -> None:
    ide.cd.backend.change(None)
    assert ide.packet((0,)) == b"" and sense(ide) == (2, 0x3A)
    other = image(tmp_path, CD[:4096], name="b")
    ide.cd.backend.change(open_image(DriveOptions("-cdrom", file=str(other), media="cdrom")))
    assert ide.packet((0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8))[4:6] == b"\2\2"
    ide.packet((0,))
    assert sense(ide) == (6, 0x28)
    assert ide.packet((0x25,)).hex() == "0000000100000800"


def test_the_tray(ide: Ide) -> None:
    ide.packet((0x1E, 0, 0, 0, 1))
    ide.packet((0x1B, 0, 0, 0, 2))
    assert sense(ide) == (5, 0x53) and ide.cd.backend.locked
    ide.packet((0x1E, 0, 0, 0, 0))
    ide.packet((0x1B, 0, 0, 0, 2))
    assert ide.cd.backend.tray_open
    ide.packet((0x28, 0, 0, 0, 0, 0, 0, 0, 1))
    assert sense(ide) == (2, 0x3A)
    ide.packet((0x1B, 0, 0, 0, 3))
    ide.packet((0,))
    assert sense(ide) == (6, 0x28) and ide.packet((0,)) == b"" and ide.inb(0x177) == 0x50


def test_a_reset_in_the_middle_of_a_transfer(ide: Ide) -> None:
    """What the host does for a command is over before the reset is: late bytes would overwrite the next owner's."""
    for _ in range(20):
        ide.outb(0x1F7, 0xEC)
        ide.command(0xCA, 0, 255)
        ide.memory.write_bytes(0x1000, struct.pack("<II", 0x20000, 0 | END))
        ide.outb(BUS_MASTER, 1)
        ide.outb(0x3F6, 4)
        ide.outb(0x3F6, 0)
        assert ide.pool._running == 0 and ide.inb(0x1F7) == 0x50
        ide.outb(BUS_MASTER, 0)


def test_saved_state(ide: Ide, tmp_path: Path) -> None:
    """In the middle of a PIO read, on both channels."""
    ide.command(0x20, 7, 2)
    first = ide.data_in(words=100)
    fresh = Ide(image(tmp_path, DISK, name="copy"), image(tmp_path, CD, name="copy.iso"))
    for one, other in zip(ide.function.parts, fresh.function.parts, strict=True):
        round_trip(one, other)
    assert first + fresh.data_in(words=156) == DISK[7 * 512 : 8 * 512]
    assert fresh.data_in() == DISK[8 * 512 : 9 * 512] and fresh.inb(0x1F7) == 0x50
    fresh.close()


def partition(end_head: int, end_sector: int, sectors: int) -> bytes:
    entry = struct.pack("<BBBBBBBBII", 0x80, 1, 1, 0, 0x83, end_head, end_sector, 0, 63, sectors)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"


@pytest.mark.parametrize(
    ("sectors", "first", "expected"),
    [
        (20480, bytes(512), Geometry(20, 16, 63)),
        (100, bytes(512), Geometry(2, 16, 63)),
        (4 << 21, bytes(512), Geometry(8322, 16, 63, LBA)),
        (100 << 21, bytes(512), Geometry(16383, 16, 63, LBA)),
        (20480, partition(15, 63, 20000), Geometry(20, 16, 63, NO_TRANSLATION)),
        (20480, partition(7, 32, 20000), Geometry(80, 8, 32, NO_TRANSLATION)),
        (1 << 21, partition(254, 63, 20000), Geometry(2080, 16, 63, LARGE)),
    ],
)
def test_geometry(sectors: int, first: bytes, expected: Geometry) -> None:
    assert guess_geometry(sectors, first) == expected
