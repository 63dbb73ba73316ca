"""PIIX3 IDE (Intel 82371SB data sheet, 290550, 2.3 and 3.3): two channels at the AT's ports, and a bus master for them.

The bus master (SFF-8038i) follows a table of physical region descriptors in memory: address, byte count, and an end
mark. The table lies within 64 KiB and so has at most 8,192 entries, which bounds what one start can cost.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from pellucid.machine.device import Device, Region, RegionOps, Register
from pellucid.machine.dma import ScatterList
from pellucid.machine.ide.bus import COMMAND_BLOCK, CONTROL_BLOCK, IdeBus
from pellucid.machine.ide.drive import NO_TRANSFER
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import Bar, BarKind, PciFunction
from pellucid.machine.pci import config as cfg
from pellucid.memory import AccessSizes, AddressSpace, MemoryRegion, MemTxResult

PORTS = ((0x1F0, 0x3F6), (0x170, 0x376))
IRQS = (14, 15)
START, INTO_MEMORY = 0x01, 0x08
ACTIVE, ERROR, INTERRUPT, CAPABLE = 0x01, 0x02, 0x04, 0x60
TABLE_SIZE, ENTRY_SIZE, MOST_BYTES = 0x1_0000, 8, 0x1_0000
END_OF_TABLE = 0x8000_0000
BAR_SIZE = 16


class BusMasterIde(Device):
    """The bus master of one channel: the registers of half of BAR 4."""

    kind = "bmdma"
    regions: ClassVar[tuple[Region, ...]] = (
        Region("piix-bmdma", 4),
        Region("bmdma", 4, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),
    )

    command = Register(0, doc="bit 0 start, bit 3 into memory")
    status = Register(2, doc="bit 0 active, bit 1 error, bit 2 interrupt, bits 5-6 drives can do DMA")
    table = Register(0, size=4, region=1, stored=True, writable=0xFFFF_FFFC, doc="address of the descriptor table")

    def __init__(self, bus: IdeBus, dma: AddressSpace) -> None:
        self._bus, self._dma = bus, dma
        self._unused = 0
        bus.master = self
        super().__init__()

    def region_read(self, region: int, offset: int, size: int) -> int:
        if region == 1:
            return self.table >> 8 * offset & ((1 << 8 * size) - 1)
        return super().region_read(region, offset, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == 1:
            mask = ((1 << 8 * size) - 1) << 8 * offset
            self.table = (self.table & ~mask | value << 8 * offset & mask) & 0xFFFF_FFFC
        else:
            super().region_write(region, offset, size, value)

    @command.on_write
    def _write_command(self, value: int) -> None:
        before, self.command = self.command, value & (START | INTO_MEMORY)
        if not (before ^ value) & START:
            return
        if value & START:
            self.status |= ACTIVE
            self.transfer_ready()
        else:
            drive = self._bus.selected
            if self.status & ACTIVE and drive is not None:
                # What the drive has begun is finished first: the guest may use the memory for something else now.
                drive.backend.drain()
            self.status &= ~ACTIVE

    @status.on_write
    def _write_status(self, value: int) -> None:
        self.status = value & CAPABLE | self.status & ACTIVE | self.status & ~value & (ERROR | INTERRUPT)

    # What the channel tells.

    def interrupt_raised(self) -> None:
        self.status |= INTERRUPT

    def transfer_ready(self) -> None:
        drive = self._bus.selected
        if drive is None or drive.transfer_kind == NO_TRANSFER or not self.command & START or not self.status & ACTIVE:
            return
        length = drive.transfer_length
        self._unused = -length
        scatter = ScatterList(self._dma, self._descriptors(), length, to_memory=drive.transfer_in)
        drive.run_transfer(scatter)

    def transfer_done(self) -> None:
        # A table that is longer than the transfer leaves the bus master active, until the guest stops it.
        if self._unused <= 0:
            self.status &= ~ACTIVE
        self._unused = 0

    def _descriptors(self) -> Iterator[tuple[int, int]]:
        """(address, bytes) of each entry, to the end mark or the end of the table's 64 KiB."""
        base = self.table
        room = TABLE_SIZE - base % TABLE_SIZE
        for at in range(0, room - ENTRY_SIZE + 1, ENTRY_SIZE):
            entry, result = self._dma.try_read_bytes(base + at, ENTRY_SIZE)
            if result is not MemTxResult.OK:
                self.status |= ERROR
                return
            address, count = int.from_bytes(entry[:4], "little"), int.from_bytes(entry[4:], "little")
            length = count & 0xFFFE or MOST_BYTES
            self._unused += length
            yield address, length
            if count & END_OF_TABLE:
                return


class Piix3Ide(PciFunction):
    """The function at 01.1. `lines` are the interrupts 14 and 15; the ports of `buses` and `io` are the board's."""

    kind = "piix3-ide"
    vendor_id, device_id, class_code = 0x8086, 0x7010, 0x010180
    status_reset = cfg.STATUS_FAST_BACK | cfg.STATUS_DEVSEL_MEDIUM

    def __init__(self, io: MemoryRegion, lines: Sequence[IrqLine]) -> None:
        super().__init__()
        self.buses = [IdeBus(f"ide.{index}", line.set) for index, line in enumerate(lines)]
        self.masters = [BusMasterIde(bus, self.dma) for bus in self.buses]
        container = MemoryRegion.new_container("piix-bmdma-container", BAR_SIZE)
        for index, master in enumerate(self.masters):
            for region, offset in ((0, 0), (1, 4)):
                container.add_subregion(8 * index + offset, _io(master, region))
        self.add_bar(Bar(4, container, BarKind.IO))
        for bus, (command, control) in zip(self.buses, PORTS):
            io.add_subregion(command, _io(bus, COMMAND_BLOCK))
            io.add_subregion(control, _io(bus, CONTROL_BLOCK))

    @property
    def places(self) -> list[IdeBus]:
        """Where drives can be."""
        return self.buses

    @property
    def parts(self) -> Iterator[Device]:
        """The devices inside, which the board resets and saves with the rest."""
        yield from self.buses
        yield from self.masters
        for bus in self.buses:
            yield from filter(None, bus.drives)


def _io(device: Device, region: int) -> MemoryRegion:
    return device.regions[region].memory_region(RegionOps(device, region))
