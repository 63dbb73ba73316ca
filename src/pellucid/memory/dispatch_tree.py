"""The dispatch tree that `info mtree -f -d` shows: how QEMU finds the section of an address, page by page.

QEMU looks an address up in a tree of 512-entry nodes over page numbers, six levels for 64-bit addresses, whose leaves
name sections. Each range of a flat view becomes up to three sections: what it has of its first page, its whole pages,
and what it has of its last page; a page that several ranges share is a section of its own, with a list per byte behind
it. Chains of nodes with one entry only are skipped. Pellucid does not look addresses up so (a binary search over the
ranges is as good in Python); the tree is built when somebody asks for its picture.

One thing is not shown: "[MRU]", which marks the section that QEMU used last.
"""

from collections.abc import Iterator
from itertools import groupby

from pellucid.memory.flat_view import FlatView
from pellucid.memory.ram_block import PAGE_SIZE
from pellucid.records import dataclass

_BITS = 9
_LEVELS = 6
_ENTRIES = 1 << _BITS
_PAGE_BITS = PAGE_SIZE.bit_length() - 1
_LAST = (1 << 64) - 1
_NOTHING = 0
"""The section of what is not there."""
_FIXED_NAMES = ("[unassigned]", "[not dirty]", "[ROM]", "[watch]")
"""QEMU 7.2 prints these behind the first four numbers, whatever the sections are."""


@dataclass(slots=True)
class _Entry:
    """One of a node's 512: `skip` levels down is node `to` (None: nothing there); skip 0: `to` is a section."""

    skip: int
    to: int | None


@dataclass(frozen=True, slots=True)
class _Section:
    start: int
    last: int
    name: str
    is_root: bool


class _DispatchTree:
    """The sections and nodes of one flat view, in the order in which QEMU makes them."""

    def __init__(self, view: FlatView) -> None:
        self.sections = [_Section(0, _LAST, "(noname)", False)]
        self.nodes: list[list[_Entry]] = []
        self.top = _Entry(1, None)
        self._shared: set[int] = set()
        """Pages that are already a section of their own."""
        for found in view.ranges:
            self._add(found.start, found.end, found.region.name or "(noname)", found.region is view.root)
        self._compact(self.top)

    def _add(self, start: int, end: int, name: str, is_root: bool) -> None:
        first_whole = -(-start // PAGE_SIZE) * PAGE_SIZE
        if start < first_whole:
            stop = min(end, first_whole)
            self._add_part(start, stop, name, is_root)
            start = stop
        whole_end = end // PAGE_SIZE * PAGE_SIZE
        if start < whole_end:
            number = self._section(start, whole_end, name, is_root)
            self._set(start >> _PAGE_BITS, (whole_end - start) >> _PAGE_BITS, number)
            start = whole_end
        if start < end:
            self._add_part(start, end, name, is_root)

    def _add_part(self, start: int, end: int, name: str, is_root: bool) -> None:
        """Less than a page."""
        page = start >> _PAGE_BITS
        if page not in self._shared:
            self._shared.add(page)
            base = page << _PAGE_BITS
            self._set(page, 1, self._section(base, base + PAGE_SIZE, "(noname)", False))
        self._section(start, end, name, is_root)

    def _section(self, start: int, end: int, name: str, is_root: bool) -> int:
        self.sections.append(_Section(start, end - 1, name, is_root))
        return len(self.sections) - 1

    def _set(self, page: int, count: int, section: int) -> None:
        self._set_level(self.top, page, page + count, section, _LEVELS - 1, 0)

    def _set_level(self, entry: _Entry, page: int, end: int, section: int, level: int, base: int) -> None:
        """Have pages [page, end), as far as they lie below `entry`, whose node begins at page `base`, be `section`."""
        if entry.to is None:
            entry.to = len(self.nodes)
            self.nodes.append([_Entry(1, None) if level else _Entry(0, _NOTHING) for _ in range(_ENTRIES)])
        node = self.nodes[entry.to]
        span = 1 << level * _BITS
        index = (page - base) // span
        while page < end and index < _ENTRIES:
            start = base + index * span
            if page == start and end - page >= span:
                node[index].skip, node[index].to = 0, section
            else:
                self._set_level(node[index], page, min(end, start + span), section, level - 1, start)
            page = start + span
            index += 1

    def _compact(self, entry: _Entry) -> None:
        """Let `entry` lead past every node below it that has one entry only."""
        if entry.to is None or not entry.skip:
            return
        used = [below for below in self.nodes[entry.to] if below.to is not None]
        for below in used:
            self._compact(below)
        if len(used) == 1:
            entry.to = used[0].to
            entry.skip = entry.skip + used[0].skip if used[0].skip else 0

    def lines(self) -> Iterator[str]:
        yield "  Dispatch"
        yield "    Physical sections"
        for number, section in enumerate(self.sections):
            mark = " [ROOT]" if section.is_root else ""
            fixed = f" {_FIXED_NAMES[number]}" if number < len(_FIXED_NAMES) else ""
            yield f"      #{number} @{section.start:016x}..{section.last:016x} {section.name}{fixed}{mark}"
        top = f"ptr=[{-1 if self.top.to is None else self.top.to}] skip={self.top.skip}"
        yield f"    Nodes ({_BITS} bits per level, {_LEVELS} levels) {top}"
        for number, node in enumerate(self.nodes):
            yield f"      [{number}]"
            first = 0
            for (skip, to), run in groupby(node, key=lambda entry: (entry.skip, entry.to)):
                last = first + sum(1 for _ in run) - 1
                where = f"{first:3d}     " if first == last else f"{first:3d}..{last:<3d}"
                yield f"\t{where}  skip={skip}  ptr={_pointer(skip, to)}"
                first = last + 1


def _pointer(skip: int, to: int | None) -> str:
    if to is None:
        return "NIL"
    return f"[{to}]" if skip else f"#{to}"


def dispatch_tree_lines(view: FlatView) -> Iterator[str]:
    """What `-d` adds below the ranges of a flat view that is not empty."""
    return _DispatchTree(view).lines()
