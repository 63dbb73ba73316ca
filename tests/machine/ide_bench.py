"""Controllers with drives and RAM but no board: what the tests of IDE and AHCI poke at."""

import struct
from collections.abc import Sequence
from pathlib import Path

from pellucid.block import DriveOptions, Policy, open_image
from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.devices.piix3_ide import Piix3Ide
from pellucid.machine.ide.atapi import IdeCd
from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.pci import PciBus, PciSpaces
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock, UnassignedIoOps
from tests.block.helpers import Pool, backend
from tests.machine.helpers import Wire

BUS_MASTER, AHCI_BASE, INDEX_DATA = 0xC000, 0xC000_0000, 0xC040
END = 0x8000_0000
RAM_SIZE = 1 << 20


class Spaces:
    """RAM at 0, a bus above it, port space, and the interrupts that came."""

    def __init__(self) -> None:
        self.pool = Pool()
        self.block = RamBlock("ram", RAM_SIZE)
        system = MemoryRegion.new_container("system")
        system.add_subregion(0, MemoryRegion.new_ram("ram", self.block))
        pci, io = MemoryRegion.new_container("pci"), MemoryRegion.new_io("io", 1 << 16, UnassignedIoOps())
        system.add_subregion_overlap(0, pci, -1)
        self.memory, self.ports, self.io = AddressSpace("memory", system), AddressSpace("I/O", io), io
        self.messages: list[tuple[int, int]] = []
        self.intx = False
        spaces = PciSpaces(pci, io, system, lambda address, data: self.messages.append((address, data)))
        self.bus = PciBus("pci.0", spaces, self._route)

    def _route(self, slot: int, pin: int, level: bool) -> None:
        self.intx = level

    def drive(self, path: Path | None, number: int, *, cdrom: bool = False, policy: Policy | None = None) -> AtaDrive:
        """A drive with that image."""
        options = DriveOptions("-drive", file=str(path), media="cdrom" if cdrom else "disk", format="raw")
        node = None if path is None else open_image(options)
        made = backend(self.pool, node, policy, removable=cdrom)
        return IdeCd(made, number) if cdrom else IdeHd(made, number)

    def close(self) -> None:
        """Give threads and memory back."""
        self.pool.close()
        self.memory.close()
        self.ports.close()
        self.block.close()


