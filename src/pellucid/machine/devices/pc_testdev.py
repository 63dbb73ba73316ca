"""`pc-testdev`: what kvm-unit-tests' guests use to try out port and memory accesses and interrupt lines.

0xE0 holds four bytes, taken and given in any width; 0xE8 the same, in byte accesses only. A write to 0xE4 names a page
that QEMU unmaps and maps again for KVM's sake: nothing that a guest could see. 0x2000 to 0x2017 drive the interrupt
lines 0 to 23. 64 KiB of memory at 0xFF000000 are answered by the device.
"""

from collections.abc import Sequence

from pellucid.machine.device import Device, Region, State
from pellucid.machine.irq import IrqLine
from pellucid.machine.state import Memory
from pellucid.memory import AccessSizes

IOPORT, FLUSH_PAGE, IOPORT_BYTE, IRQ_LINE, IOMEM = range(5)
PORTS = (0xE0, 0xE4, 0xE8, 0x2000)
IOMEM_BASE, IOMEM_SIZE = 0xFF00_0000, 0x1_0000
LINES = 24


class PcTestdev(Device):
    """`lines` are the interrupt inputs that the guest can drive."""

    kind = "pc-testdev"
    regions = (
        Region("pc-testdev-ioport", 4, valid=AccessSizes(1, 4, unaligned=True), impl=AccessSizes(1, 4, unaligned=True)),
        Region("pc-testdev-flush-page", 4, valid=AccessSizes(4, 4), impl=AccessSizes(4, 4)),
        Region("pc-testdev-ioport-byte", 4, impl=AccessSizes(1, 1)),
        Region("pc-testdev-irq-line", LINES, valid=AccessSizes(1, 1), impl=AccessSizes(1, 1)),
        Region("pc-testdev-iomem", IOMEM_SIZE, impl=AccessSizes(1, 4)),
    )

    port = State(Memory(4), bytes(4))
    iomem = State(Memory(IOMEM_SIZE), bytes(IOMEM_SIZE))

    def __init__(self, lines: Sequence[IrqLine]) -> None:
        super().__init__()
        self._lines = lines

    def _bytes(self, region: int) -> bytearray | None:
        return {IOPORT: self.port, IOPORT_BYTE: self.port, IOMEM: self.iomem}.get(region)

    def region_read(self, region: int, offset: int, size: int) -> int:
        content = self._bytes(region)
        return 0 if content is None else int.from_bytes(content[offset : offset + size], "little")

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        content = self._bytes(region)
        if content is not None:
            end = min(offset + size, len(content))
            content[offset:end] = (value & (1 << 8 * size) - 1).to_bytes(size, "little")[: end - offset]
        elif region == IRQ_LINE:
            self._lines[offset].set(bool(value & 1))
