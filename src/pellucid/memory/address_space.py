"""Address spaces: a region tree as a vCPU, a DMA master or the port bus sees it.

An access finds its flat range (one dictionary look-up for an address used before, a binary search otherwise) and goes
to the range's memory or to its device. `read` and `write` are the exit path: one aligned access of a size that the
device implements costs one call of the device and about half a microsecond around it; everything else (RAM in odd
sizes, splitting, crossing ranges, what is not there) takes the general way below.

Only memory is cut at the end of its range: an access to a device goes at its full width to the region that answers its
start address. Reading needs no lock: a view is replaced whole. Devices behind I/O regions do need the big lock.
"""

from typing import NamedTuple

from pellucid.memory.access import MASKS, ClockRegister, IoEventfd, MemTxResult, StringOps
from pellucid.memory.dispatch import access_size, dispatch_read, dispatch_write, trace
from pellucid.memory.flat_view import UNASSIGNED, FlatRange, FlatView, flat_view_of
from pellucid.memory.ldst import LoadStore
from pellucid.memory.listener import MemoryListener, MemoryRegionSection
from pellucid.memory.ram_block import PAGE_SIZE, RamBlock
from pellucid.memory.region import ADDRESS_SPACE_SIZE, MemoryRegion
from pellucid.memory.transaction import MemoryTransaction, mark_dirty

_ADDRESS_MASK = ADDRESS_SPACE_SIZE - 1


class _Bell(NamedTuple):
    addr: int
    eventfd: IoEventfd


class _Register(NamedTuple):
    addr: int
    register: ClockRegister


class DirectRange(NamedTuple):
    """Addresses [start, end) that are memory of `block`; its offset is the address less `delta`."""

    block: RamBlock
    start: int
    end: int
    delta: int


