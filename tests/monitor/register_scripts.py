"""Accesses to every device of the board `pc`, as qtest lines: the same ones at every run, some of them nonsense.

`ACCEPTED` says where our answers may differ from QEMU 7.2's, and why.
"""

import random
import re
from collections.abc import Callable, Iterator

from pellucid.records import dataclass

Lines = Iterator[str]


def out(port: int, value: int, width: str = "b") -> str:
    return f"out{width} {port:#x} {value:#x}"


def inp(port: int, width: str = "b") -> str:
    return f"in{width} {port:#x}"


def pic(rng: random.Random) -> Lines:
    """Initialization, masks, end of interrupt, special mask mode, edge and level."""
    for _ in range(150):
        port, kind = rng.choice([0x20, 0xA0]), rng.randrange(8)
        if kind == 0:
            cascade, mode = (4 if port == 0x20 else 2), rng.choice([1, 3, 0x11])
            yield from (out(port, 0x11), out(port + 1, rng.randrange(32) << 3))
            yield from (out(port + 1, cascade), out(port + 1, mode))
        elif kind == 1:
            yield out(port, rng.choice([0x20, 0x60 | rng.randrange(8), 0xC0, 0xA0, 0x80, 0x00, 0x40]))
        elif kind == 2:
            yield out(port, rng.choice([0x0A, 0x0B, 0x68, 0x48, 0x0E]))
        elif kind == 3:
            yield out(rng.choice([0x4D0, 0x4D1]), rng.randrange(256))
        else:
            yield out(port + 1, rng.randrange(256))
        yield from (inp(port), inp(port + 1), inp(0x4D0), inp(0x4D1))


def pit(rng: random.Random) -> Lines:
    """Control words, counts in every form, latches, read-back; the clock stands."""
    for counter in range(3):
        yield from (out(0x43, counter << 6 | 0x34), out(0x40 + counter, 0x34), out(0x40 + counter, 0x12))
    for _ in range(150):
        counter, kind = rng.randrange(3), rng.randrange(6)
        if kind == 0:
            form = rng.choice([1, 2, 3])
            # Modes 1 and 5 load a count at the gate's rise; QEMU shows it at once.
            yield out(0x43, counter << 6 | form << 4 | rng.choice([0, 2, 3, 4]) << 1)
            yield from (out(0x40 + counter, rng.randrange(1, 256)) for _ in range(2 if form == 3 else 1))
        elif kind == 1:
            yield out(0x43, counter << 6)
        elif kind == 2:
            # Not the status: QEMU has OUT, its bit 7, low in mode 2 but for a pulse, which is upside down.
            yield out(0x43, 0xD0 | 2 << counter)
        elif kind == 3:
            yield out(0x61, rng.randrange(4))
        yield from (inp(0x40 + counter), inp(0x61))


def dma(rng: random.Random) -> Lines:
    """Addresses and counts in two bytes, pages, modes, requests; nothing is ever moved."""
    for _ in range(150):
        wide = rng.randrange(2)
        channels, control, step = ((0xC0, 0xD0, 2) if wide else (0x00, 0x08, 1))
        register = channels + step * rng.randrange(8)
        yield out(control + 4 * step, 0)
        if rng.randrange(2):
            yield from (out(register, rng.randrange(256)), out(register, rng.randrange(256)))
        yield from (inp(register), inp(register))
        yield out(control + step * rng.choice([2, 3, 6, 7]), rng.randrange(256))
        page = rng.choice([0x81, 0x82, 0x83, 0x87, 0x89, 0x8A, 0x8B, 0x8F])
        yield from (out(page, rng.randrange(256)), inp(page), inp(control))
    yield from (out(0x0D, 0), out(0xDA, 0), inp(0x08), inp(0xD0))


def rtc(rng: random.Random) -> Lines:
    """Every byte of CMOS RAM but the time; alarms, registers A to D."""
    steady = [index for index in range(128) if index not in (0, 2, 4, 6, 7, 8, 9, 0x32, 0x37)]
    for index in steady:
        yield from (out(0x70, index), inp(0x71))
    for _ in range(150):
        index = rng.choice([1, 3, 5, 10, 11, 12, 13, rng.choice(steady)])
        yield out(0x70, index | rng.choice([0, 0, 0x80]))
        if rng.randrange(2):
            yield out(0x71, {10: 0x26, 11: rng.randrange(8) | 2}.get(index, rng.randrange(256)))
        yield from (inp(0x71), inp(0x70))


