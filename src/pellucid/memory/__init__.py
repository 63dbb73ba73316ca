"""Memory of a machine: RAM blocks, the region tree, flat views, address spaces and those who listen to them.

A board builds trees of `MemoryRegion`s and shows each through an `AddressSpace`; devices and vCPU threads access the
address space; listeners such as `MemorySlots` keep the hypervisor in step.
"""

from pellucid.memory.access import AccessSizes, ClockRegister, Endianness, IoEventfd, IoOps, MemTxResult, Translated
from pellucid.memory.address_space import AddressSpace, DirectRange
from pellucid.memory.dispatch import UnassignedIoOps
from pellucid.memory.file_pager import LEAST_LIMIT, FilePager
from pellucid.memory.flat_view import FlatRange, FlatView, memory_access_is_direct
from pellucid.memory.listener import MemoryListener, MemoryRegionSection
from pellucid.memory.mtree import info_mtree
from pellucid.memory.ram_block import PAGE_SIZE, RamBlock, RamList, info_ramblock
from pellucid.memory.region import ADDRESS_SPACE_SIZE, MemoryRegion, RegionKind
from pellucid.memory.slots import ClockRegisters, CoalescedIo, Ioeventfds, MemorySlots
from pellucid.memory.transaction import MemoryTransaction

__all__ = [
    "ADDRESS_SPACE_SIZE",
    "LEAST_LIMIT",
    "PAGE_SIZE",
    "AccessSizes",
    "AddressSpace",
    "ClockRegister",
    "ClockRegisters",
    "CoalescedIo",
    "DirectRange",
    "Endianness",
    "FilePager",
    "FlatRange",
    "FlatView",
    "IoEventfd",
    "IoOps",
    "Ioeventfds",
    "MemTxResult",
    "MemoryListener",
    "MemoryRegion",
    "MemoryRegionSection",
    "MemorySlots",
    "MemoryTransaction",
    "RamBlock",
    "RamList",
    "RegionKind",
    "Translated",
    "UnassignedIoOps",
    "info_mtree",
    "info_ramblock",
    "memory_access_is_direct",
]
