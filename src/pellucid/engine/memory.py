"""The memory of one VM as the engine sees it: KVM's memory slots, in native form.

What all processors share (slots, code bits, the list of processors) is `SlotMemory`; each has a table of its own,
`ProcessorMemory`, since each has its own translations of a page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pellucid.cpu.state import (
    MAX_PROCESSORS, MAX_SLOTS, PAGE, SLOT_READONLY, CpuState, Mailbox, PageInfo, Processors, Slot, SlotTable)
from pellucid.engine.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class MemorySlot:
    """One memory slot; `code` holds the code bits of its pages."""

    gpa: int
    size: int
    hva: int
    readonly: bool
    code: Array


class ProcessorMemory:
    """The slot table of one processor, and what it has translated of each page."""

    def __init__(self, state: Array) -> None:
        self.state = state
        """Kept alive as long as the VM: another processor may be about to send it mail."""
        self.mail = Array(Mailbox.size)
        self._array = Array(SlotTable.size)
        self.address = self._array.address
        self._table = SlotTable.view(self.address)
        self._pages: dict[MemorySlot, Array] = {}

    def write(self, slots: Mapping[int, MemorySlot]) -> None:
        """Take over the VM's slots. The processor is outside native code; its TLBs and translations go next."""
        self._pages = {slot: self._pages.get(slot) or Array(slot.size // PAGE * PageInfo.size)
                       for slot in slots.values()}
        self._table.count = 0
        for i, (number, slot) in enumerate(sorted(slots.items(), key=lambda item: -item[1].size)):
            native = Slot.view(self.address + SlotTable.fields["slots"].offset + i * Slot.size)
            native.gpa, native.size, native.hva = slot.gpa, slot.size, slot.hva
            native.pages, native.code = self._pages[slot].address, slot.code.address
            native.flags, native.number = (SLOT_READONLY if slot.readonly else 0), number
        self._table.count = len(slots)

    def forget_code(self) -> None:
        """This processor has no translations any more. The code bits stay: others may have some."""
        for pages in self._pages.values():
            pages.discard()


class SlotMemory:
    """The slots of a VM. Changing them needs every vCPU outside native code, TLBs and translations flushed."""

    def __init__(self) -> None:
        self._slots: dict[int, MemorySlot] = {}
        self._everyone = Array(Processors.size)
        self._processors = Processors.view(self._everyone.address)
        self.tables: list[ProcessorMemory] = []

    def join(self, state: Array) -> ProcessorMemory:
        """A processor, whose CpuState is in `state`, becomes one of the VM's."""
        if len(self.tables) >= MAX_PROCESSORS:
            raise ValueError(f"more than {MAX_PROCESSORS} processors")
        table = ProcessorMemory(state)
        table.write(self._slots)
        view = CpuState.view(state.address)
        view.slot_table, view.processors, view.mail = table.address, self._everyone.address, table.mail.address
        self.tables.append(table)
        self._processors.states[len(self.tables) - 1] = state.address
        self._processors.count = len(self.tables)
        return table

    def set_slot(self, number: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        """Add, replace or (size 0) delete slot `number`; all values are multiples of the page size.

        Raises ValueError for what KVM_SET_USER_MEMORY_REGION would refuse: misalignment, overlap, too many.
        """
        if (gpa | size | hva) % PAGE or gpa < 0 or size < 0 or gpa + size > 1 << 52:
            raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} is not page aligned or beyond 52 bits")
        others = {n: s for n, s in self._slots.items() if n != number}
        if size:
            for n, other in others.items():
                if gpa < other.gpa + other.size and other.gpa < gpa + size:
                    raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} overlaps slot {n}")
            if len(others) >= MAX_SLOTS:
                raise ValueError(f"memory slot {number}: only {MAX_SLOTS} slots")
            others[number] = MemorySlot(gpa, size, hva, readonly, Array(size // PAGE * 8))
        self._slots = others
        for table in self.tables:
            table.write(others)

    def ranges(self, hva: int, size: int) -> list[tuple[int, int]]:
        """The guest-physical ranges (address, length) behind the host range [hva, hva+size)."""
        found = []
        for slot in self._slots.values():
            first, last = max(hva, slot.hva), min(hva + size, slot.hva + slot.size)
            if first < last:
                found.append((slot.gpa + first - slot.hva, last - first))
        return found

    def host_address(self, gpa: int) -> int | None:
        """The host address of a guest-physical byte, or None where no slot is."""
        for slot in self._slots.values():
            if slot.gpa <= gpa < slot.gpa + slot.size:
                return slot.hva + gpa - slot.gpa
        return None
