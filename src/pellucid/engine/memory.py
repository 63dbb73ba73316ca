"""The memory of one VM as the engine sees it: KVM's memory slots, in native form.

There are two address spaces, each with slots of its own: the one that processors see, and the one that a processor in
system-management mode sees. What all processors share (slots, code bits, the list of processors) is `SlotMemory`; each
has tables of its own, `ProcessorMemory`, since each has its own translations of a page. Code bits and translations
belong to a page of the host (`Backing`): slots that show the same page, in whichever address space, share them.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence

from pellucid.cpu.state import (
    ADDRESS_SPACES, MAX_PROCESSORS, MAX_SLOTS, PAGE, SLOT_READONLY, SPACE_NORMAL, SPACE_SMM, CpuState, Mailbox,
    PageInfo, Processors, Slot, SlotTable)
from pellucid.engine.arrays import Array
from pellucid.records import dataclass

SPACE_SHIFT = 16
"""A slot number's bits above this are the address space (KVM_CAP_MULTI_ADDRESS_SPACE)."""


@dataclass(frozen=True, slots=True)
class MemorySlot:
    """One memory slot."""

    gpa: int
    size: int
    hva: int
    readonly: bool


@dataclass(frozen=True, slots=True, eq=False)
class Backing:
    """Host memory that slots show, and the code bits of its pages. No two overlap."""

    hva: int
    size: int
    code: Array

    def overlaps(self, slot: MemorySlot) -> bool:
        """Whether the slot shows some of it."""
        return self.hva < slot.hva + slot.size and slot.hva < self.hva + self.size


@dataclass(frozen=True, slots=True)
class BackedSlot:
    """A slot and the memory behind it, whole."""

    slot: MemorySlot
    backing: Backing


@dataclass(frozen=True, slots=True)
class PagedRange:
    """Host memory whose pages may be out, and the address of its bytes of PAGE_*."""

    hva: int
    size: int
    table: int

    def table_of(self, slot: MemorySlot) -> int:
        """The address of the byte of the slot's first page, 0 for other memory. ValueError where it is partly this."""
        first, last = slot.hva - self.hva, slot.hva + slot.size - self.hva
        if last <= 0 or first >= self.size:
            return 0
        if first < 0 or last > self.size:
            raise ValueError(f"memory slot at {slot.gpa:#x}+{slot.size:#x} is paged in part")
        return self.table + first // PAGE


SlotMap = Mapping[int, BackedSlot]
"""The slots of one address space by number."""


