"""What a loader decides: bytes for guest memory and the boot processor's state; and what it is told about RAM.

Addresses in the first megabyte that all loaders share are here. They lie in memory that is usable by the memory map:
the kernel copies what it needs before it hands that memory out.
"""

from enum import IntEnum

from pellucid.kvm.api import Regs, Sregs
from pellucid.records import dataclass

PAGE_SIZE = 4096
MiB = 1 << 20
FOUR_GIB = 1 << 32

PVH_INFO_ADDRESS = 0x6000
BOOT_PARAMS_ADDRESS = 0x7000
GDT_ADDRESS = 0x8000
PAGE_TABLES_ADDRESS = 0x9000
SETUP_DATA_ADDRESS = 0x1_0000
COMMAND_LINE_ADDRESS = 0x2_0000
LONGEST_COMMAND_LINE = 0x1_0000
"""Bytes kept free for a command line, whatever the kernel would take."""
LOW_MEMORY_END = 0x9_FC00
"""End of usable conventional memory: 639 KiB, with the extended BIOS data area above."""


class MemoryType(IntEnum):
    """Types of the E820 map, which PVH uses too (ACPI 6.3, 15)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


@dataclass(frozen=True)
class MemoryMapEntry:
    """One range of the map that the guest is given."""

    address: int
    size: int
    type: MemoryType

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.address + self.size


@dataclass(frozen=True)
class GuestRam:
    """RAM as the board laid it out: `below_4g` bytes from 0, `above_4g` bytes from 4 GiB, and the map to tell of it."""

    below_4g: int
    above_4g: int
    memory_map: tuple[MemoryMapEntry, ...]


@dataclass(frozen=True)
class BootPlan:
    """Segments to write into guest memory, in order, and the state to start the boot processor in."""

    segments: list[tuple[int, bytes]]
    regs: Regs
    sregs: Sregs
    how: str
    """Which entry was chosen and where things lie, for people."""


def page_down(address: int) -> int:
    """The page boundary at or below `address`."""
    return address & -PAGE_SIZE


def page_up(address: int) -> int:
    """The page boundary at or above `address`."""
    return page_down(address + PAGE_SIZE - 1)


def in_units(size: int) -> str:
    """A size for an error message, in MiB rounded up where that reads well."""
    return f"{size} bytes" if size < MiB else f"{-(-size // MiB)} MiB"
