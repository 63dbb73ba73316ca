"""DMA remapping in legacy mode (chapter 3): root and context tables, second-level pages, and the caches of both.

Both caches are bounded, whatever a guest maps: one that is full is emptied. Neither keeps what is not present, which
caching mode would allow (6.1); a guest that invalidates as the unit's capabilities ask for sees no difference.
"""

from typing import NamedTuple

from pellucid.machine.vtd.faults import FaultError, Reason
from pellucid.machine.vtd.registers import Features
from pellucid.memory import AddressSpace

MOST_CACHED = 1024
PRESENT, FAULT_DISABLE, READ, WRITE, SUPER_PAGE = 1, 2, 1, 2, 1 << 7
UNTRANSLATED, WITH_DEVICE_TLB, PASS_THROUGH = 0, 1, 2
WIDTHS = {1: 39, 2: 48}
PAGE_SHIFTS = (12, 21, 30)
"""By the level of the entry that maps the page."""
LOW_12 = 0xFFF
TRANSIENT_IGNORED = 0xFFF0_0000_0000_0000
"""Bits 63:52 of a page table entry: ignored, or the transient mapping's."""
SNOOP = 1 << 11


class Context(NamedTuple):
    """A context entry, checked: `bits` of address in `table`, 0 for pass-through."""

    table: int
    bits: int
    domain: int
    silent: bool


class Page(NamedTuple):
    """A page that was found: its address, the shift of its size, and READ and WRITE."""

    address: int
    shift: int
    rights: int


def read_ram(space: AddressSpace, address: int, size: int) -> int | None:
    """A little-endian number in RAM; None where it is not all in RAM, which no table may lie outside of.

    A table in a device's registers would have the unit's walk set off the device.
    """
    view = space.direct_view(address, size, False)
    return None if view is None else int.from_bytes(view, "little")