def keyboard(rng: random.Random) -> Lines:
    """The controller's commands, the keyboard's and the mouse's; wide accesses; port 0x92."""
    yield from (inp(0x60, "w"), inp(0x64, "l"), out(0x64, 0xD0D0, "w"), inp(0x60), inp(0x64), inp(0x60, "w"))
    yield from (inp(0x92), out(0x92, 2), inp(0x92), out(0x92, 0xFC), inp(0x92, "w"), out(0x92, 0), inp(0x91, "w"))
    commands = [*(0x20, 0x60, 0xA7, 0xA8, 0xA9, 0xAA, 0xAB, 0xAD, 0xAE), *range(0xD0, 0xD5), 0xC0, 0xDD, 0xDF, 0xFF]
    for _ in range(200):
        if rng.randrange(2):
            command = rng.choice(commands)
            yield out(0x64, command)
            if command in (0x60, 0xD1, 0xD2, 0xD3):
                # Not bits 5 and 4 of the output port: QEMU keeps what is written until the next byte comes.
                yield out(0x60, rng.randrange(256) & 0xCF | 1 if command == 0xD1 else rng.randrange(256))
            elif command == 0xD4:
                yield out(0x60, rng.choice([0xF2, 0xF4, 0xF5, 0xE9, 0xE6, 0xFF, 0xF6, 0xEA]))
        elif rng.randrange(4) == 0:
            yield out(0x60, rng.choice([0xF2, 0xF4, 0xF5, 0xF6, 0xEE, 0xFF, 0x02, 0x00]))
        yield inp(0x64)
        if rng.randrange(2):
            yield inp(0x60)


def power(rng: random.Random) -> Lines:
    """PIIX4's ACPI block at 0x600, general purpose events, the SMI command port, SMBus."""
    yield from (out(0xCF8, 0x8000_0B40, "l"), out(0xCFC, 0x601, "l"), out(0xCF8, 0x8000_0B80, "l"), out(0xCFC, 1))
    yield out(0x600, 0xFFFF, "w")
    for offset in range(0, 0x40, 2):
        yield inp(0x600 + offset, "w")
    for _ in range(100):
        kind = rng.randrange(5)
        if kind == 0:
            yield out(0x600 + rng.choice([0, 2]), rng.randrange(0x1_0000), "w")
        elif kind == 1:
            yield out(0x604, rng.randrange(0x1_0000) & ~0x2001, "w")
        elif kind == 2:
            yield out(0xAFE0 + rng.randrange(4), rng.randrange(256))
        elif kind == 3:
            yield rng.choice([out(0xB3, rng.randrange(256)), out(0xB2, rng.choice([0xF1, 0xF0, 0x55]))])
        yield inp(0x600 + rng.choice([0, 2, 4, 8, 10, 0x20, 0x28]), rng.choice("bwl"))
        yield from (inp(0xAFE0 + rng.randrange(4)), inp(0xB2), inp(0xB3))
    yield from (inp(port) for port in range(0xB100, 0xB140))
    for address in (0x50, 0x57, 0x30):
        yield from (out(0xB100, 0xFF), out(0xB104, address << 1 | 1), out(0xB103, 3), out(0xB102, 0x48))
        yield from (inp(0xB100), inp(0xB102), inp(0xB105))


def hpet(rng: random.Random) -> Lines:
    """Configuration, the counter, three comparators."""
    base = 0xFED0_0000
    yield from (f"readl {base + offset:#x}" for offset in range(0, 0x160, 4))
    offsets = (0x00, 0x04, 0x20, 0xF0, 0xF4, *(0x100 + 0x20 * timer + at for timer in range(3) for at in (0, 4, 8, 12)))
    for _ in range(150):
        offset = rng.choice(offsets)
        if rng.randrange(2):
            yield f"writel {base + offset:#x} {rng.getrandbits(32):#x}"
        yield f"readl {base + offset:#x}"


