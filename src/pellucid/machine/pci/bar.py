"""Base address registers: how a guest places a function's regions (PCI 3.0, 6.2.5.1).

A BAR whose address makes no sense (zero, wrapping, past the end of its space) decodes nothing, and neither does one
whose enable bit in the command register is off. A BAR over RAM or over another BAR is no error: it loses or wins by
the priorities of the memory tree, as on the bus it would by who decodes first.
"""

from enum import Enum

from pellucid.memory import MemoryRegion
from pellucid.records import dataclass

PORT_SPACE_LAST = 0xFFFF
LAST_32_BIT = 0xFFFF_FFFF
LAST_64_BIT = 0xFFFF_FFFF_FFFF_FFFF
SMALLEST_IO, SMALLEST_MEMORY = 4, 2
"""Bytes. The specification has 16 for memory; QEMU's pvpanic-pci has 2, and drivers size what they find."""


class BarKind(Enum):
    """The low bits of the register."""

    IO = 0b0001
    MEMORY_32 = 0b0000
    MEMORY_64 = 0b0100


@dataclass
class Bar:
    """Register number `index` (6 is the expansion ROM) and the region that it places. `address` is None when unseen."""

    index: int
    region: MemoryRegion
    kind: BarKind = BarKind.MEMORY_32
    prefetchable: bool = False
    address: int | None = None

    def __post_init__(self) -> None:
        size, smallest = self.region.size, SMALLEST_IO if self.kind is BarKind.IO else SMALLEST_MEMORY
        if size < smallest or size & (size - 1):
            raise ValueError(f"BAR {self.index}: size {size:#x} must be a power of two of at least {smallest}")

    @property
    def is_io(self) -> bool:
        """In port space."""
        return self.kind is BarKind.IO

    @property
    def bytes(self) -> int:
        """Size of the register: a 64-bit BAR takes two."""
        return 8 if self.kind is BarKind.MEMORY_64 else 4

    @property
    def flags(self) -> int:
        """The read-only low bits."""
        return self.kind.value | (0b1000 if self.prefetchable else 0)

    @property
    def address_mask(self) -> int:
        """The bits that hold the address."""
        return -self.region.size & ((1 << 8 * self.bytes) - 1)

    def decode(self, register: int) -> int | None:
        """Where the register's value puts the region; None for nowhere."""
        start = register & self.address_mask
        last = start + self.region.size - 1
        limit = PORT_SPACE_LAST if self.is_io else LAST_64_BIT if self.kind is BarKind.MEMORY_64 else LAST_32_BIT
        # All ones is what sizing writes; a region that ended there could not be told from it.
        if start == 0 or last >= limit:
            return None
        return start