class AddressSpace(LoadStore):
    """The view of `root` and the accesses to it. Values are little-endian, as the guest processor's are.

    Values read where nothing is are 0, except in port space, whose root region answers all ones (`UnassignedIoOps`).
    """

    __slots__ = ("_bells", "_clock_registers", "_coalesced", "_listeners", "name", "root", "view")

    def __init__(self, name: str, root: MemoryRegion) -> None:
        self.name = name
        self.root = root
        self.view: FlatView = flat_view_of(root)
        self._listeners: list[MemoryListener] = []
        self._bells: list[_Bell] = []
        self._clock_registers: list[_Register] = []
        self._coalesced: list[tuple[int, int]] = []
        """(address, size) of each part whose writes may be collected; like the doorbells, kept for listeners only."""
        root.address_spaces.append(self)

    def __repr__(self) -> str:
        return f"<AddressSpace '{self.name}'>"

    def close(self) -> None:
        """Take everything away from the listeners and forget the tree."""
        for listener in list(self._listeners):
            self.remove_listener(listener)
        self.root.address_spaces.remove(self)

    def set_root(self, root: MemoryRegion) -> None:
        """Show another tree."""
        with MemoryTransaction():
            self.root.address_spaces.remove(self)
            self.root = root
            root.address_spaces.append(self)
            mark_dirty(self)

    def read(self, addr: int, size: int) -> int:
        """The value of the `size` bytes (1 to 8) at `addr`."""
        view = self.view
        found = view.hits.get(addr) or view.lookup(addr)
        region = found.region
        mask = region.read_masks[size]
        if mask:
            offset = addr - found.delta
            if not offset & (size - 1) and not found.read_direct:
                ops = region.ops
                assert ops is not None
                return ops.read(offset, size) & mask
        return self.load(addr, size)[0]

    def write(self, addr: int, size: int, value: int) -> None:
        """Store the low `size` bytes (1 to 8) of `value` at `addr`."""
        view = self.view
        found = view.hits.get(addr) or view.lookup(addr)
        region = found.region
        mask = region.write_masks[size]
        if mask:
            offset = addr - found.delta
            if not offset & (size - 1):
                ops = region.ops
                assert ops is not None
                ops.write(offset, size, value & mask)
                return
        self.store(addr, size, value)

    def load(self, addr: int, size: int) -> tuple[int, MemTxResult]:
        """`read`, and how it ended. What did not answer reads 0."""
        found = self._find(addr)
        if found.read_direct and addr + size <= found.end:
            offset = addr - found.delta
            block = found.region.block
            assert block is not None
            if size in block.units and not offset & (size - 1):
                items, shift = block.units[size]
                return items[offset >> shift], MemTxResult.OK
        data, result = self.try_read_bytes(addr, size)
        return int.from_bytes(data, "little"), result

    def store(self, addr: int, size: int, value: int) -> MemTxResult:
        """`write`, and how it ended."""
        found = self._find(addr)
        if found.write_direct and addr + size <= found.end:
            offset = addr - found.delta
            block = found.region.block
            assert block is not None
            if size in block.units and not offset & (size - 1):
                items, shift = block.units[size]
                items[offset >> shift] = value & MASKS[size]
                block.written(offset, size)
                return MemTxResult.OK
        return self.write_bytes(addr, (value & ((1 << 8 * size) - 1)).to_bytes(size, "little"))

    def read_string(self, addr: int, size: int, count: int) -> bytes:
        """What `count` reads of `size` bytes at one address give, as INS makes them; maybe fewer, at least one."""
        found = self._find(addr)
        if isinstance(found.region.ops, StringOps):
            content = found.region.ops.read_string(addr - found.delta, size, count)
            if content:
                return content
        return b"".join(self.read(addr, size).to_bytes(size, "little") for _ in range(count))

    def read_bytes(self, addr: int, length: int) -> bytes:
        """`length` bytes from `addr` on; what did not answer reads 0."""
        return bytes(self.try_read_bytes(addr, length)[0])

    def try_read_bytes(self, addr: int, length: int) -> tuple[bytearray, MemTxResult]:
        """`read_bytes`, and how it ended."""
        out = bytearray(length)
        done = 0
        result = MemTxResult.OK
        while done < length:
            found = self._find(addr + done)
            offset = ((addr + done) & _ADDRESS_MASK) - found.delta
            size = _piece_size(found, offset, length - done, at_once=found.read_direct)
            if found.read_direct:
                assert found.region.block is not None
                out[done : done + size] = found.region.block.view[offset : offset + size]
            elif found.region is UNASSIGNED:
                trace.debug("%s %#x: read of %d bytes, nothing is there", self.name, addr + done, size)
                result |= MemTxResult.DECODE_ERROR
            elif found.region.translate is not None:
                size, piece_result = _read_translated(found, offset, memoryview(out)[done:])
                result |= piece_result
            else:
                value, piece_result = dispatch_read(found.region, offset, size)
                out[done : done + size] = value.to_bytes(size, "little")
                result |= piece_result
            done += size
        return out, result

    def write_bytes(self, addr: int, data: bytes | bytearray | memoryview) -> MemTxResult:
        """Store `data` from `addr` on. What does not take it drops it."""
        done, length = 0, len(data)
        result = MemTxResult.OK
        while done < length:
            found = self._find(addr + done)
            offset = ((addr + done) & _ADDRESS_MASK) - found.delta
            dropped = found.readonly and found.region.is_ram
            size = _piece_size(found, offset, length - done, at_once=found.write_direct or dropped)
            if found.write_direct:
                block = found.region.block
                assert block is not None
                block.view[offset : offset + size] = data[done : done + size]
                block.written(offset, size)
            elif found.region is UNASSIGNED:
                trace.debug("%s %#x: write of %d bytes, nothing is there", self.name, addr + done, size)
                result |= MemTxResult.DECODE_ERROR
            elif dropped:
                trace.debug("%s %#x: write of %d bytes, read-only", self.name, addr + done, size)
                result |= MemTxResult.DECODE_ERROR
            elif found.region.translate is not None:
                size, piece_result = _write_translated(found, offset, memoryview(data)[done:])
                result |= piece_result
            else:
                value = int.from_bytes(data[done : done + size], "little")
                result |= dispatch_write(found.region, offset, size, value)
            done += size
        return result

    def find(self, addr: int) -> MemoryRegionSection | None:
        """What is seen at `addr`, from there on as far as it goes; None where nothing is."""
        found = self._find(addr)
        if found.region is UNASSIGNED:
            return None
        section = _section(found)
        ahead = addr - found.start
        return MemoryRegionSection(
            section.region, section.offset + ahead, section.size - ahead, addr, section.readonly, section.nonvolatile
        )

    def direct_view(self, addr: int, length: int, is_write: bool) -> memoryview | None:
        """The memory itself, when all `length` bytes are in one range that may be used directly; else None.

        Whoever writes to it tells the block (`RamBlock.written`). The view is good until the tree changes.
        """
        found = self._find(addr)
        direct = found.write_direct if is_write else found.read_direct
        if not direct or addr + length > found.end:
            return None
        assert found.region.block is not None
        offset = addr - found.delta
        return found.region.block.view[offset : offset + length]

    def map(self, addr: int, length: int, is_write: bool) -> tuple[RamBlock, int, int] | None:
        """(block, offset, size) of the memory at `addr`, as much of `length` bytes as one range has; None for devices.

        For transfers that a device has the host do: the bytes are `block.view[offset : offset + size]`, and whoever
        writes them tells the block (`RamBlock.written`).
        """
        found = self._find(addr)
        if not (found.write_direct if is_write else found.read_direct):
            return None if found.region.translate is None else _map_translated(found, addr, length, is_write)
        block = found.region.block
        assert block is not None
        addr &= _ADDRESS_MASK
        return block, addr - found.delta, min(length, found.end - addr)

    def direct_range(self, addr: int, is_write: bool) -> DirectRange | None:
        """All that `map` would give around `addr`, for one who has many pieces; None for devices and behind IOMMUs."""
        found = self._find(addr)
        if not (found.write_direct if is_write else found.read_direct):
            return None
        assert found.region.block is not None
        return DirectRange(found.region.block, found.start, found.end, found.delta)

    def add_listener(self, listener: MemoryListener) -> None:
        """Tell `listener` all that is there now, and every change from now on."""
        self._listeners.append(listener)
        self._listeners.sort(key=lambda other: other.priority)
        self._bells, self._coalesced = _find_bells(self.view), _find_coalesced(self.view)
        self._clock_registers = _find_clock_registers(self.view)
        listener.begin()
        for found in self.view.ranges:
            listener.region_add(_section(found))
        for addr, eventfd in self._bells:
            listener.eventfd_add(addr, eventfd)
        for window in self._coalesced:
            listener.coalesced_add(*window)
        for place in self._clock_registers:
            listener.clock_register_add(*place)
        listener.commit()

    def remove_listener(self, listener: MemoryListener) -> None:
        """Tell `listener` that all is gone, and nothing from now on."""
        self._listeners.remove(listener)
        listener.begin()
        for place in self._clock_registers:
            listener.clock_register_del(*place)
        for window in self._coalesced:
            listener.coalesced_del(*window)
        for addr, eventfd in self._bells:
            listener.eventfd_del(addr, eventfd)
        for found in reversed(self.view.ranges):
            listener.region_del(_section(found))
        listener.commit()

    def begin_update(self) -> None:
        """Part of `Topology`."""
        for listener in self._listeners:
            listener.begin()

    def update_topology(self) -> None:
        """Part of `Topology`."""
        old, self.view = self.view, flat_view_of(self.root)
        if self._listeners:
            self._tell_changes(old)

    def _tell_changes(self, old: FlatView) -> None:
        old_bells, old_coalesced = self._bells, self._coalesced
        self._bells, self._coalesced = bells, coalesced = _find_bells(self.view), _find_coalesced(self.view)
        old_registers, self._clock_registers = self._clock_registers, _find_clock_registers(self.view)
        gone, come = self.view.changes_from(old) if self.view is not old else ([], [])
        for listener in reversed(self._listeners):
            for place in old_registers:
                if place not in self._clock_registers:
                    listener.clock_register_del(*place)
            for window in old_coalesced:
                if window not in coalesced:
                    listener.coalesced_del(*window)
            for bell in old_bells:
                if bell not in bells:
                    listener.eventfd_del(*bell)
        for section in map(_section, gone):
            for listener in reversed(self._listeners):
                listener.region_del(section)
        for section in map(_section, come):
            for listener in self._listeners:
                listener.region_add(section)
        for listener in self._listeners:
            for bell in bells:
                if bell not in old_bells:
                    listener.eventfd_add(*bell)
            for window in coalesced:
                if window not in old_coalesced:
                    listener.coalesced_add(*window)
            for place in self._clock_registers:
                if place not in old_registers:
                    listener.clock_register_add(*place)

    def commit_update(self) -> None:
        """Part of `Topology`."""
        for listener in self._listeners:
            listener.commit()

    def _find(self, addr: int) -> FlatRange:
        addr &= _ADDRESS_MASK
        return self.view.hits.get(addr) or self.view.lookup(addr)