def fw_cfg(rng: random.Random) -> Lines:
    """The items' beginnings, the directory, and wrong widths."""
    for key in (*range(0x20), 0x8000, 0x8001, 0x8002, 0x8003, 0x8004, 0x4001, 0xFFFF):
        yield out(0x510, key, "w")
        yield from (inp(0x511) for _ in range(6))
    yield out(0x510, 0x19, "w")
    yield from (inp(0x511) for _ in range(4 + 64 * 12))
    yield from (inp(0x510), inp(0x510, "w"), inp(0x511, "w"), inp(0x514, "l"), inp(0x518, "l"), inp(0x515, "w"))
    yield from (out(0x511, 5), out(0x510, 5), inp(0x511))


def ide(rng: random.Random) -> Lines:
    """The task files of two channels without drives."""
    for block, control in ((0x1F0, 0x3F6), (0x170, 0x376)):
        for _ in range(60):
            yield out(rng.choice([block + rng.randrange(1, 8), control, block + 6]), rng.randrange(256) & ~4)
            yield inp(rng.choice([block + rng.randrange(1, 8), control]))


def serial(rng: random.Random) -> Lines:
    """A port with nobody at the other end."""
    for _ in range(120):
        yield out(0x3F8 + rng.randrange(8), rng.randrange(256))
        yield inp(0x3F8 + rng.randrange(8))


FLOPPY_PARAMETERS = {
    0x06: 8, 0x46: 8, 0xE6: 8, 0x45: 8, 0xC5: 8, 0x16: 8, 0x42: 8, 0x0C: 8, 0x09: 8, 0x4D: 5, 0x0F: 2, 0x07: 1, 0x08: 0,
    0x03: 2, 0x04: 1, 0x12: 1, 0x13: 3, 0x17: 2, 0x33: 1, 0x8F: 2, 0xCF: 2, 0x14: 0, 0x94: 0, 0x0E: 0, 0x10: 0, 0x18: 0,
    0x2E: 0, 0x4E: 17, 0xCD: 10, 0x00: 0, 0x1F: 0,
}  # fmt: skip


def floppy(rng: random.Random) -> Lines:
    """Commands with a diskette in the first drive, by DMA: results, registers, and what is in memory afterwards."""
    yield from (inp(port) for port in range(0x3F0, 0x3F8) if port != 0x3F6)
    for _ in range(250):
        kind = rng.randrange(16)
        if kind == 0:
            yield out(0x3F4, rng.choice([0x80, 0x80, 0x40, 0, 1]))
        elif kind == 1:
            yield out(0x3F2, rng.choice([0x1C, 0x0C, 0x1D, 0x3C]))
        elif kind == 2:
            yield out(0x3F7, rng.choice([0, 0, 0, 2]))
        elif kind == 3:
            yield inp(rng.choice([0x3F1, 0x3F2, 0x3F3, 0x3F7]))
        elif kind == 4:
            yield from (out(0x3F3, rng.choice([0, 0, 4])), inp(0x3F3))
        else:
            yield from _floppy_command(rng, rng.choice([*FLOPPY_PARAMETERS, 0x08, 0x46, 0x46, 0x0F]))
    yield "read 0x1000 0x2400"


def _floppy_command(rng: random.Random, code: int) -> Lines:
    count = FLOPPY_PARAMETERS[code]
    sector = rng.choice([1, 1, 2, 5, 17, 18, 19, 255])
    place = [rng.choice([0, 0, 4, 1]), rng.choice([0, 0, 1, 2, 79, 80, 81]), rng.choice([0, 0, 1]), sector]
    parameters = [*place, 2, max(rng.choice([18, 18, sector, 9]), sector), 0x1B, 0xFF]
    if count in (5, 10, 17):
        parameters = [rng.choice([0, 1, 2, 18, 0x80, 0x40, 255]) for _ in range(count)]
        parameters[0] &= 5
    elif code == 0x03:
        parameters = [0xDF, 2]
    if count == 8:
        length = rng.choice([512, 1024, 9216]) - 1
        yield from (out(0x0A, 6), out(0x0C, 0), out(0x0B, 0x4A if code & 0x1F == 5 else 0x46), out(0x81, 0))
        yield from (out(0x04, 0), out(0x04, 0x10), out(0x05, length & 0xFF), out(0x05, length >> 8), out(0x0A, 2))
    yield out(0x3F5, code)
    yield from (out(0x3F5, value) for value in parameters[:count])
    yield inp(0x3F4)
    yield from (inp(0x3F5) for _ in range(rng.choice([7, 7, 10, 15])))
    yield inp(0x3F4)


