"""`pci-testdev` (QEMU's docs/specs/pci-testdev): writes that a guest times, in memory and in ports.

Each BAR begins with a header: a byte that chooses one of three tests when written; width (1, 2 or 4), offset and data
of the write that the guest is to do; how often it has come; and the test's name. Bytes without meaning read 0. The
tests differ in how QEMU notices the write (at the device, by an eventfd, by one that looks at the data); here all come
to the device, and count alike.
"""

from pellucid.machine.device import Property, Region, State
from pellucid.machine.pci import Bar, BarKind, PciFunction
from pellucid.machine.properties import SIZE
from pellucid.machine.state import U32, Integer
from pellucid.memory import AccessSizes, MemoryRegion

MEMORY, PORTS = 0, 1
MEMORY_SIZE, PORT_SIZE = 0x1000, 0x100
FIRST_OFFSET = (0x800, 0x80)
SPACE_NAMES = ("mmio", "portio")
TESTS = ("no-eventfd", "wildcard-eventfd", "datamatch-eventfd")
MATCHING, ANY = 0xFA, 0xCE
WILDCARD = 1
NO_TEST = -1
NAME = 16


class PciTestdev(PciFunction):
    """`membar` bytes of a third BAR, 64-bit and prefetchable, answer 0; none for 0."""

    kind = "pci-testdev"
    vendor_id, device_id, class_code = 0x1B36, 0x0005, 0x00FF00
    regions = (
        Region("pci-testdev-mmio", MEMORY_SIZE, impl=AccessSizes(1, 1)),
        Region("pci-testdev-portio", PORT_SIZE, impl=AccessSizes(1, 1)),
    )

    membar = Property(SIZE, 0)

    test = State(Integer(NO_TEST, 5), NO_TEST, doc="0 to 2 in memory, 3 to 5 in ports")
    count = State(U32, 0)

    def __init__(self, membar: int = 0) -> None:
        super().__init__()
        self.membar = membar
        self.add_bar(Bar(0, self.regions[MEMORY].memory_region(self.ops(MEMORY))))
        self.add_bar(Bar(1, self.regions[PORTS].memory_region(self.ops(PORTS)), BarKind.IO))
        if membar:
            region = MemoryRegion.new_io("pci-testdev-membar", membar, _Zeros(), impl=AccessSizes(1, 4))
            self.add_bar(Bar(2, region, BarKind.MEMORY_64, prefetchable=True))

    def _header(self, space: int) -> bytes:
        if self.test == NO_TEST or self.test // len(TESTS) != space:
            return b""
        kind = self.test % len(TESTS)
        offset, data = FIRST_OFFSET[space] + self.test, ANY if kind == WILDCARD else MATCHING
        name = f"{SPACE_NAMES[space]}-{TESTS[kind]}".encode()
        fields = [self.test | 1 << 8, offset, data, self.count]
        return b"".join(field.to_bytes(4, "little") for field in fields) + name

    def region_read(self, region: int, offset: int, size: int) -> int:
        return int.from_bytes(self._header(region)[offset : offset + 1], "little")

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.count = 0
            self.test = value + region * len(TESTS) if value < len(TESTS) else NO_TEST
        elif self.test // len(TESTS) == region and offset == FIRST_OFFSET[region] + self.test:
            if self.test % len(TESTS) == WILDCARD or value == MATCHING:
                self.count = (self.count + 1) & 0xFFFF_FFFF


class _Zeros:
    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Dropped."""
