"""Flat views: a region tree rendered to the sorted, disjoint ranges that are seen.

Rendering walks the tree from the top priority down and lets each region fill the holes that the ones before it left; an
alias goes on in its target, shifted and clipped to the alias. So the order of the walk is the whole of the overlap
rule. Neighbouring ranges that show one region without a seam are joined, as QEMU does; `info mtree -f` prints the
result.

A root keeps its last view and the window of addresses that has changed since: only that is rendered anew, and the
ranges outside it, or unchanged in it, are the same objects in both views.
"""

from bisect import bisect_left, bisect_right

from pellucid.memory.region import ADDRESS_SPACE_SIZE, MemoryRegion, RegionKind

_MAX_HITS = 4096

UNASSIGNED = MemoryRegion(RegionKind.RESERVATION, "unassigned", ADDRESS_SPACE_SIZE)
"""Stands for what is not there; never part of a tree."""

RangeKey = tuple[int, int, MemoryRegion, int, bool, bool, bool]


def memory_access_is_direct(region: MemoryRegion, is_write: bool) -> bool:
    """Whether an access may go straight to the region's memory, without asking a device."""
    if is_write:
        return region.kind is RegionKind.RAM and not region.readonly
    return region.kind is RegionKind.RAM or region.is_romd


class FlatRange:
    """[start, end) of an address space, all of it in one region, whose byte `offset` is seen at `start`.

    `delta` is what to take off an address to get the region's offset. `read_direct` and `write_direct` say whether the
    region's memory may be used without asking a device; a write needs more, that nothing on the way is read-only.
    """

    __slots__ = (
        "delta",
        "end",
        "key",
        "nonvolatile",
        "offset",
        "read_direct",
        "readonly",
        "region",
        "romd_mode",
        "start",
        "write_direct",
    )

    def __init__(self, key: RangeKey) -> None:
        self.key = key
        self.start, self.end, self.region, self.offset, self.readonly, self.nonvolatile, self.romd_mode = key
        self.delta = self.start - self.offset
        self.read_direct = memory_access_is_direct(self.region, is_write=False)
        self.write_direct = memory_access_is_direct(self.region, is_write=True) and not self.readonly

    def __repr__(self) -> str:
        return f"<FlatRange {self.start:#x}..{self.end - 1:#x} '{self.region.name}' @{self.offset:#x}>"


class FlatView:
    """What is seen under `root` (None: nothing at all). Immutable but for `hits`, the memory of past look-ups."""

    __slots__ = ("hits", "ranges", "root", "starts")

    def __init__(self, root: MemoryRegion | None, ranges: list[FlatRange]) -> None:
        self.root = root
        self.ranges = ranges
        self.starts = [r.start for r in ranges]
        self.hits: dict[int, FlatRange] = {}
        """Address to range, for the addresses that a guest uses again and again: device registers. Bounded."""

    def lookup(self, addr: int) -> FlatRange:
        """The range that holds `addr`; where nothing is, a range of `UNASSIGNED` as wide as the hole."""
        index = bisect_right(self.starts, addr) - 1
        if index >= 0 and addr < self.ranges[index].end:
            found = self.ranges[index]
        else:
            found = self._hole(index)
        # The bound also keeps a guest that scans all its addresses from filling the host's memory.
        if len(self.hits) >= _MAX_HITS:
            self.hits.clear()
        self.hits[addr] = found
        return found

    def changes_from(self, old: "FlatView") -> tuple[list[FlatRange], list[FlatRange]]:
        """(the ranges of `old` that are gone, the ranges that are new), each by address."""
        before, after = old.ranges, self.ranges
        shorter = min(len(before), len(after))
        head = 0
        while head < shorter and (before[head] is after[head] or before[head].key == after[head].key):
            head += 1
        tail = 0
        while tail < shorter - head and (
            before[-1 - tail] is after[-1 - tail] or before[-1 - tail].key == after[-1 - tail].key
        ):
            tail += 1
        gone, come = before[head : len(before) - tail], after[head : len(after) - tail]
        old_keys, new_keys = {r.key for r in gone}, {r.key for r in come}
        return [r for r in gone if r.key not in new_keys], [r for r in come if r.key not in old_keys]

    def _hole(self, index: int) -> FlatRange:
        """The hole behind range `index`."""
        start = self.ranges[index].end if index >= 0 else 0
        # The last hole has no end, so that an access which runs off the end of the address space ends in it.
        end = self.starts[index + 1] if index + 1 < len(self.starts) else ADDRESS_SPACE_SIZE << 1
        return FlatRange((start, end, UNASSIGNED, start, False, False, False))


_Piece = tuple[int, int, MemoryRegion, int, bool, bool]
"""start, end, region, offset, readonly, nonvolatile."""