READ_ONLY_BITS = {
    0x8000_0B40: "bit 0 of PIIX4's base says I/O, bits 5-1 and the upper half are 0; QEMU stores what is written",
    0x8000_0B64: "bit 27 is fixed; QEMU stores what is written",
}
"""Places whose reads differ after writes, and why."""


def pci(rng: random.Random) -> Lines:
    """Configuration space of every function: as it is after a reset, and what of it can be written."""
    functions = (0x00, 0x08, 0x09, 0x0B)
    for devfn in range(0x18):
        yield from (out(0xCF8, 0x8000_0000 | devfn << 8, "l"), inp(0xCFC, "l"))
    places = [0x8000_0000 | devfn << 8 | offset for devfn in functions for offset in range(0, 256, 4)]
    for place in places:
        yield from (out(0xCF8, place, "l"), inp(0xCFC, "l"))
    for place in places:
        if not 0x8000_0058 <= place <= 0x8000_0070:  # the map that the next reads go through
            if place in READ_ONLY_BITS:
                continue
            for value in (0xFFFF_FFFF, 0, 0x5A5A_5A5A):
                yield from (out(0xCF8, place, "l"), out(0xCFC, value & ~7 if place & 0xFF == 4 else value, "l"))
                yield inp(0xCFC, "l")
    yield from (inp(0xCF8, "l"), out(0xCF8, 0x55), inp(0xCF8, "l"), out(0xCF8, 0x8000_0000, "l"), inp(0xCFD))
    yield from (inp(0xCFE, "w"), inp(0xCFF), inp(0xCFD, "w"), inp(0xCF9))


def everywhere(rng: random.Random) -> Lines:
    """Every port up to 0x7FF once."""
    yield from (inp(port) for port in range(0x800) if port != 0x71)


SCRIPTS: dict[str, Callable[[random.Random], Lines]] = {
    script.__name__: script
    for script in (everywhere, pic, pit, dma, rtc, keyboard, power, hpet, fw_cfg, ide, serial, floppy, pci)
}


@dataclass(frozen=True)
class Difference:
    """The answers to lines that match `line`, `ignore`d bits apart, may differ in `script`; the reason."""

    script: str
    line: str
    ignore: int
    reason: str


ALL = (1 << 64) - 1
ACCEPTED = (
    Difference("everywhere", "inb 0x(9|d[23])", ALL, "QEMU reads the mask there; the 8237A has nothing to read"),
    Difference("everywhere", "inb 0x(f|de|df)", ALL, "PIIX3's mask register can be read; QEMU's reads 0"),
    Difference("everywhere|pit", "inb 0x61", 0x10, "the refresh toggle: QEMU's moves with each read"),
    Difference("pit", "inb 0x61", 0x20, "OUT of mode 2 is high but for a pulse (8254); QEMU's is low"),
    Difference("keyboard", "in[bwl] 0x64", 0x0C0C0C0C, "bit 3 says whether the last write was a command, bit 2 repeats"
               " the command byte's (IBM); QEMU's stay"),
    Difference("power", "inb 0xb100", 0x07, "QEMU's SMBus is busy until its status is read; ours has done it at once"),
    Difference("hpet", "readl 0xfed001[024]0", 0x4000, "FSB delivery cannot be enabled where it is not offered"),
    Difference("hpet", "readl 0xfed001[024]c", ALL, "a comparator in 32-bit mode has no upper half"),
    Difference("serial", "inb 0x3fe", 0x0F, "the modem lines that change in loopback set their delta bits (16550A)"),
)  # fmt: skip


def ignored(script: str, line: str) -> int:
    """The bits of the answer that are not compared."""
    found = 0
    for known in ACCEPTED:
        if re.fullmatch(known.script, script) and re.fullmatch(known.line, line):
            found |= known.ignore
    return found