def _map_translated(found: FlatRange, addr: int, length: int, is_write: bool) -> tuple[RamBlock, int, int] | None:
    """`AddressSpace.map` behind an IOMMU: as far as its page goes."""
    assert found.region.translate is not None
    addr &= _ADDRESS_MASK
    target = found.region.translate(addr - found.delta, is_write)
    return None if target is None else target.space.map(target.address, min(length, target.size, found.end - addr),
                                                        is_write)  # fmt: skip


def _read_translated(found: FlatRange, offset: int, out: memoryview) -> tuple[int, MemTxResult]:
    """Read what an IOMMU's page has of `out`; how many bytes that is, and how it ended. What faults reads 0."""
    assert found.region.translate is not None
    target = found.region.translate(offset, False)
    size = min(len(out), found.end - found.delta - offset)
    if target is None:
        return min(size, _to_page_end(offset)), MemTxResult.ACCESS_ERROR
    size = min(size, target.size)
    out[:size], result = target.space.try_read_bytes(target.address, size)
    return size, result


def _write_translated(found: FlatRange, offset: int, data: memoryview) -> tuple[int, MemTxResult]:
    """The same for a write."""
    assert found.region.translate is not None
    target = found.region.translate(offset, True)
    size = min(len(data), found.end - found.delta - offset)
    if target is None:
        return min(size, _to_page_end(offset)), MemTxResult.ACCESS_ERROR
    size = min(size, target.size)
    return size, target.space.write_bytes(target.address, data[:size])