class _Renderer:
    """The pieces seen so far, sorted and disjoint, and their starts."""

    __slots__ = ("pieces", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.pieces: list[_Piece] = []

    def render(self, region: MemoryRegion, base: int, low: int, high: int, readonly: bool, nonvolatile: bool) -> None:
        """Show `region`, which lies in a container that begins at `base`, where it is within [low, high)."""
        if not region.enabled:
            return
        base += region.addr
        low = max(low, base)
        high = min(high, base + region.size)
        if low >= high:
            return
        readonly |= region.readonly
        nonvolatile |= region.nonvolatile
        target = region.alias_target
        if target is not None:
            self.render(target, base - target.addr - region.alias_offset, low, high, readonly, nonvolatile)
            return
        for subregion in region.subregions:
            # Looked at here already, since most of what a container holds is outside the window.
            start = base + subregion.addr
            if start < high and low < start + subregion.size:
                self.render(subregion, base, low, high, readonly, nonvolatile)
        if region.terminates:
            self._fill(region, base, low, high, readonly, nonvolatile)

    def _fill(self, region: MemoryRegion, base: int, low: int, high: int, readonly: bool, nonvolatile: bool) -> None:
        """Show `region` in the holes of [low, high)."""
        starts, pieces = self.starts, self.pieces
        index = bisect_right(starts, low)
        if index:
            low = max(low, pieces[index - 1][1])
        while low < high:
            stop = min(starts[index], high) if index < len(starts) else high
            if low < stop:
                starts.insert(index, low)
                pieces.insert(index, (low, stop, region, low - base, readonly, nonvolatile))
                index += 1
            if index == len(starts):
                return
            low = pieces[index][1]
            index += 1

    def joined(self) -> list[_Piece]:
        """The pieces, neighbours joined where the region goes on without a seam."""
        out: list[_Piece] = []
        for piece in self.pieces:
            if out:
                start, end, region, offset, readonly, nonvolatile = out[-1]
                if piece[0] == end and piece[2:] == (region, offset + end - start, readonly, nonvolatile):
                    out[-1] = (start, piece[1], region, offset, readonly, nonvolatile)
                    continue
            out.append(piece)
        return out


def flat_view_root(region: MemoryRegion) -> MemoryRegion | None:
    """The region whose flat view shows all that `region` shows, found without rendering; None: it shows nothing.

    Address spaces with one such root share one flat view: a bus master's window on all of `system`, say.
    """
    while region.enabled:
        if region.readonly or region.nonvolatile:
            return region
        target = region.alias_target
        if target is not None:
            if region.alias_offset or region.size < target.size:
                return region
            region = target
        elif region.terminates:
            return region
        else:
            enabled = [s for s in region.subregions if s.enabled]
            if not enabled:
                return None
            if len(enabled) > 1 or enabled[0].addr or region.size < enabled[0].size:
                return region
            region = enabled[0]
    return None


def render_flat_view(root: MemoryRegion | None) -> FlatView:
    """Render `root`, whole."""
    if root is None:
        return FlatView(None, [])
    return FlatView(root, _render_window(root, 0, ADDRESS_SPACE_SIZE, []))


def _render_window(root: MemoryRegion, low: int, high: int, known: list[FlatRange]) -> list[FlatRange]:
    """The ranges in [low, high) of `root`; those that are in `known` as well are taken from it."""
    renderer = _Renderer()
    renderer.render(root, -root.addr, low, high, False, False)
    by_key = {found.key: found for found in known}
    ranges = []
    for start, end, region, offset, readonly, nonvolatile in renderer.joined():
        key = (start, end, region, offset, readonly, nonvolatile, region.romd_mode)
        ranges.append(by_key.get(key) or FlatRange(key))
    return ranges


def _refresh(view: FlatView, low: int, high: int) -> FlatView:
    """`view` with [low, high) rendered anew; itself when nothing has changed."""
    assert view.root is not None
    ranges = view.ranges
    first = max(bisect_left(view.starts, low) - 1, 0)
    if first < len(ranges) and ranges[first].end < low:
        first += 1
    last = bisect_right(view.starts, high)
    touched = ranges[first:last]
    if touched:
        # Up to the ends of what lies there and next to it, so that neighbours can grow together.
        low, high = min(low, touched[0].start), max(high, touched[-1].end)
    fresh = _render_window(view.root, low, high, touched)
    if len(fresh) == len(touched) and all(new is old for new, old in zip(fresh, touched, strict=True)):
        return view
    return FlatView(view.root, [*ranges[:first], *fresh, *ranges[last:]])


def flat_view_of(region: MemoryRegion) -> FlatView:
    """The flat view of an address space whose root is `region`; shared by all that have the same `flat_view_root`."""
    root = flat_view_root(region)
    if root is None:
        return render_flat_view(None)
    view = root.cached_flat_view
    if view is None:
        view = render_flat_view(root)
    elif root.stale is not None:
        view = _refresh(view, *root.stale)
    root.cached_flat_view, root.stale = view, None
    return view
