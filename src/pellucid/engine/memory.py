"""The memory of one VM as the engine sees it: KVM's memory slots, in native form."""

from __future__ import annotations

from collections.abc import Iterator

from pellucid.cpu.state import MAX_SLOTS, PAGE, SLOT_READONLY, PageInfo, Slot, SlotTable
from pellucid.engine.arrays import Array


class SlotMemory:
    """The slot table that native code searches. Changing it needs every vCPU outside native code, TLBs flushed."""

    def __init__(self) -> None:
        self._array = Array(SlotTable.size)
        self.address = self._array.address
        self._table = SlotTable.view(self.address)
        self._slots: dict[int, tuple[int, int, int, bool, Array]] = {}

    def set_slot(self, number: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        """Add, replace or (size 0) delete slot `number`; all values are multiples of the page size.

        Raises ValueError for what KVM_SET_USER_MEMORY_REGION would refuse: misalignment, overlap, too many.
        """
        if (gpa | size | hva) % PAGE or gpa < 0 or size < 0 or gpa + size > 1 << 52:
            raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} is not page aligned or beyond 52 bits")
        others = {n: s for n, s in self._slots.items() if n != number}
        if size:
            for n, (other, length, *_) in others.items():
                if gpa < other + length and other < gpa + size:
                    raise ValueError(f"memory slot {number}: {gpa:#x}+{size:#x} overlaps slot {n}")
            if len(others) >= MAX_SLOTS:
                raise ValueError(f"memory slot {number}: only {MAX_SLOTS} slots")
            others[number] = (gpa, size, hva, readonly, Array(size // PAGE * PageInfo.size))
        self._slots = others
        self._write()

    def _write(self) -> None:
        self._table.count = 0
        for i, (number, (gpa, size, hva, readonly, pages)) in enumerate(
                sorted(self._slots.items(), key=lambda item: -item[1][1])):
            slot = Slot.view(self.address + SlotTable.fields["slots"].offset + i * Slot.size)
            slot.gpa, slot.size, slot.hva, slot.pages = gpa, size, hva, pages.address
            slot.flags, slot.number = (SLOT_READONLY if readonly else 0), number
        self._table.count = len(self._slots)

    def translated(self, hva: int, size: int) -> Iterator[tuple[int, int]]:
        """The guest-physical ranges, each in one page, of [hva, hva+size) where translated code stands."""
        for gpa, length, base, _, pages in self._slots.values():
            first, last = max(hva, base), min(hva + size, base + length)
            while first < last:
                offset = first - base
                here = min(last - first, PAGE - offset % PAGE)
                if PageInfo.view(pages.address + offset // PAGE * PageInfo.size).code:
                    yield gpa + offset, here
                first += here

    def forget_code(self) -> None:
        """No page holds translated code any more."""
        for *_, pages in self._slots.values():
            pages.discard()

    def host_address(self, gpa: int) -> int | None:
        """The host address of a guest-physical byte, or None where no slot is."""
        for base, size, hva, _, _ in self._slots.values():
            if base <= gpa < base + size:
                return hva + gpa - base
        return None
