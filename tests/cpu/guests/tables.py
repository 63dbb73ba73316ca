"""Descriptors, gates, task-state segments and page tables, laid out as the manual draws them (SDM vol. 3, 3 to 7)."""

from __future__ import annotations

from collections.abc import Callable

P, W, U, PWT, PCD, A, D, PS, G, NX = 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x100, 1 << 63
RWU = P | W | U

# Segment types (bits 43:40), with S = 1, accessed.
DATA, DATA_RO, DATA_DOWN, CODE, CODE_XO, CONFORMING = 0x3, 0x1, 0x7, 0xB, 0x9, 0xF
# System types.
TSS16, LDT, TSS16_BUSY, CALL16, TASK_GATE, INT16, TRAP16 = 1, 2, 3, 4, 5, 6, 7
TSS, TSS_BUSY, CALL, INT, TRAP = 9, 11, 12, 14, 15


def segment(
    kind: int,
    *,
    base: int = 0,
    limit: int = 0xFFFF_FFFF,
    dpl: int = 0,
    bits: int = 32,
    present: bool = True,
    system: bool = False,
) -> int:
    """A descriptor of eight bytes. `limit` is in bytes; above 1 MiB it must end a page. `bits`: 16, 32 or 64 (L)."""
    granular = limit > 0xF_FFFF
    if granular:
        assert limit & 0xFFF == 0xFFF
        limit >>= 12
    flags = granular << 3 | (bits == 32 and not system) << 2 | (bits == 64) << 1
    access = kind | (not system) << 4 | dpl << 5 | present << 7
    return (
        limit & 0xFFFF
        | (base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (base >> 24 & 0xFF) << 56
    )


def system_segment(kind: int, base: int, limit: int, *, dpl: int = 0, present: bool = True) -> int:
    """A TSS or LDT descriptor: the low eight bytes, with the high eight of IA-32e mode above them."""
    return segment(kind, base=base, limit=limit, dpl=dpl, present=present, system=True) | (base >> 32) << 64


def gate(
    kind: int, selector: int, offset: int, *, dpl: int = 0, present: bool = True, ist: int = 0, count: int = 0
) -> int:
    """An interrupt, trap, call or task gate; the bits above 64 count in IA-32e mode only."""
    return (
        offset & 0xFFFF
        | selector << 16
        | (ist | count) << 32
        | kind << 40
        | dpl << 45
        | present << 47
        | (offset >> 16 & 0xFFFF) << 48
        | (offset >> 32) << 64
    )


class PageTables:
    """Page tables of one paging mode, built in guest memory as pages are mapped.

    `levels` is 2 (32-bit), 3 (PAE), 4 or 5. `read` and `write` access physical memory by address and size; `allocate`
    gives zeroed physical pages.
    """

    def __init__(
        self,
        levels: int,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
        allocate: Callable[[], int],
    ) -> None:
        self.levels, self._read, self._write, self._allocate = levels, read, write, allocate
        self.entry_size = 4 if levels == 2 else 8
        self.root = allocate()

    def shifts(self) -> list[int]:
        """How far each level's index is shifted, top first."""
        return [22, 12] if self.levels == 2 else [12 + 9 * n for n in reversed(range(self.levels))]

    def _index(self, linear: int, shift: int) -> int:
        bits = 10 if self.levels == 2 else 2 if self.levels == 3 and shift == 30 else 9
        return linear >> shift & (1 << bits) - 1

    def entries(self, linear: int, leaf_shift: int = 12) -> list[int]:
        """Physical addresses of the entries that translate `linear`, top first; tables come into being."""
        found, table = [], self.root
        for shift in self.shifts():
            address = table + self._index(linear, shift) * self.entry_size
            found.append(address)
            if shift == leaf_shift:
                break
            entry = self._read(address, self.entry_size)
            if not entry & P:
                entry = self._allocate() | (P if self.levels == 3 and shift == 30 else RWU)
                self._write(address, entry, self.entry_size)
            table = entry & 0xF_FFFF_FFFF_F000
        return found

    def map(self, linear: int, physical: int, flags: int = RWU, *, shift: int = 12) -> int:
        """Map one page of 1 << shift bytes; the physical address of its leaf entry."""
        leaf = self.entries(linear, shift)[-1]
        self._write(leaf, physical | flags | (PS if shift > 12 else 0), self.entry_size)
        return leaf

    def unmap(self, linear: int) -> None:
        """Make a 4 KiB page not present."""
        self._write(self.entries(linear)[-1], 0, self.entry_size)

    def identity(self, size: int, flags: int = RWU) -> None:
        """Map linear 0 to `size` onto itself by 4 KiB pages."""
        for address in range(0, size, 4096):
            self.map(address, address, flags)
