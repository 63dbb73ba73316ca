"""The floppy controller on a board, through its ports and DMA; that SeaBIOS boots from it; a fuzzer."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pellucid.block import DriveOptions
from pellucid.machine.devices.dma8237 import Dma8237
from pellucid.machine.devices.fdc import Fdc
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.floppy.commands import COMMANDS
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.floppy.formats import FORMATS, find_format
from pellucid.machine.machine import Machine
from tests.block.helpers import image
from tests.machine.pc_machine import device, pc_machine

KIB = 1 << 10
SRB, DOR, TDR, MSR, FIFO, DIR = 0x3F1, 0x3F2, 0x3F3, 0x3F4, 0x3F5, 0x3F7
READY, BUSY_RESULT, NO_DMA_READ, NO_DMA_WRITE, WAITS = 0x80, 0xD0, 0xF0, 0xB0, 0x10
SPECIFY, SENSE_DRIVE, RECALIBRATE, SENSE_INTERRUPT, READ_ID, SEEK = 0x03, 0x04, 0x07, 0x08, 0x4A, 0x0F
READ, WRITE, FORMAT, VERIFY, SCAN_EQUAL = 0x46, 0x45, 0x4D, 0x56, 0x51
BUFFER = 0x1_0000
SEED = int(os.environ.get("PELLUCID_SEED", "11"))


def floppy(folder: Path, kib: int = 1440, name: str = "a.img", **changes: object) -> DriveOptions:
    """A diskette whose sectors begin with their numbers."""
    content = b"".join(number.to_bytes(4, "little").ljust(512, b"\x5a") for number in range(2 * kib))
    settings = {"file": str(image(folder, content, name=name)), "interface": "floppy", "format": "raw", **changes}
    return DriveOptions("-fda", **settings)  # type: ignore[arg-type]


class Bench:
    """A board with diskettes, and what a driver does with the ports."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.chip = device(machine, Fdc)

    def outb(self, port: int, value: int) -> None:
        self.machine.ports.write(port, 1, value)

    def inb(self, port: int) -> int:
        return self.machine.ports.read(port, 1)

    def command(self, *data: int) -> bytes:
        """The result bytes, all of them."""
        for byte in data:
            assert self.inb(MSR) & 0xC0 == READY
            self.outb(FIFO, byte)
        return self.results()

    def results(self) -> bytes:
        found = bytearray()
        while self.inb(MSR) == BUSY_RESULT:
            found.append(self.inb(FIFO))
        return bytes(found)

    def dma(self, length: int, *, into_memory: bool = True) -> None:
        """Program channel 2."""
        self.outb(0x0A, 6)
        self.outb(0x0C, 0)
        self.outb(0x0B, 0x46 if into_memory else 0x4A)
        for port, value in ((0x04, BUFFER & 0xFF), (0x04, BUFFER >> 8 & 0xFF), (0x81, BUFFER >> 16)):
            self.outb(port, value)
        for value in ((length - 1) & 0xFF, (length - 1) >> 8):
            self.outb(0x05, value)
        self.outb(0x0A, 2)

    def transfer(self, command: int, track: int, head: int, sector: int, end: int = 18, drive: int = 0) -> bytes:
        return self.command(command, drive | head << 2, track, head, sector, 2, end, 0x1B, 0xFF)

    def memory(self, length: int = 512) -> bytes:
        return bytes(self.machine.memory.read_bytes(BUFFER, length))

    @property
    def line(self) -> bool:
        return self.chip.irq


@contextmanager
def bench(folder: Path, *drives: DriveOptions) -> Iterator[Bench]:
    with pc_machine(folder, drives=drives, default_drives=False) as machine:
        yield Bench(machine)


def sector_number(content: bytes) -> int:
    return int.from_bytes(content[:4], "little")


