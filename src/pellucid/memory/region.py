"""Memory regions: the tree that says what is where.

A region is RAM, ROM, a ROM device, I/O, an IOMMU, a pure container or an alias of a part of another region. Regions lie
in containers at an offset and with a priority; where they overlap, the higher priority is seen, and among equals the
one that was added last. An I/O or RAM region may have subregions too: it is then seen where none of them is. Addresses
that nothing answers fall through a pure container to what lies beneath it. The rules, and the words for them, are
QEMU's.

A region is in one container at most; to show it twice, alias it. All changes are made under the big lock.
"""

import enum
from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

from pellucid.memory.access import (  # fmt: skip
    MASKS,
    Accepts,
    AccessSizes,
    ClockRegister,
    Endianness,
    IoEventfd,
    IoOps,
    Translate,
)
from pellucid.memory.ram_block import RamBlock, RamDeviceOps
from pellucid.memory.transaction import MemoryTransaction, Topology, mark_dirty

if TYPE_CHECKING:
    from pellucid.memory.flat_view import FlatView

ADDRESS_SPACE_SIZE = 1 << 64
"""Size of a region that covers every address."""

_NO_FAST_SIZES = (0,) * 9


class RegionKind(enum.Enum):
    """What answers when an access reaches the region."""

    CONTAINER = "container"
    IO = "i/o"
    RAM = "ram"
    """RAM, and ROM: RAM that is read-only."""
    ROM_DEVICE = "rom device"
    """Reads come from memory while in ROMD mode, writes go to the device (flash)."""
    RAM_DEVICE = "ram device"
    """Host memory that is not RAM (a passed-through BAR): mapped for the vCPUs, accessed in exact sizes otherwise."""
    ALIAS = "alias"
    IOMMU = "iommu"
    """Translates: each page of it is a page of another address space, or faults, as a table says at the access."""
    RESERVATION = "reservation"
    """Claims addresses for something outside this process; accesses are unassigned."""


