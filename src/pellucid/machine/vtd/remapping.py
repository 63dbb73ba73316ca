"""Interrupt remapping (chapter 5): from a message to the message that its entry of the table means.

The table is read at each interrupt, so nothing has to be invalidated.
"""

from pellucid.machine.vtd.faults import FaultError, Reason
from pellucid.machine.vtd.registers import EXTENDED_MODE
from pellucid.machine.vtd.tables import read_ram
from pellucid.memory import AddressSpace

REMAPPABLE, WITH_SUBHANDLE = 1 << 4, 1 << 3
ENTRY_SIZE = 16
PRESENT, FAULT_DISABLE = 1, 2
RESERVED = 0xFFFF_FFFF_FFF0_0000 << 64 | 0xFF00_F000
"""With bit 15, posted mode, which is not among the capabilities."""
VERIFY_SOURCE, VERIFY_BUS = 1, 2
IGNORED_FUNCTION_BITS = (0b000, 0b100, 0b110, 0b111)
"""By the entry's source qualifier."""
MSI_BASE, DATA_ASSERT = 0xFEE0_0000, 1 << 14


def entry_index(address: int, data: int) -> int:
    """The index that a remappable message means (5.1.2.2). Raises FaultError."""
    handle = address >> 5 & 0x7FFF | (address >> 2 & 1) << 15
    if not address & WITH_SUBHANDLE:
        return handle
    if data >> 16:
        raise FaultError(Reason.REQUEST_RESERVED)
    return handle + (data & 0xFFFF)


def remap(memory: AddressSpace, table: int, source: int | None, index: int) -> tuple[int, int]:
    """The message of entry `index`, as `Vm.signal_msi` takes it. Raises FaultError.

    `table` is the interrupt table's address register, latched. A `source` of None is not verified: the IOAPIC's
    messages carry no requester id on QEMU's q35, and guests' tables are made for that.
    """
    if index >> (table & 0xF) + 1:
        raise FaultError(Reason.INDEX_BEYOND)
    entry = read_ram(memory, (table & ~0xFFF) + index * ENTRY_SIZE, ENTRY_SIZE)
    if entry is None:
        raise FaultError(Reason.ENTRY_ACCESS)
    silent = bool(entry & FAULT_DISABLE)
    if not entry & PRESENT:
        raise FaultError(Reason.ENTRY_NOT_PRESENT, silent=silent)
    if entry & RESERVED or entry >> 82 & 3 == 3:
        raise FaultError(Reason.ENTRY_RESERVED, silent=silent)
    if source is not None and not _is_allowed(entry >> 64, source):
        raise FaultError(Reason.SOURCE_REFUSED, silent=silent)
    destination = entry >> 32 & 0xFFFF_FFFF
    if not table & EXTENDED_MODE:
        destination = destination >> 8 & 0xFF
    address = MSI_BASE | (destination & 0xFF) << 12 | destination >> 8 << 40
    mode, hint, trigger, delivery = entry >> 2 & 1, entry >> 3 & 1, entry >> 4 & 1, entry >> 5 & 7
    data = entry >> 16 & 0xFF | delivery << 8 | trigger << 15 | DATA_ASSERT
    return address | mode << 2 | hint << 3, data


def _is_allowed(high: int, source: int) -> bool:
    """Whether the entry's upper half lets `source` use it (9.10: SVT, SQ and SID)."""
    wanted, kind = high & 0xFFFF, high >> 18 & 3
    if kind == VERIFY_SOURCE:
        ignored = IGNORED_FUNCTION_BITS[high >> 16 & 3]
        return source & ~ignored == wanted & ~ignored
    return kind != VERIFY_BUS or wanted >> 8 <= source >> 8 <= wanted & 0xFF
