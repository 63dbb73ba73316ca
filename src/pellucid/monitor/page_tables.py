"""Page tables in words: `info tlb` entry by entry, `info mem` as ranges with equal rights. SDM vol. 3, chapter 4.

The tables are read from RAM as they stand; nothing is cached, and no accessed bit is set.
"""

import struct
from collections.abc import Callable, Iterator

from pellucid.kvm.regs import Sregs
from pellucid.records import dataclass

PRESENT, WRITABLE, USER, WRITE_THROUGH, NO_CACHE, ACCESSED, DIRTY, LARGE, GLOBAL = (1 << bit for bit in range(9))
NO_EXECUTE = 1 << 63
CR0_PG, CR4_PSE, CR4_PAE, CR4_LA57, EFER_LMA = 1 << 31, 1 << 4, 1 << 5, 1 << 12, 1 << 10
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
MOST_TABLES = 1 << 14
MOST_PAGES = 1 << 20
MOST_LINES = 1 << 17
"""A guest can make tables of which each is in all the others: no walk is longer than this, and no answer."""
LEFT_OUT = "(there is more: the rest is left out)\n"

ReadTable = Callable[[int, int], bytes | None]


@dataclass(frozen=True)
class Mapping:
    """One page: its linear address and size, its entry, and the rights of all levels together."""

    address: int
    size: int
    entry: int
    rights: int

    @property
    def frame(self) -> int:
        """The guest-physical address."""
        return self.entry & ADDRESS_MASK & -self.size


@dataclass(frozen=True)
class Layout:
    """A paging mode: bits of the linear address that each level's index takes, bytes of an entry, leaf sizes."""

    shifts: tuple[int, ...]
    index_bits: tuple[int, ...]
    entry_size: int
    root: int
    large_shifts: tuple[int, ...]
    canonical_bits: int


def layout_of(sregs: Sregs) -> Layout | None:
    """The mode that the registers select; None with paging off."""
    if not sregs.cr0 & CR0_PG:
        return None
    if not sregs.cr4 & CR4_PAE:
        large = (22,) if sregs.cr4 & CR4_PSE else ()
        return Layout((22, 12), (10, 10), 4, sregs.cr3 & 0xFFFFF000, large, 0)
    if not sregs.efer & EFER_LMA:
        return Layout((30, 21, 12), (2, 9, 9), 8, sregs.cr3 & 0xFFFFFFE0, (21,), 0)
    root = sregs.cr3 & ADDRESS_MASK
    if sregs.cr4 & CR4_LA57:
        return Layout((48, 39, 30, 21, 12), (9,) * 5, 8, root, (30, 21), 57)
    return Layout((39, 30, 21, 12), (9,) * 4, 8, root, (30, 21), 48)


class TooMuch(Exception):
    """The tables go on beyond the bounds."""


def mappings(layout: Layout, read: ReadTable) -> Iterator[Mapping]:
    """Every page that is mapped, by linear address. Raises TooMuch at the bounds."""
    tables = 0

    def counted(address: int, size: int) -> bytes | None:
        nonlocal tables
        tables += 1
        if tables > MOST_TABLES:
            raise TooMuch
        return read(address, size)

    for number, page in enumerate(_walk(layout, counted, 0, layout.root, 0, USER | WRITABLE)):
        if number >= MOST_PAGES:
            raise TooMuch
        yield page


def _walk(layout: Layout, read: ReadTable, level: int, table: int, base: int, rights: int) -> Iterator[Mapping]:
    count = 1 << layout.index_bits[level]
    content = read(table, count * layout.entry_size)
    if content is None:
        return
    shift = layout.shifts[level]
    pae_root = layout.entry_size == 8 and count == 4
    for index, entry in enumerate(struct.unpack(f"<{count}{'Q' if layout.entry_size == 8 else 'I'}", content)):
        if not entry & PRESENT:
            continue
        address = base | index << shift
        # Directory pointers of 32-bit PAE have no rights of their own (SDM vol. 3, table 4-8).
        allowed = rights if pae_root else rights & entry
        if shift == 12 or (shift in layout.large_shifts and entry & LARGE):
            yield Mapping(_canonical(layout, address), 1 << shift, entry, allowed)
        else:
            yield from _walk(layout, read, level + 1, entry & ADDRESS_MASK, address, allowed)


def _canonical(layout: Layout, address: int) -> int:
    if layout.canonical_bits and address >> (layout.canonical_bits - 1) & 1:
        return address | (1 << 64) - (1 << layout.canonical_bits)
    return address


FLAGS = (
    ("X", NO_EXECUTE), ("G", GLOBAL), ("P", LARGE), ("D", DIRTY), ("A", ACCESSED), ("C", NO_CACHE),
    ("T", WRITE_THROUGH), ("U", USER), ("W", WRITABLE),
)  # fmt: skip


def tlb_text(layout: Layout, read: ReadTable) -> str:
    """A line for each page."""
    lines: list[str] = []
    try:
        for page in mappings(layout, read):
            if len(lines) == MOST_LINES:
                raise TooMuch
            letters = "".join(letter if page.entry & bit else "-" for letter, bit in FLAGS)
            lines.append(f"{page.address:016x}: {page.frame:016x} {letters}\n")
    except TooMuch:
        lines.append(LEFT_OUT)
    return "".join(lines)


def mem_text(layout: Layout, read: ReadTable) -> str:
    """A line for each range of pages with the same rights."""
    digits = 16 if layout.canonical_bits else 8
    lines: list[str] = []
    start = end = 0
    rights = -1
    rest = ""
    try:
        for page in mappings(layout, read):
            if page.address != end or page.rights != rights:
                if rights >= 0:
                    lines.append(_range(start, end, rights, digits))
                if len(lines) == MOST_LINES:
                    raise TooMuch
                start, rights = page.address, page.rights
            end = page.address + page.size
    except TooMuch:
        rest = LEFT_OUT
    if rights >= 0:
        lines.append(_range(start, end, rights, digits))
    return "".join(lines) + rest


def _range(start: int, end: int, rights: int, digits: int) -> str:
    letters = ("u" if rights & USER else "-") + "r" + ("w" if rights & WRITABLE else "-")
    wrap = (1 << 64) - 1
    return f"{start:0{digits}x}-{end & wrap:0{digits}x} {end - start:0{digits}x} {letters}\n"
