"""Hostile guests at IDE and AHCI: random registers, descriptor tables and lists. Nothing raises, hangs or grows."""

import os
import random
import struct
import time
from pathlib import Path

import pytest

from pellucid.machine.dma import MOST_COPIED, ScatterList
from tests.block.helpers import image
from tests.machine.ide_bench import AHCI_BASE, BUS_MASTER, RAM_SIZE, Ahci, Ide, Spaces, command_fis, queued_fis

SEED = int(os.environ.get("PELLUCID_SEED", "1"))
COMMANDS = (0x00, 0x08, 0x20, 0x24, 0x25, 0x2F, 0x30, 0x35, 0x39, 0x40, 0x60, 0x61, 0x90, 0xA0, 0xA1, 0xB0, 0xC4, 0xC5,
            0xC6, 0xC8, 0xCA, 0xE7, 0xEC, 0xEF, 0x06)  # fmt: skip
PLACES = (0, 0x1000, 0x1FFF, RAM_SIZE - 64, RAM_SIZE, AHCI_BASE, AHCI_BASE + 0x100, 0xF000_0000, 0xFFFF_FFF0)
LONGEST = 20.0
"""Seconds that one kick may take, on a computer however busy: only a hang takes that long."""


def images(folder: Path) -> tuple[Path, Path]:
    return image(folder, size=1 << 20), image(folder, size=1 << 19, name="cd.iso")


def check(spaces: Spaces, parts: list[object]) -> None:
    spaces.pool.drain()
    for part in parts:
        part.load(part.save())  # type: ignore[attr-defined]
        part.reset()  # type: ignore[attr-defined]


@pytest.mark.parametrize("round_", range(12))
def test_ide(tmp_path: Path, round_: int) -> None:
    rng = random.Random(SEED * 1000 + round_)
    ide = Ide(*images(tmp_path))
    ports = (*range(0x1F0, 0x1F8), *range(0x170, 0x178), 0x3F6, 0x376, *range(BUS_MASTER, BUS_MASTER + 16))
    for _ in range(700):
        action, port, size = rng.randrange(12), rng.choice(ports), rng.choice((1, 2, 4))
        if action < 4:
            ide.outb(port, rng.choice((0, 1, 8, 9, 0x40, 0xA0, 0xE0, rng.getrandbits(8 * size))), size)
        elif action < 6:
            assert 0 <= ide.ports.read(port, size) < 1 << 8 * size
        elif action == 6:
            ide.outb(rng.choice((0x1F7, 0x177)), rng.choice(COMMANDS))
        elif action == 7:
            base = rng.choice((0x1F0, 0x170))
            for _ in range(rng.randrange(300)):
                ide.outb(base, rng.getrandbits(16), 2)
        elif action == 8:
            ide.ports.read_string(rng.choice((0x1F0, 0x170)), rng.choice((2, 4)), rng.randrange(1, 2048))
        elif action == 9:
            table = [(rng.choice(PLACES), rng.getrandbits(32)) for _ in range(rng.randrange(1, 40))]
            ide.memory.write_bytes(0x1000, b"".join(struct.pack("<II", *entry) for entry in table))
            ide.outb(BUS_MASTER + rng.choice((4, 12)), rng.choice((0x1000, 0xFFF0, 0xF000_0000)), 4)
        elif action == 10:
            ide.function.config_write(rng.choice((4, 0x20, 0x40)), 2, rng.getrandbits(16))
            ide.function.config_write(0x20, 4, BUS_MASTER)
            ide.function.config_write(4, 2, rng.choice((5, 5, 1)))
        else:
            ide.cd.backend.tray_open = bool(rng.randrange(2))
    check(ide, list(ide.function.parts))
    ide.close()


@pytest.mark.parametrize("round_", range(12))
def test_ahci(tmp_path: Path, round_: int) -> None:
    rng = random.Random(SEED * 1000 + round_)
    ahci = Ahci(*images(tmp_path))
    for port in (0, 2):
        ahci.start(port)
    for _ in range(250):
        port, action = rng.choice((0, 0, 2, 1)), rng.randrange(10)
        if action < 2:
            ahci.write(rng.randrange(0, 0x80, 4), rng.getrandbits(32), port)
        elif action == 2:
            ahci.read(rng.randrange(0, 0x1000, 4))
        elif action < 7:
            slot = rng.randrange(32)
            count = rng.choice((0, 1, 8, 0xFFFF))
            command = command_fis(rng.choice(COMMANDS), rng.getrandbits(13), count, rng.getrandbits(8))
            queued = queued_fis(bool(rng.randrange(2)), rng.choice((slot, 5)), rng.getrandbits(12), rng.getrandbits(9))
            fis = rng.choice((command, queued, queued, rng.randbytes(20)))
            entries = [(rng.choice(PLACES), rng.randrange(1, 1 << 18)) for _ in range(rng.randrange(20))]
            ahci.fill(port, slot, fis, entries, packet=rng.choice((b"", rng.randbytes(12))))
            ahci.write(0x34, rng.choice((0, 1 << slot)), port)
            ahci.write(0x38, 1 << slot | rng.choice((0, 0, rng.getrandbits(32))), port)
        elif action == 7:
            ahci.memory.write_bytes(0x400 * (1 + port), rng.randbytes(1024))
        elif action == 8:
            ahci.write(4, rng.choice((1, 2, 0x8000_0002)))
        else:
            ahci.start(port)
        ahci.pool.drain()
    check(ahci, list(ahci.function.parts))
    ahci.close()


def test_the_longest_tables(tmp_path: Path) -> None:
    """Every descriptor that a table can have, all of them to one byte, to devices or to all of RAM again and again."""
    ahci = Ahci(*images(tmp_path))
    ahci.start(0)
    for address, size in ((0x20000, 1), (0xF000_0000, 1 << 22), (AHCI_BASE, 4096), (0, RAM_SIZE)):
        entry = struct.pack("<QII", address, 0, size - 1)
        ahci.fill(0, 0, command_fis(0x25, 0, 2048), [])
        ahci.memory.write_bytes(0x4080, entry * 60000)
        ahci.memory.write_bytes(0x400, struct.pack("<IIII", 5 | 0xFFFF << 16, 0, 0x4000, 0))
        before = time.monotonic()
        ahci.write(0x38, 1, 0)
        ahci.pool.drain()
        assert time.monotonic() - before < LONGEST
        ahci.write(0x18, 0x16, 0)
        ahci.start(0)
    ahci.close()


def test_copies_are_bounded() -> None:
    """A transfer to where no RAM is takes no more memory than the limit, however long it says it is."""
    spaces = Spaces()
    endless = ((0xF000_0000, 1 << 22) for _ in range(1 << 16))
    scatter = ScatterList(spaces.memory, endless, 1 << 40, to_memory=True)
    assert scatter.size == MOST_COPIED
    spaces.close()