class MemoryRegion:
    """One node of the tree. Make one with the class methods, one for each kind.

    Attributes that are read freely and changed only by the methods: `name`, `kind`, `size`, `addr` (offset in the
    container), `priority`, `container`, `subregions` (in the order in which they are looked at), `enabled`, `readonly`,
    `nonvolatile`, `romd_mode`, `alias_target`, `alias_offset`, `block`, `ops`, `valid`, `impl`, `endianness`,
    `accepts`, `ioeventfds`, `clock_registers`, `coalesced` ((offset, size) of each part). `owner` and `parent` are free
    text for `info mtree -o`. `read_masks[size]` is the value mask of an aligned read of that size that needs no
    splitting, 0 when it does.
    """

    __slots__ = (
        "__weakref__", "_alias_users", "accepts", "addr", "address_spaces", "alias_offset", "alias_target",
        "big_endian", "block", "cached_flat_view", "clock_registers", "coalesced", "container", "enabled", "endianness",
        "impl", "ioeventfds", "kind", "may_overlap", "name", "nonvolatile", "ops", "owner", "parent", "priority",
        "read_masks", "readonly", "romd_mode", "size", "stale", "subregions", "terminates", "translate", "valid",
        "write_masks",
    )  # fmt: skip

    def __init__(self, kind: RegionKind, name: str, size: int, *, owner: str | None = None) -> None:
        if not 0 <= size <= ADDRESS_SPACE_SIZE:
            raise ValueError(f"memory region '{name}': size {size:#x} is outside 0..2**64")
        self.kind = kind
        self.name = name
        self.size = size
        self.owner = owner
        self.parent: str | None = None
        self.addr = 0
        self.priority = 0
        self.may_overlap = False
        self.container: MemoryRegion | None = None
        self.subregions: list[MemoryRegion] = []
        self.enabled = True
        self.readonly = False
        self.nonvolatile = False
        self.romd_mode = kind is RegionKind.ROM_DEVICE
        self.terminates = kind not in (RegionKind.CONTAINER, RegionKind.ALIAS)
        self.alias_target: MemoryRegion | None = None
        self.alias_offset = 0
        self.block: RamBlock | None = None
        self.ops: IoOps | None = None
        self.valid = self.impl = AccessSizes()
        self.endianness = Endianness.LITTLE
        self.big_endian = False
        self.accepts: Accepts | None = None
        self.translate: Translate | None = None
        self.ioeventfds: tuple[IoEventfd, ...] = ()
        self.clock_registers: tuple[ClockRegister, ...] = ()
        self.read_masks: tuple[int, ...] = _NO_FAST_SIZES
        self.write_masks: tuple[int, ...] = _NO_FAST_SIZES
        self.address_spaces: list[Topology] = []
        self.coalesced: tuple[tuple[int, int], ...] = ()
        self.cached_flat_view: FlatView | None = None
        self.stale: tuple[int, int] | None = None
        """The part of the region whose cached flat view is out of date: [low, high), by the region's own offsets."""
        self._alias_users: WeakSet[MemoryRegion] | None = None

    def __repr__(self) -> str:
        return f"<MemoryRegion '{self.name}' {self.type_name} {self.addr:#x}+{self.size:#x}>"

    @classmethod
    def new_container(cls, name: str, size: int = ADDRESS_SPACE_SIZE, *, owner: str | None = None) -> "MemoryRegion":
        """A pure container: it answers nowhere itself."""
        return cls(RegionKind.CONTAINER, name, size, owner=owner)

    @classmethod
    def new_io(
        cls,
        name: str,
        size: int,
        ops: IoOps,
        *,
        valid: AccessSizes | None = None,
        impl: AccessSizes | None = None,
        endianness: Endianness = Endianness.LITTLE,
        accepts: Accepts | None = None,
        owner: str | None = None,
    ) -> "MemoryRegion":
        """Accesses go to `ops`. Both `valid` and `impl` sizes are 1 to 4 bytes, aligned, unless given."""
        region = cls(RegionKind.IO, name, size, owner=owner)
        region._set_ops(ops, valid, impl, endianness, accepts)
        return region

    @classmethod
    def new_ram(cls, name: str, block: RamBlock, *, owner: str | None = None) -> "MemoryRegion":
        """RAM: the bytes in use of `block`."""
        region = cls(RegionKind.RAM, name, block.size, owner=owner)
        region.block = block
        return region

    @classmethod
    def new_rom(cls, name: str, block: RamBlock, *, owner: str | None = None) -> "MemoryRegion":
        """ROM: RAM that the guest cannot write; the machine fills it through the block."""
        region = cls.new_ram(name, block, owner=owner)
        region.readonly = True
        return region

    @classmethod
    def new_rom_device(
        cls,
        name: str,
        block: RamBlock,
        ops: IoOps,
        *,
        valid: AccessSizes | None = None,
        impl: AccessSizes | None = None,
        endianness: Endianness = Endianness.LITTLE,
        owner: str | None = None,
    ) -> "MemoryRegion":
        """Reads come from `block` while in ROMD mode (as it is at first), everything else goes to `ops`."""
        region = cls(RegionKind.ROM_DEVICE, name, block.size, owner=owner)
        region.block = block
        region._set_ops(ops, valid, impl, endianness, None)
        return region

    @classmethod
    def new_ram_device(cls, name: str, block: RamBlock, *, owner: str | None = None) -> "MemoryRegion":
        """A vCPU has `block` mapped; every other access is one load or store of exactly its size, never a copy."""
        region = cls(RegionKind.RAM_DEVICE, name, block.size, owner=owner)
        region.block = block
        sizes = AccessSizes(1, 8)
        region._set_ops(RamDeviceOps(block), sizes, sizes, Endianness.LITTLE, None)
        return region

    @classmethod
    def new_alias(
        cls, name: str, target: "MemoryRegion", offset: int, size: int, *, owner: str | None = None
    ) -> "MemoryRegion":
        """A window on `size` bytes of `target` from `offset` on. What lies beyond the target's end is not there."""
        region = cls(RegionKind.ALIAS, name, size, owner=owner)
        region.alias_target = target
        region.alias_offset = offset
        if target._alias_users is None:
            target._alias_users = WeakSet()
        target._alias_users.add(region)
        return region

    @classmethod
    def new_iommu(cls, name: str, size: int, translate: Translate, *, owner: str | None = None) -> "MemoryRegion":
        """What lies here is asked of `translate` at every access."""
        region = cls(RegionKind.IOMMU, name, size, owner=owner)
        region.translate = translate
        return region

    @classmethod
    def new_reservation(cls, name: str, size: int, *, owner: str | None = None) -> "MemoryRegion":
        """Addresses that something outside this process answers: seen in the tree, unassigned for accesses."""
        return cls(RegionKind.RESERVATION, name, size, owner=owner)

    @property
    def is_ram(self) -> bool:
        """RAM or ROM or a RAM device (QEMU's memory_region_is_ram)."""
        return self.kind is RegionKind.RAM or self.kind is RegionKind.RAM_DEVICE

    @property
    def is_romd(self) -> bool:
        """A ROM device whose reads come from memory now."""
        return self.romd_mode

    @property
    def type_name(self) -> str:
        """What `info mtree` says: i/o, ram, rom, romd or ramd; an alias has its target's."""
        if self.alias_target is not None:
            return self.alias_target.type_name
        if self.kind is RegionKind.RAM_DEVICE:
            return "ramd"
        if self.is_romd:
            return "romd"
        if self.is_ram:
            return "rom" if self.readonly else "ram"
        return "i/o"

    def add_subregion(self, offset: int, region: "MemoryRegion") -> None:
        """Put `region` at `offset`, with priority 0, where no sibling is.

        Raises:
            ValueError: it would overlap a sibling that was not added as overlapping either.
        """
        self._add_subregion(offset, region, 0, may_overlap=False)

    def add_subregion_overlap(self, offset: int, region: "MemoryRegion", priority: int) -> None:
        """Put `region` at `offset`; it may overlap, and wins against lower priorities and earlier equals."""
        self._add_subregion(offset, region, priority, may_overlap=True)

    def del_subregion(self, region: "MemoryRegion") -> None:
        """Take `region` out."""
        if region.container is not self:
            raise ValueError(f"{region!r} is not in '{self.name}'")
        with MemoryTransaction():
            region._place_changed()
            self.subregions.remove(region)
            region.container = None

    def set_enabled(self, enabled: bool) -> None:
        """Make the region, with all in it, there or not there."""
        if enabled != self.enabled:
            with MemoryTransaction():
                self.enabled = enabled
                self._changed(even_disabled=True)

    def set_address(self, addr: int) -> None:
        """Move the region within its container."""
        if addr != self.addr:
            with MemoryTransaction():
                self._place_changed()
                self.addr = addr
                self._requeue()
                self._place_changed()

    def set_size(self, size: int) -> None:
        """Change the size; of what has memory behind it, `resize_ram` does it."""
        if not 0 <= size <= ADDRESS_SPACE_SIZE:
            raise ValueError(f"memory region '{self.name}': size {size:#x} is outside 0..2**64")
        if size != self.size:
            with MemoryTransaction():
                before, self.size = self.size, size
                self._changed(0, max(before, size))

    def resize_ram(self, size: int) -> None:
        """Change the bytes in use of the region's block, and with them the region's size; the block tells its hooks.

        Raises:
            ValueError: the block cannot grow so far, or there is none.
        """
        if self.block is None:
            raise ValueError(f"{self!r} has no memory")
        with MemoryTransaction():
            # What is cut off vanishes from the views before it is given back.
            growing = size > self.block.size
            if growing:
                self.block.resize(size)
            self.set_size(self.block.aligned(size))
        if not growing:
            self.block.resize(size)

    def set_alias_offset(self, offset: int) -> None:
        """Show another part of the target."""
        if self.alias_target is None:
            raise ValueError(f"{self!r} is not an alias")
        if offset != self.alias_offset:
            with MemoryTransaction():
                self.alias_offset = offset
                self._changed()

    def set_readonly(self, readonly: bool) -> None:
        """Drop guest writes to RAM here. On an alias or a container it holds for all that is seen through it."""
        if readonly != self.readonly:
            with MemoryTransaction():
                self.readonly = readonly
                self._changed()

    def set_nonvolatile(self, nonvolatile: bool) -> None:
        """Mark as persistent memory ("nv-" in `info mtree`)."""
        if nonvolatile != self.nonvolatile:
            with MemoryTransaction():
                self.nonvolatile = nonvolatile
                self._changed()

    def set_romd_mode(self, romd_mode: bool) -> None:
        """Of a ROM device: read from memory (True) or from the device."""
        if self.kind is not RegionKind.ROM_DEVICE:
            raise ValueError(f"{self!r} is not a ROM device")
        if romd_mode != self.romd_mode:
            with MemoryTransaction():
                self.romd_mode = romd_mode
                self._changed()

    def add_ioeventfd(self, eventfd: IoEventfd) -> None:
        """Have guest writes that match ring `eventfd` instead of reaching the device."""
        with MemoryTransaction():
            self.ioeventfds = (*self.ioeventfds, eventfd)
            self._update_masks()
            self._changed()

    def del_ioeventfd(self, eventfd: IoEventfd) -> None:
        """Undo `add_ioeventfd`."""
        with MemoryTransaction():
            self.ioeventfds = tuple(e for e in self.ioeventfds if e != eventfd)
            self._update_masks()
            self._changed()

    def set_clock_registers(self, registers: tuple[ClockRegister, ...]) -> None:
        """Which registers read as a function of the clock now, and of which; the device answers them as well."""
        if registers != self.clock_registers:
            with MemoryTransaction():
                self.clock_registers = registers
                self._changed()

    def set_coalescing(self) -> None:
        """Let writes anywhere in the region be collected and delivered together, at the next access that is not."""
        self._set_coalesced(((0, self.size),))

    def add_coalescing(self, offset: int, size: int) -> None:
        """`set_coalescing` for a part of the region."""
        if offset < 0 or size <= 0 or offset + size > self.size:
            raise ValueError(f"{self!r}: no {size:#x} bytes at {offset:#x} to coalesce")
        self._set_coalesced((*self.coalesced, (offset, size)))

    def clear_coalescing(self) -> None:
        """Deliver every write at once again."""
        self._set_coalesced(())

    def _set_coalesced(self, coalesced: tuple[tuple[int, int], ...]) -> None:
        if coalesced != self.coalesced:
            with MemoryTransaction():
                self.coalesced = coalesced
                self._changed()

    def descendants(self) -> Iterator["MemoryRegion"]:
        """The region and everything that can be seen through it, aliases followed."""
        seen = {self}
        stack = [self]
        while stack:
            region = stack.pop()
            yield region
            below = region.subregions if region.alias_target is None else [region.alias_target]
            for other in below:
                if other not in seen:
                    seen.add(other)
                    stack.append(other)

    def _add_subregion(self, offset: int, region: "MemoryRegion", priority: int, *, may_overlap: bool) -> None:
        if region.container is not None:
            raise ValueError(f"{region!r} is already in '{region.container.name}'")
        if self.alias_target is not None:
            raise ValueError(f"{self!r} is an alias: it cannot contain")
        if self in region.descendants():
            raise ValueError(f"{region!r} shows '{self.name}', which cannot therefore contain it")
        clash = next((s for s in self.subregions if not s.may_overlap and _overlap(s, offset, region.size)), None)
        if clash is not None and not may_overlap:
            raise ValueError(f"{region!r} at {offset:#x} would overlap {clash!r} in '{self.name}'")
        with MemoryTransaction():
            region.container = self
            region.addr = offset
            region.priority = priority
            region.may_overlap = may_overlap
            self._queue(region)
            region._place_changed()

    def _queue(self, region: "MemoryRegion") -> None:
        """Insert before the first sibling of no higher priority: the newest of equals is looked at first."""
        siblings = self.subregions
        position = next((i for i, s in enumerate(siblings) if region.priority >= s.priority), len(siblings))
        siblings.insert(position, region)

    def _requeue(self) -> None:
        """A region that moves counts as added anew."""
        if self.container is not None:
            self.container.subregions.remove(self)
            self.container._queue(self)

    def _set_ops(
        self,
        ops: IoOps,
        valid: AccessSizes | None,
        impl: AccessSizes | None,
        endianness: Endianness,
        accepts: Accepts | None,
    ) -> None:
        self.ops = ops
        self.valid = valid or AccessSizes()
        self.impl = impl or AccessSizes()
        self.endianness = endianness
        self.big_endian = endianness is Endianness.BIG
        self.accepts = accepts
        self._update_masks()

    def _update_masks(self) -> None:
        # A RAM device is memory: its accesses are cut where its range ends, which the fast path does not look at.
        simple = self.ops is not None and not self.big_endian and self.accepts is None and not self.is_ram
        low, high = max(self.valid.min, self.impl.min), min(self.valid.max, self.impl.max)
        self.read_masks = tuple(mask if simple and low <= size <= high else 0 for size, mask in enumerate(MASKS))
        self.write_masks = self.read_masks if not self.ioeventfds else _NO_FAST_SIZES

    def _place_changed(self) -> None:
        """Something else is seen where the region lies in its container."""
        if self.container is not None and self.enabled:
            self.container._changed(self.addr, self.addr + self.size)

    def _changed(self, low: int = 0, high: int | None = None, *, even_disabled: bool = False) -> None:
        """Something else is seen at the region's offsets [low, high): mark them stale in every flat view that shows it.

        What lies under a disabled region is seen by nobody above it, so the way up ends there; except that a region
        which becomes disabled vanishes for those above it. Where several ways lead to one region, the marks grow
        together.
        """
        windows: dict[MemoryRegion, tuple[int, int]] = {}
        stack = [(self, low, self.size if high is None else high)]
        while stack:
            region, low, high = stack.pop()
            known = windows.get(region)
            if known is not None:
                if known[0] <= low and high <= known[1]:
                    continue
                low, high = min(known[0], low), max(known[1], high)
            windows[region] = low, high
            region._mark_stale(low, high)
            if region.enabled or (even_disabled and region is self):
                stack.extend(region._shown_by(low, high))

    def _mark_stale(self, low: int, high: int) -> None:
        if self.cached_flat_view is not None:
            stale = self.stale
            self.stale = (low, high) if stale is None else (min(stale[0], low), max(stale[1], high))
        for space in self.address_spaces:
            mark_dirty(space)

    def _shown_by(self, low: int, high: int) -> Iterator[tuple["MemoryRegion", int, int]]:
        """The container and the aliases that show a part of [low, high), and at which of their offsets."""
        container = self.container
        if container is not None:
            start, end = max(low + self.addr, 0), min(high + self.addr, container.size)
            if start < end:
                yield container, start, end
        for alias in self._alias_users or ():
            start, end = max(low - alias.alias_offset, 0), min(high - alias.alias_offset, alias.size)
            if start < end:
                yield alias, start, end


def _overlap(region: MemoryRegion, offset: int, size: int) -> bool:
    return offset < region.addr + region.size and region.addr < offset + size