class Translator:
    """Walks tables in `memory`; `root` is the root table's address, latched."""

    def __init__(self, memory: AddressSpace, features: Features) -> None:
        self._memory = memory
        self.root = 0
        self._width = features.aw_bits
        self._beyond = ~((1 << features.aw_bits) - 1) & (1 << 64) - 1
        widths = (39,) if features.aw_bits == 39 else (39, 48)
        self._widths = widths if features.translation else ()
        self._kinds = {UNTRANSLATED}
        self._kinds |= {WITH_DEVICE_TLB} if features.device_iotlb else set()
        self._kinds |= {PASS_THROUGH} if features.pass_through else set()
        self._table_reserved = self._beyond & ~TRANSIENT_IGNORED | (0 if features.snoop_control else SNOOP)
        self.contexts: dict[int, Context] = {}
        self.pages: dict[tuple[int, int, int], Page] = {}
        """By domain, shift and page number."""

    def translate(self, source: int, address: int, is_write: bool) -> Page:
        """The page of `address` for a requester. Raises FaultError."""
        context = self.contexts.get(source) or self._find_context(source)
        if not context.bits:
            return Page(address >> 30 << 30, 30, READ | WRITE)
        wanted = WRITE if is_write else READ
        for shift in PAGE_SHIFTS:
            page = self.pages.get((context.domain, shift, address >> shift))
            if page is not None and page.rights & wanted:
                return page
        return self._walk(context, address, wanted)

    def _find_context(self, source: int) -> Context:
        root = read_ram(self._memory, self.root + (source >> 8) * 16, 16)
        if root is None:
            raise FaultError(Reason.ROOT_ACCESS)
        if not root & PRESENT:
            raise FaultError(Reason.ROOT_NOT_PRESENT)
        if root >> 64 or root & (LOW_12 & ~PRESENT | self._beyond):
            raise FaultError(Reason.ROOT_RESERVED)
        entry = read_ram(self._memory, (root & ~LOW_12) + (source & 0xFF) * 16, 16)
        if entry is None:
            raise FaultError(Reason.CONTEXT_ACCESS)
        if not entry & PRESENT:
            raise FaultError(Reason.CONTEXT_NOT_PRESENT)
        context = self._check_context(entry)
        if len(self.contexts) >= MOST_CACHED:
            self.contexts.clear()
        self.contexts[source] = context
        return context

    def _check_context(self, entry: int) -> Context:
        low, high = entry & (1 << 64) - 1, entry >> 64
        silent = bool(low & FAULT_DISABLE)
        if low & (0xFF0 | self._beyond) or high & ~0xFF_FF7F:
            raise FaultError(Reason.CONTEXT_RESERVED)
        kind, bits = low >> 2 & 3, WIDTHS.get(high & 7, 0)
        if kind not in self._kinds or kind != PASS_THROUGH and bits not in self._widths:
            raise FaultError(Reason.CONTEXT_INVALID, silent=silent)
        return Context(low & ~LOW_12, 0 if kind == PASS_THROUGH else bits, high >> 8 & 0xFFFF, silent)

    def _walk(self, context: Context, address: int, wanted: int) -> Page:
        silent = context.silent
        if address >> context.bits:
            raise FaultError(Reason.ADDRESS_BEYOND, silent=silent)
        table, rights = context.table, READ | WRITE
        for level in range((context.bits - 12) // 9 - 1, -1, -1):
            shift = 12 + 9 * level
            entry = read_ram(self._memory, table + (address >> shift & 0x1FF) * 8, 8)
            if entry is None:
                raise FaultError(Reason.TABLE_ACCESS, silent=silent)
            rights &= entry
            if not rights & wanted:
                raise FaultError(Reason.NO_WRITE if wanted == WRITE else Reason.NO_READ, silent=silent)
            is_page = level == 0 or bool(entry & SUPER_PAGE)
            if entry & self._reserved(level, is_page=is_page):
                raise FaultError(Reason.TABLE_RESERVED, silent=silent)
            table = entry & ~LOW_12 & ~TRANSIENT_IGNORED
            if is_page:
                return self._keep(context.domain, address, Page(table, shift, rights))
        raise AssertionError("level 0 is a page")

    def _reserved(self, level: int, *, is_page: bool) -> int:
        if level and is_page:
            # A page of 512 GiB is not among the capabilities.
            return self._table_reserved | (1 << 12 + 9 * level) - 1 & ~LOW_12 | (SUPER_PAGE if level > 2 else 0)
        return self._table_reserved

    def _keep(self, domain: int, address: int, page: Page) -> Page:
        if len(self.pages) >= MOST_CACHED:
            self.pages.clear()
        self.pages[domain, page.shift, address >> page.shift] = page
        return page

    # ---- invalidation (6.5)

    def forget(self) -> None:
        """All of both caches."""
        self.contexts.clear()
        self.pages.clear()

    def forget_contexts(self, domain: int | None = None, source: tuple[int, int] | None = None) -> None:
        """Context entries: all, those of a domain, or of a source with the function bits that `source` masks off."""
        if source is not None:
            wanted, mask = source[0], ~((1 << source[1]) - 1 << 3 - source[1] if source[1] else 0)
            gone = [known for known in self.contexts if known & mask == wanted & mask]
        else:
            gone = [known for known, context in self.contexts.items() if domain in (None, context.domain)]
        for known in gone:
            del self.contexts[known]

    def forget_pages(self, domain: int | None = None, address: int = 0, order: int | None = None) -> None:
        """Translations: all, those of a domain, or of its 2**`order` pages around `address`."""
        if domain is None:
            self.pages.clear()
            return
        low = address >> 12 >> (order or 0) << (order or 0) << 12
        high = low + (1 << 12 + (order or 0))
        if order is not None and 1 << order < len(self.pages):
            # Few pages, as at each unmapping of a guest in strict mode: asked for by name.
            for shift in PAGE_SHIFTS:
                for number in range(low >> shift, (high - 1 >> shift) + 1):
                    self.pages.pop((domain, shift, number), None)
            return
        for known in [key for key in self.pages if key[0] == domain]:
            start = known[2] << known[1]
            if order is None or start < high and low < start + (1 << known[1]):
                del self.pages[known]
