"""Memory listeners: told what appears in and vanishes from an address space, in the terms of the flat view."""


from pellucid.memory.access import ClockRegister, IoEventfd
from pellucid.memory.region import MemoryRegion
from pellucid.records import dataclass


@dataclass(frozen=True, slots=True)
class MemoryRegionSection:
    """`size` bytes of an address space from `addr` on, where `region` is seen from its byte `offset` on."""

    region: MemoryRegion
    offset: int
    size: int
    addr: int
    readonly: bool
    nonvolatile: bool = False

    @property
    def hva(self) -> int:
        """Host address of the first byte, of a section that has memory behind it."""
        if self.region.block is None:
            raise ValueError(f"{self.region!r} has no memory")
        return self.region.block.hva + self.offset


class MemoryListener:
    """What to override. For each update: `begin`, all deletions, all additions, `commit`.

    A range that changes in any way is deleted and added. Listeners of lower `priority` hear additions earlier and
    deletions later.
    """

    priority = 0

    def begin(self) -> None:
        """Changes come."""

    def region_add(self, section: MemoryRegionSection) -> None:
        """`section` is there now."""

    def region_del(self, section: MemoryRegionSection) -> None:
        """`section` is there no more."""

    def eventfd_add(self, addr: int, eventfd: IoEventfd) -> None:
        """A doorbell is at `addr` now."""

    def eventfd_del(self, addr: int, eventfd: IoEventfd) -> None:
        """A doorbell is at `addr` no more."""

    def clock_register_add(self, addr: int, register: ClockRegister) -> None:
        """A register that reads as a function of the clock is at `addr` now."""

    def clock_register_del(self, addr: int, register: ClockRegister) -> None:
        """It is at `addr` no more."""

    def coalesced_add(self, addr: int, size: int) -> None:
        """Writes to these addresses may be collected now, and delivered together later."""

    def coalesced_del(self, addr: int, size: int) -> None:
        """No more."""

    def commit(self) -> None:
        """All changes have come."""
