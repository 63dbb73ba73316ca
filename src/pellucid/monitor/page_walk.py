"""The walk of one linear address through the page tables, entry by entry, as they stand (SDM vol. 3, chapter 5)."""

from collections.abc import Iterator

from pellucid.monitor.page_tables import ADDRESS_MASK, LARGE, PRESENT, Layout, ReadTable
from pellucid.records import dataclass

LEVELS = {12: "PTE", 21: "PDE", 22: "PDE", 30: "PDPTE", 39: "PML4E", 48: "PML5E"}


@dataclass(frozen=True)
class Step:
    """An entry at guest-physical `address`; `value` is None where there is no RAM.

    shift: log2 of what an entry of this level covers. leaf: it maps a page. root: the first one.
    """

    address: int
    value: int | None
    shift: int
    leaf: bool
    root: bool

    @property
    def name(self) -> str:
        """PTE and so on."""
        return LEVELS[self.shift]

    @property
    def present(self) -> bool:
        """The walk goes on, or ends in a page."""
        return bool((self.value or 0) & PRESENT)

    def physical(self, linear: int) -> int:
        """Where `linear` lies in the page of a leaf; a 4 MiB one has address bits 39:32 in 20:13 (table 5-4)."""
        offset, entry = linear & (1 << self.shift) - 1, self.value or 0
        if self.shift == 22:
            return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32 | offset
        return entry & ADDRESS_MASK & -(1 << self.shift) | offset


def translate(layout: Layout | None, read: ReadTable, linear: int) -> int | None:
    """The guest-physical address of `linear`, None where it is not mapped; without paging the address itself."""
    if layout is None:
        return linear
    *_, last = walk(layout, read, linear)
    return last.physical(linear) if last.present else None


def walk(layout: Layout, read: ReadTable, linear: int, a20_mask: int = (1 << 64) - 1) -> Iterator[Step]:
    """The entries from the root down to a leaf, or to one that is not present."""
    table = layout.root
    for level, shift in enumerate(layout.shifts):
        index = linear >> shift & (1 << layout.index_bits[level]) - 1
        at = (table + index * layout.entry_size) & a20_mask
        content = read(at, layout.entry_size)
        value = None if content is None else int.from_bytes(content, "little")
        large = shift in layout.large_shifts and bool((value or 0) & LARGE)
        step = Step(at, value, shift, shift == 12 or large, level == 0)
        yield step
        if step.leaf or not step.present:
            return
        table = (value or 0) & ADDRESS_MASK