def _to_page_end(offset: int) -> int:
    return PAGE_SIZE - offset % PAGE_SIZE


def _piece_size(found: FlatRange, offset: int, length: int, *, at_once: bool) -> int:
    """How many of the next `length` bytes, which begin at `offset` of the range's region, go to this range at once.

    Memory is cut where its range ends. A device is not: as on a bus, the access belongs at its full width to whoever
    answers its first byte, also where something else lies over the rest.
    """
    region = found.region
    left = found.end - found.delta - offset
    if at_once:
        return min(length, left)
    if region is UNASSIGNED:
        # In pieces of up to four aligned bytes, of which all but the last in the hole are taken at once.
        whole = (found.end & -4) - offset
        return min(length, whole) if whole > 0 else access_size(region, length, offset)
    return access_size(region, min(length, left) if region.is_ram else length, offset)


def _section(found: FlatRange) -> MemoryRegionSection:
    return MemoryRegionSection(
        found.region, found.offset, found.end - found.start, found.start, found.readonly, found.nonvolatile
    )


def _find_bells(view: FlatView) -> list[_Bell]:
    """The doorbells that are seen, by address."""
    bells = []
    for found in view.ranges:
        for eventfd in found.region.ioeventfds:
            if found.offset <= eventfd.offset < found.offset + found.end - found.start:
                bells.append(_Bell(eventfd.offset + found.delta, eventfd))
    return bells


def _find_clock_registers(view: FlatView) -> list[_Register]:
    """The clock registers that are seen whole, by address."""
    registers = []
    for found in view.ranges:
        for register in found.region.clock_registers:
            addr = register.offset + found.delta
            if found.start <= addr and addr + register.size <= found.end:
                registers.append(_Register(addr, register))
    return registers


def _find_coalesced(view: FlatView) -> list[tuple[int, int]]:
    """(address, size) of what is seen of each coalesced part, by address."""
    windows = []
    for found in view.ranges:
        for offset, size in found.region.coalesced:
            start, end = max(offset + found.delta, found.start), min(offset + size + found.delta, found.end)
            if start < end:
                windows.append((start, end - start))
    return windows