class ProcessorMemory:
    """The slot tables of one processor, and what it has translated of each page."""

    def __init__(self, state: Array) -> None:
        self.state = state
        """Kept alive as long as the VM: another processor may be about to send it mail."""
        self.mail = Array(Mailbox.size)
        self._array = Array(ADDRESS_SPACES * SlotTable.size)
        self.address = self._array.address
        self._pages: dict[Backing, Array] = {}

    def table(self, space: int) -> int:
        """The address of an address space's SlotTable."""
        return self.address + space * SlotTable.size

    def write(self, spaces: Sequence[SlotMap], paged: Sequence[PagedRange]) -> None:
        """Take over the VM's slots. The processor is outside native code; its TLBs and translations go next."""
        backings = {backed.backing for slots in spaces for backed in slots.values()}
        self._pages = {backing: self._pages.get(backing) or Array(backing.size // PAGE * PageInfo.size)
                       for backing in backings}
        for space, slots in enumerate(spaces):
            self._write_table(self.table(space), slots, paged)

    def _write_table(self, at: int, slots: SlotMap, paged: Sequence[PagedRange]) -> None:
        table = SlotTable.view(at)
        table.count = 0
        for i, (number, backed) in enumerate(sorted(slots.items(), key=lambda item: -item[1].slot.size)):
            slot, backing = backed.slot, backed.backing
            native = Slot.view(at + SlotTable.fields["slots"].offset + i * Slot.size)
            native.gpa, native.size, native.hva = slot.gpa, slot.size, slot.hva
            first = (slot.hva - backing.hva) // PAGE
            native.pages = self._pages[backing].address + first * PageInfo.size
            native.code = backing.code.address + first * 8
            native.flags, native.number = (SLOT_READONLY if slot.readonly else 0), number
            native.residency = max((each.table_of(slot) for each in paged), default=0)
        table.count = len(slots)

    def forget_code(self) -> None:
        """This processor has no translations any more. The code bits stay: others may have some."""
        for pages in self._pages.values():
            pages.discard()


class SlotMemory:
    """The slots of a VM. Changing them needs every vCPU outside native code, TLBs and translations flushed."""

    def __init__(self) -> None:
        self._spaces: list[dict[int, BackedSlot]] = [{} for _ in range(ADDRESS_SPACES)]
        self._ranges: list[list[tuple[int, int, int]]] = [[] for _ in range(ADDRESS_SPACES)]
        """Of each slot, its first address, the one behind it, and what to add for the host's: looked at very often."""
        self._everyone = Array(Processors.size)
        self._processors = Processors.view(self._everyone.address)
        self.tables: list[ProcessorMemory] = []
        self._paged: list[PagedRange] = []

    def join(self, state: Array) -> ProcessorMemory:
        """A processor, whose CpuState is in `state`, becomes one of the VM's."""
        if len(self.tables) >= MAX_PROCESSORS:
            raise ValueError(f"more than {MAX_PROCESSORS} processors")
        table = ProcessorMemory(state)
        table.write(self._spaces, self._paged)
        view = CpuState.view(state.address)
        view.slot_tables, view.slot_table = table.address, table.table(SPACE_NORMAL)
        view.processors, view.mail = self._everyone.address, table.mail.address
        self.tables.append(table)
        self._processors.states[len(self.tables) - 1] = state.address
        self._processors.count = len(self.tables)
        return table

    def set_slot(self, number: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        """Add, replace or (size 0) delete slot `number`, of the address space in its bits from 16 on.

        All other values are multiples of the page size. Raises ValueError for what KVM_SET_USER_MEMORY_REGION would
        refuse: misalignment, overlap, too many, an address space that is not there.
        """
        space = number >> SPACE_SHIFT
        if not 0 <= space < ADDRESS_SPACES:
            raise ValueError(f"memory slot {number}: there is no address space {space}")
        if (gpa | size | hva) % PAGE or gpa < 0 or size < 0 or gpa + size > 1 << 52:
            raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} is not page aligned or beyond 52 bits")
        slots = [{n: backed.slot for n, backed in other.items()} for other in self._spaces]
        slots[space].pop(number, None)
        if size:
            for n, there in slots[space].items():
                if gpa < there.gpa + there.size and there.gpa < gpa + size:
                    raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} overlaps slot {n}")
            if len(slots[space]) >= MAX_SLOTS:
                raise ValueError(f"memory slot {number}: only {MAX_SLOTS} slots")
            slot = slots[space][number] = MemorySlot(gpa, size, hva, readonly)
            for paged in self._paged:
                paged.table_of(slot)
        self._back(slots)
        self._write_tables()

    def page(self, hva: int, size: int, table: int) -> None:
        """Host memory may be out by pages: `table` is the address of a byte of PAGE_* for each.

        Raises ValueError for a range that is not whole pages, overlaps another, or has a slot across its ends.
        """
        paged = PagedRange(hva, size, table)
        if (hva | size) % PAGE or size <= 0 or any(hva < o.hva + o.size and o.hva < hva + size for o in self._paged):
            raise ValueError(f"paged memory {hva:#x}+{size:#x} is not page aligned or there already")
        for slot in (backed.slot for slots in self._spaces for backed in slots.values()):
            paged.table_of(slot)
        self._paged.append(paged)
        self._write_tables()

    def _write_tables(self) -> None:
        for table in self.tables:
            table.write(self._spaces, self._paged)

    def _back(self, spaces: Sequence[Mapping[int, MemorySlot]]) -> None:
        """Take over the slots, and find or make the memory behind each; what no slot shows any more goes."""
        backings = {backed.backing for slots in self._spaces for backed in slots.values()}
        for slot in (slot for slots in spaces for slot in slots.values()):
            met = [backing for backing in backings if backing.overlaps(slot)]
            first = min([slot.hva, *(backing.hva for backing in met)])
            last = max([slot.hva + slot.size, *(backing.hva + backing.size for backing in met)])
            if len(met) != 1 or (met[0].hva, met[0].size) != (first, last - first):
                backings = backings.difference(met) | {Backing(first, last - first, Array((last - first) // PAGE * 8))}
        self._spaces = [{n: BackedSlot(slot, next(backing for backing in backings if backing.overlaps(slot)))
                         for n, slot in slots.items()} for slots in spaces]
        self._ranges = [[(slot.gpa, slot.gpa + slot.size, slot.hva - slot.gpa) for slot in slots.values()]
                        for slots in spaces]

    def _slots(self, smm: bool) -> Iterator[MemorySlot]:
        return (backed.slot for backed in self._spaces[SPACE_SMM if smm else SPACE_NORMAL].values())

    def host_address(self, gpa: int, size: int = 1, *, smm: bool = False) -> int | None:
        """The host address of guest-physical bytes; None where they are not all in one slot. `smm`: as SMM sees it."""
        for first, last, distance in self._ranges[SPACE_SMM if smm else SPACE_NORMAL]:
            if first <= gpa and gpa + size <= last:
                return gpa + distance
        return None

    def _pieces(self, gpa: int, size: int, smm: bool) -> Iterator[tuple[int, int, MemorySlot]]:
        """(offset, length, slot) of those of the bytes that are in slots."""
        for slot in self._slots(smm):
            first, last = max(gpa, slot.gpa), min(gpa + size, slot.gpa + slot.size)
            if first < last:
                yield first - gpa, last - first, slot

    def read(self, gpa: int, size: int, smm: bool = False) -> bytes:
        """Guest memory; bytes that are in no slot read as ones."""
        content = bytearray(b"\xff" * size)
        for offset, length, slot in self._pieces(gpa, size, smm):
            content[offset : offset + length] = ctypes.string_at(slot.hva + gpa + offset - slot.gpa, length)
        return bytes(content)

    def write(self, gpa: int, content: bytes, smm: bool = False) -> list[tuple[int, int]]:
        """Write guest memory; bytes that are in no slot, or in a read-only one, are lost.

        What was written, as (host address, length): code that was translated from it is for the caller to drop.
        """
        written = []
        for offset, length, slot in self._pieces(gpa, len(content), smm):
            if not slot.readonly:
                host = slot.hva + gpa + offset - slot.gpa
                ctypes.memmove(host, content[offset : offset + length], length)
                written.append((host, length))
        return written
