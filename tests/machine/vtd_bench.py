"""A remapping unit with RAM, two functions, and a guest's hands: tables written, registers poked, messages heard."""

from pellucid.machine.devices.edu import Edu
from pellucid.machine.devices.intel_iommu import IntelIommu
from pellucid.machine.pci import PciBus, PciSpaces, StandardPciBridge
from pellucid.machine.vtd import registers as reg
from pellucid.machine.vtd.registers import Features
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from tests.machine.helpers import HandClock

RAM_SIZE = 1 << 20
ROOT, CONTEXTS, TABLES, QUEUE, INTERRUPTS, STATUS = 0x1_0000, 0x1_1000, 0x1_2000, 0x2_0000, 0x3_0000, 0x4_0000
SOURCE = 0x08
DOMAIN = 7
READ, WRITE = 1, 2


class Bench:
    """`edu` at 00:01.0 behind the unit; `card` behind a conventional bridge at 00:02.0, on bus 5 once numbered."""

    def __init__(self, features: Features | None = None) -> None:
        self.ram = RamBlock("vtd-test", RAM_SIZE)
        system = MemoryRegion.new_container("system")
        system.add_subregion(0, MemoryRegion.new_ram("ram", self.ram))
        self.memory = AddressSpace("memory", system)
        self.messages: list[tuple[int, int]] = []
        spaces = PciSpaces(
            MemoryRegion.new_container("pci"), MemoryRegion.new_container("io", 0x1_0000), system, self.heard
        )
        self.bus = PciBus("pcie.0", spaces, lambda slot, pin, level: None, express=True)
        self.edu, self.card, bridge = Edu(HandClock()), Edu(HandClock()), StandardPciBridge()
        self.bus.add(1, 0, self.edu)
        self.bus.add(2, 0, bridge)
        behind = bridge.secondary()
        assert behind is not None
        behind.add(3, 0, self.card)
        bridge.config_write(0x18, 4, 0x00_05_05_00)
        for function in (self.edu, self.card, bridge):
            function.config_write(4, 2, 4)
        self.unit = IntelIommu(features or Features(), self.memory, system, self.heard)
        # As a board does: the unit comes when functions are there already, and its registers lie in memory.
        system.add_subregion(0xFED9_0000, self.unit.regions[0].memory_region(self.unit.ops()))
        self.bus.set_iommu(self.unit)
        self.tables = TABLES + 0x1000
        self.tail = 0

    def heard(self, address: int, data: int) -> int:
        self.messages.append((address, data))
        return 1

    def poke(self, address: int, *values: int, size: int = 8) -> None:
        for index, value in enumerate(values):
            at = address + index * size
            self.ram.view[at : at + size] = value.to_bytes(size, "little")

    def peek(self, address: int, size: int = 8) -> int:
        return int.from_bytes(self.ram.view[address : address + size], "little")

    def write(self, offset: int, value: int, size: int = 4) -> None:
        self.memory.write(0xFED9_0000 + offset, size, value)

    def read(self, offset: int, size: int = 4) -> int:
        return self.memory.read(0xFED9_0000 + offset, size)

    def command(self, bits: int) -> None:
        self.write(reg.GLOBAL_COMMAND, self.read(reg.GLOBAL_STATUS) & 0x96FF_FFFF | bits)

    def context(self, low: int, high: int, source: int = SOURCE) -> None:
        self.poke(ROOT + (source >> 8) * 16, CONTEXTS | 1, 0)
        self.poke(CONTEXTS + (source & 0xFF) * 16, low, high)

    def translate(self, low: int = TABLES | 1, width: int = 1) -> None:
        """Translation on, with one context."""
        self.context(low, DOMAIN << 8 | width)
        self.write(reg.ROOT_TABLE, ROOT, 8)
        self.command(reg.SET_ROOT_TABLE)
        self.command(reg.ENABLE_TRANSLATION)

    def map(self, address: int, target: int, rights: int = READ | WRITE, level: int = 1, levels: int = 3) -> int:
        """Write the entry for `address`, at `level`, and those above; where it is."""
        table = TABLES
        for at in range(levels, level, -1):
            slot = table + (address >> 3 + 9 * at & 0x1FF) * 8
            if not self.peek(slot) & 3:
                self.poke(slot, self.tables | 3)
                self.tables += 0x1000
            table = self.peek(slot) & ~0xFFF
        slot = table + (address >> 3 + 9 * level & 0x1FF) * 8
        self.poke(slot, target | rights | (0x80 if level > 1 else 0))
        return slot

    def queue(self) -> None:
        """Queued invalidation on, a page of ring."""
        self.write(reg.QUEUE_ADDRESS, QUEUE, 8)
        self.command(reg.ENABLE_QUEUE)

    def descriptor(self, low: int, high: int = 0) -> None:
        self.poke(QUEUE + self.tail, low, high)
        self.tail = (self.tail + 16) % 0x1000
        self.write(reg.QUEUE_TAIL, self.tail, 8)

    def remap(self, size: int = 3, mode: int = 0) -> None:
        """Interrupt remapping on, with 2**(size + 1) entries."""
        self.write(reg.INTERRUPT_TABLE, INTERRUPTS | mode | size, 8)
        self.command(reg.SET_INTERRUPT_TABLE)
        self.command(reg.ENABLE_REMAPPING)

    def entry(self, index: int, low: int, high: int = 0) -> None:
        self.poke(INTERRUPTS + index * 16, low, high)

    def fault(self) -> tuple[int, int, int, bool] | None:
        """(reason, source, information, read), taken; None when there is none."""
        high = self.read(reg.FAULT_RECORD + 8, 8)
        if not high & reg.RECORD_FAULT:
            return None
        information = self.read(reg.FAULT_RECORD, 8)
        self.write(reg.FAULT_RECORD + 8, reg.RECORD_FAULT, 8)
        return high >> 32 & 0xFF, high & 0xFFFF, information, bool(high & reg.RECORD_IS_READ)