class Ide(Spaces):
    """PIIX3 IDE: a disk as master of the first channel, a CD drive as master of the second."""

    def __init__(self, disk: Path, cd: Path | None = None) -> None:
        super().__init__()
        self.wires = [Wire(), Wire()]
        self.function = Piix3Ide(self.io, self.wires)
        self.hd, self.cd = self.drive(disk, 1), self.drive(cd, 3, cdrom=True)
        self.function.buses[0].attach(0, self.hd)
        self.function.buses[1].attach(0, self.cd)
        self.bus.add(1, 1, self.function)
        self.function.config_write(0x20, 4, BUS_MASTER)
        self.function.config_write(4, 2, 5)

    def inb(self, port: int, size: int = 1) -> int:
        self.pool.drain()
        return self.ports.read(port, size)

    def outb(self, port: int, value: int, size: int = 1) -> None:
        self.ports.write(port, size, value)

    def registers(self, base: int) -> list[int]:
        """Error to status."""
        return [self.inb(base + offset) for offset in range(1, 8)]

    def command(self, command: int, lba: int = 0, count: int = 1, features: int = 0, *, base: int = 0x1F0,
                unit: int = 0) -> int:  # fmt: skip
        """Write a 28-bit command; the status when it waits for something."""
        for offset, value in enumerate((features, count & 0xFF, lba & 0xFF, lba >> 8 & 0xFF, lba >> 16 & 0xFF), 1):
            self.outb(base + offset, value)
        self.outb(base + 6, 0xE0 | unit << 4 | lba >> 24 & 0x0F)
        self.outb(base + 7, command)
        return self.inb(base + 7)

    def data_in(self, base: int = 0x1F0, words: int = 256) -> bytes:
        return b"".join(self.inb(base, 2).to_bytes(2, "little") for _ in range(words))

    def data_out(self, content: bytes, base: int = 0x1F0) -> None:
        for at in range(0, len(content), 2):
            self.outb(base, int.from_bytes(content[at : at + 2], "little"), 2)
        self.pool.drain()

    def packet(self, packet: Sequence[int], limit: int = 0xFFFE) -> bytes:
        """Send a packet by PIO; what it answers."""
        self.outb(0x176, 0xA0)
        for offset, value in ((1, 0), (4, limit & 0xFF), (5, limit >> 8), (7, 0xA0)):
            self.outb(0x170 + offset, value)
        assert self.inb(0x177) == 0x58 and self.inb(0x172) & 3 == 1
        self.data_out(bytes(packet).ljust(12, b"\0"), 0x170)
        answer = b""
        while self.inb(0x177) & 0x08:
            size = self.inb(0x174) | self.inb(0x175) << 8
            answer += self.data_in(0x170, (size + 1) // 2)[:size]
        return answer

    def start_dma(self, entries: Sequence[tuple[int, int]], *, into_memory: bool, channel: int = 0) -> None:
        """Set the descriptor table at 0x1000 and start the bus master."""
        base = BUS_MASTER + 8 * channel
        self.memory.write_bytes(0x1000, b"".join(struct.pack("<II", *entry) for entry in entries))
        self.outb(base + 4, 0x1000, 4)
        self.outb(base + 2, 0x06)
        self.outb(base, 0x08 if into_memory else 0)
        self.outb(base, 0x09 if into_memory else 1)
        self.pool.drain()


class Ahci(Spaces):
    """ICH9 AHCI: a disk on port 0, a CD drive on port 2; command lists at 0x400 and 0x800, FISes behind them."""

    def __init__(self, disk: Path, cd: Path | None = None) -> None:
        super().__init__()
        self.function = Ich9Ahci()
        self.hd, self.cd = self.drive(disk, 1), self.drive(cd, 5, cdrom=True)
        self.function.ports[0].attach(0, self.hd)
        self.function.ports[2].attach(0, self.cd)
        self.bus.add(0x1F, 2, self.function)
        self.function.config_write(0x24, 4, AHCI_BASE)
        self.function.config_write(0x20, 4, INDEX_DATA)
        self.function.config_write(4, 2, 7)

    def read(self, offset: int, port: int | None = None) -> int:
        self.pool.drain()
        return self.memory.read(AHCI_BASE + offset + (0 if port is None else 0x100 + 0x80 * port), 4)

    def write(self, offset: int, value: int, port: int | None = None) -> None:
        self.memory.write(AHCI_BASE + offset + (0 if port is None else 0x100 + 0x80 * port), 4, value)

    def start(self, port: int) -> None:
        """Make a port ready for commands, with all its interrupts on."""
        self.write(4, 0x8000_0002)
        self.write(0x00, 0x400 * (1 + port), port)
        self.write(0x08, 0x2000 + 0x100 * port, port)
        self.write(0x14, 0xFFFF_FFFF, port)
        self.write(0x18, 0x17, port)

    def fill(self, port: int, slot: int, fis: bytes, entries: Sequence[tuple[int, int]], *, packet: bytes = b"",
             is_write: bool = False) -> None:  # fmt: skip
        """Write a command into a slot of the list."""
        table = 0x4000 + 0x400 * slot
        flags = 5 | (0x20 if packet else 0) | (0x40 if is_write else 0)
        header = struct.pack("<IIII", flags | len(entries) << 16, 0, table, 0)
        self.memory.write_bytes(0x400 * (1 + port) + 32 * slot, header)
        self.memory.write_bytes(table, fis.ljust(0x40, b"\0") + packet.ljust(0x40, b"\0"))
        descriptors = b"".join(struct.pack("<QII", address, 0, size - 1) for address, size in entries)
        self.memory.write_bytes(table + 0x80, descriptors)

    def run(self, port: int, fis: bytes, entries: Sequence[tuple[int, int]] = (), **options: object) -> int:
        """One command in slot 0, to its end: PxTFD."""
        self.fill(port, 0, fis, entries, **options)  # type: ignore[arg-type]
        self.write(0x38, 1, port)
        return self.read(0x20, port)


def command_fis(command: int, lba: int = 0, count: int = 0, features: int = 0, device: int = 0x40) -> bytes:
    """A host-to-device register FIS."""
    low, high = lba.to_bytes(6, "little")[:3], lba.to_bytes(6, "little")[3:]
    tail = bytes((features >> 8, count & 0xFF, count >> 8, 0, 0))
    return bytes((0x27, 0x80, command, features & 0xFF)) + low + bytes((device,)) + high + tail


def queued_fis(is_write: bool, tag: int, lba: int, sectors: int, *, fua: bool = False) -> bytes:
    """READ or WRITE FPDMA QUEUED."""
    return command_fis(0x61 if is_write else 0x60, lba, tag << 3, sectors & 0xFFFF, 0xC0 if fua else 0x40)