def test_after_a_reset_each_drive_is_sensed(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.outb(DOR, 0x08)
        it.outb(DOR, 0x0C)
        assert it.line
        assert [it.command(SENSE_INTERRUPT)[0] for _ in range(5)] == [0xC0, 0xC1, 0xC2, 0xC3, 0x80]
        assert not it.line


def test_seek_and_its_status(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        assert it.inb(DIR) == 0x80
        assert it.command(SEEK, 0, 5) == b"" and it.line
        assert it.command(SENSE_INTERRUPT) == b"\x20\x05" and not it.line
        assert it.inb(DIR) == 0, "the change line falls with a step"
        assert it.command(SENSE_DRIVE, 4) == b"\x2c"
        it.command(0x8F, 0, 3)
        assert it.command(SENSE_INTERRUPT) == b"\x20\x02"
        it.command(0xCF, 0, 200)
        assert it.command(SENSE_INTERRUPT) == b"\x20\x4f"
        it.command(RECALIBRATE, 0)
        assert it.command(SENSE_INTERRUPT) == b"\x20\x00" and it.command(SENSE_DRIVE, 0) == b"\x38"


def test_read_by_dma_to_the_terminal_count(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.dma(3 * 512)
        assert it.transfer(READ, 2, 1, 17, end=18) == bytes.fromhex("24000003010102"), "to the end of the track"
        content = it.memory(3 * 512)
        assert [sector_number(content[at:]) for at in (0, 512)] == [2 * 36 + 18 + 16, 2 * 36 + 18 + 17]
        assert content[1024:] == bytes(512)
        it.dma(3 * 512)
        assert it.transfer(READ | 0x80, 2, 0, 17) == bytes.fromhex("24000002010202"), "on to the other side"
        assert [sector_number(it.memory(1536)[at:]) for at in (0, 512, 1024)] == [88, 89, 90]


def test_a_masked_channel_is_waited_for(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.dma(512)
        it.outb(0x0A, 6)
        it.transfer(READ, 0, 0, 4)
        assert it.inb(MSR) == WAITS and it.inb(0x08) == 0x40 and not it.line
        it.outb(0x0A, 2)
        assert it.line and it.results()[0] == 0 and sector_number(it.memory()) == 3
        assert it.inb(0x08) == 0x04


def test_write_and_what_is_refused(tmp_path: Path) -> None:
    drives = floppy(tmp_path), floppy(tmp_path, 720, "b.img", index=1, read_only=True)
    with bench(tmp_path, *drives) as it:
        it.machine.memory.write_bytes(BUFFER, b"new" * 200)
        it.dma(512, into_memory=False)
        assert it.transfer(WRITE, 0, 0, 2)[:3] == b"\0\0\0"
        it.outb(DIR, 2)
        assert it.command(SENSE_DRIVE, 1) == b"\x79"
        it.dma(512, into_memory=False)
        assert it.transfer(WRITE, 0, 0, 2, end=9, drive=1)[:3] == b"\x61\x02\0", "write protected"
        it.outb(DIR, 0)
        assert it.transfer(READ, 0, 0, 2, drive=1)[:3] == b"\x41\x01\0", "another data rate"
        assert it.transfer(READ, 0, 0, 19, end=20)[:3] == b"\x40\x80\0", "no such sector"
        assert it.transfer(READ, 99, 0, 1)[:3] == b"\x40\0\0", "no such track"
    assert (tmp_path / "a.img").read_bytes()[510:516] == b"\x5a\x5anewn"


def test_through_the_fifo(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.command(SPECIFY, 0xAF, 0x03)
        it.transfer(READ, 1, 0, 5, end=6)
        assert it.inb(MSR) == NO_DMA_READ and it.line
        content = bytes(it.inb(FIFO) for _ in range(1024))
        assert [sector_number(content[at:]) for at in (0, 512)] == [40, 41] and it.results()[0] == 0x20
        it.transfer(WRITE, 1, 0, 5, end=5)
        assert it.inb(MSR) == NO_DMA_WRITE
        for _ in range(512):
            it.outb(FIFO, 0x77)
        assert it.results()[:2] == b"\0\0"
    assert (tmp_path / "a.img").read_bytes()[40 * 512 : 41 * 512] == b"\x77" * 512


def test_format_and_verify(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.command(SEEK, 0, 3)
        it.command(SENSE_INTERRUPT)
        assert it.command(FORMAT, 4, 2, 18, 0x1B, 0xF6)[:2] == b"\0\0"
        assert it.transfer(VERIFY, 3, 1, 1)[1] == 0
        it.machine.memory.write_bytes(BUFFER, b"\xf6" * 512)
        it.dma(512, into_memory=False)
        assert it.transfer(SCAN_EQUAL, 3, 1, 7)[2] == 0x08
        it.dma(512, into_memory=False)
        assert it.transfer(SCAN_EQUAL, 3, 0, 7)[2] == 0x04
    content = (tmp_path / "a.img").read_bytes()
    first = (3 * 2 + 1) * 18 * 512
    assert content[first : first + 18 * 512] == b"\xf6" * 18 * 512
    assert sector_number(content[first - 512 :]) == first // 512 - 1 and content[first + 18 * 512] == 7 * 18 + 18


def test_read_id_waits_for_the_disk(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.command(READ_ID, 0)
        assert it.inb(MSR) == WAITS
        it.chip._turned()
        assert it.results() == bytes.fromhex("00000000000202")


def test_the_registers_that_commands_show(tmp_path: Path) -> None:
    with bench(tmp_path) as it:
        assert (it.command(0x10), it.command(0x18), it.command(0x94)) == (b"\x90", b"\x41", b"\x10")
        it.command(0x13, 0, 0x57, 0x12)
        assert it.command(0x0E).hex() == "00000000000100805712"
        saved = bytearray(it.command(0x2E))
        saved[2] = 0x21
        it.command(0x4E, *saved, 0, 0)
        assert it.command(0x0E)[0] == 0x21
        assert it.command(0x17, 1, 0) == b"\1" and it.command(0x55) == b"\x80"


def test_media_come_and_go(tmp_path: Path) -> None:
    image(tmp_path, size=2880 * KIB, name="big.img")
    with bench(tmp_path, DriveOptions("-fda", interface="floppy", index=0)) as it:
        drive = device(it.machine, FloppyDrive)
        assert drive.drive_type == "288" and device(it.machine, Rtc).cmos[0x10] == 0x50
        assert device(it.machine, Rtc).cmos[0x14] & 0xC1 == 0x01
        assert it.transfer(READ, 0, 0, 1)[:2] == b"\x40\x00" and it.inb(DIR) == 0x80
        floppy(tmp_path)
        it.machine.drives.change("floppy0", str(tmp_path / "a.img"), "raw")
        it.dma(512)
        assert it.transfer(READ, 1, 0, 1)[:2] == b"\x20\0" and it.inb(DIR) == 0
        it.machine.drives.change("floppy0", str(tmp_path / "big.img"), "raw")
        assert it.inb(DIR) == 0x80 and it.transfer(READ, 0, 0, 36, end=36)[1] == 1, "1 Mbit/s"
        it.machine.drives.eject("floppy0")
        assert it.inb(DIR) == 0x80 and it.transfer(READ, 0, 0, 1)[0] & 0xC0 == 0x40


@pytest.mark.parametrize(
    ("kib", "drive", "shape"),
    [
        (160, "120", (2, 1, 8, 40)),
        (180, "120", (1, 1, 9, 40)),
        (320, "120", (2, 2, 8, 40)),
        (360, "120", (1, 2, 9, 40)),
        (720, "144", (2, 2, 9, 80)),
        (880, "120", (2, 2, 11, 80)),
        (1200, "120", (0, 2, 15, 80)),
        (1440, "144", (0, 2, 18, 80)),
        (1743, "144", (0, 2, 21, 83)),
        (2880, "288", (3, 2, 36, 80)),
    ],
)
def test_formats_by_size(kib: int, drive: str, shape: tuple[int, ...]) -> None:
    form = find_format(kib * KIB, "auto")
    assert form is not None and (form.drive, (form.rate, form.heads, form.sectors, form.tracks)) == (drive, shape)


def test_a_medium_in_another_drive() -> None:
    in_288 = find_format(1440 * KIB, "288")
    assert in_288 is not None and in_288.sectors == 18
    odd = find_format(12345, "144")
    assert odd is not None and odd.size == 1440 * KIB
    assert find_format(12345, "auto") is None and len({(f.drive, f.size, f.heads) for f in FORMATS}) == len(FORMATS)


def test_saved_in_the_middle_of_a_command(tmp_path: Path) -> None:
    with bench(tmp_path, floppy(tmp_path)) as it:
        it.dma(512)
        it.outb(0x0A, 6)
        it.transfer(READ, 0, 0, 9)
        saved = [found.save() for found in (it.chip, device(it.machine, Dma8237), device(it.machine, FloppyDrive))]
    with bench(tmp_path, floppy(tmp_path)) as it:
        for found, state in zip((it.chip, device(it.machine, Dma8237), device(it.machine, FloppyDrive)), saved):
            found.load(state)
        assert it.inb(MSR) == WAITS
        it.outb(0x0A, 2)
        assert it.results()[:2] == b"\0\0" and sector_number(it.memory()) == 8


def test_random_commands(tmp_path: Path) -> None:
    """Whatever is written, nothing raises or hangs; a reset always leads back; the state can be saved and taken."""
    rng = random.Random(SEED)
    codes = [command.code for command in COMMANDS]
    with bench(tmp_path, floppy(tmp_path, snapshot=True), floppy(tmp_path, 2880, "b.img", read_only=True)) as it:
        it.machine.memory.write_bytes(BUFFER, rng.randbytes(0x1_0000))
        for _ in range(600):
            if rng.random() < 0.3:
                it.dma(rng.choice([1, 511, 512, 9216, 0x1_0000]), into_memory=rng.random() < 0.5)
            first = rng.choice(codes) | rng.choice([0, 0, 0x40, 0x80, 0xC0, 0xE0])
            parameters = [rng.choice([0, 0, 1, 2, 4, 18, 80, 0x80, 0xFF, rng.randrange(256)]) for _ in range(18)]
            for byte in (first, *parameters[: rng.choice([1, 2, 3, 8, 8, 17])]):
                it.outb(FIFO, byte)
            for _ in range(rng.choice([0, 2, 7, 7, 600])):
                assert 0 <= it.inb(rng.choice([FIFO, FIFO, FIFO, MSR, DIR, SRB])) <= 0xFF
            action = rng.random()
            if action < 0.1:
                it.outb(rng.choice([DOR, TDR, MSR, DIR, 0x08, 0x0D, 0x0F]), rng.randrange(256))
            elif action < 0.2:
                it.chip._turned()
            elif action < 0.3:
                it.chip.load({**it.chip.save(), "position": rng.randrange(1 << 32), "phase": rng.randrange(3)})
        it.outb(0x0D, 0)
        it.outb(DOR, 0x0C)
        it.outb(MSR, 0x80)
        assert it.inb(MSR) == READY and it.command(0x10) == b"\x90"
        it.chip.load(it.chip.save())


BOOT_SECTOR = bytes.fromhex("31c08ed8be137cbaf803ac84c07403eeebf8f4ebfd") + b"floppy boots\n\0"
"""xor ax, ax; mov ds, ax; mov si, text; mov dx, 0x3F8; next: lodsb; test al, al; jz end; out dx, al; jmp next; hlt"""


def test_seabios_boots_from_it(tmp_path: Path) -> None:
    from tests.machine.firmware_run import run_firmware

    code = bytearray(BOOT_SECTOR)
    code[5:7] = (0x7C00 + BOOT_SECTOR.index(b"floppy")).to_bytes(2, "little")
    disk = image(tmp_path, bytes(code).ljust(510, b"\0") + b"\x55\xaa", 1440 * KIB)
    drive = DriveOptions("-fda", file=str(disk), interface="floppy", format="raw")
    output = run_firmware(tmp_path, until=b"floppy boots", seconds=60, drives=(drive,))
    assert b"Booting from Floppy" in output and b"floppy boots" in output


def test_an_empty_drive_s_head_goes_where_it_is_told(tmp_path: Path) -> None:
    """Byte for byte what QEMU 7.2 answers."""
    with bench(tmp_path, DriveOptions("-fda", interface="floppy", index=0)) as it:
        for command, track in (((SEEK, 0, 5), 5), ((0xCF, 0, 3), 8), ((0x8F, 0, 1), 7), ((0xCF, 0, 255), 254)):
            it.command(*command)
            assert it.command(SENSE_INTERRUPT) == bytes((0x20, track)) and it.inb(DIR) == 0x80
            assert it.command(0x0E)[:1] == bytes((track,))
        assert it.transfer(READ, 7, 0, 255).hex() == "4000000700ff02"
        it.command(0x07, 0)
        assert it.command(SENSE_INTERRUPT) == b"\x20\x00" and it.command(0x0E)[6:7] == b"\xff"


def test_read_id_of_an_empty_drive_goes_by_the_last_medium_s_rate(tmp_path: Path) -> None:
    with bench(tmp_path, DriveOptions("-fda", interface="floppy", index=0)) as it:
        for rate, st0 in ((0, 0x00), (2, 0x40)):
            it.chip.dsr = rate
            it.command(READ_ID, 0)
            it.chip._turned()
            assert it.results()[0] == st0
