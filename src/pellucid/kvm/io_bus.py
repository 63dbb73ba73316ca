"""Where an in-kernel device answers a port or MMIO access before the machine hears of it (KVM_PIO_BUS, KVM_MMIO_BUS).

A bus is a sorted list of address ranges, rebuilt at each registration and read without a lock: `read` and `write` are
on the way of every exit. Writes are first offered to the ioeventfds, which match on exact address, length and data,
and at last to the ring of coalesced writes.
"""

from bisect import bisect_right
from collections.abc import Callable

from pellucid.kvm.coalesced import CoalescedRing, CoalescedWrite
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import IoeventfdRegistry
from pellucid.records import dataclass

ReadHandler = Callable[[int, int], int]
"""(offset, size) to the value read."""
WriteHandler = Callable[[int, int, int], None]
"""(offset, size, value)."""


@dataclass(frozen=True, slots=True)
class BusRange:
    """A device's addresses [base, base+length), and its handlers, which see offsets."""

    base: int
    length: int
    read: ReadHandler
    write: WriteHandler


class IoBus:
    """One of a VM's two in-kernel buses; `pio`: the one of the ports."""

    def __init__(
        self, ioeventfds: IoeventfdRegistry, coalesced: CoalescedRing | None = None, *, pio: bool = True
    ) -> None:
        self._ioeventfds = ioeventfds
        self._coalesced = CoalescedRing() if coalesced is None else coalesced
        self._pio = pio
        self._ranges: tuple[BusRange, ...] = ()
        self._bases: tuple[int, ...] = ()

    def register(self, device: BusRange) -> None:
        """Add a device; `InvalidRequestError` when its addresses overlap another's."""
        for other in self._ranges:
            if device.base < other.base + other.length and other.base < device.base + device.length:
                raise InvalidRequestError(f"in-kernel devices at {device.base:#x} and {other.base:#x} overlap")
        ranges = tuple(sorted((*self._ranges, device), key=lambda entry: entry.base))
        # Readers take `_ranges` after `_bases`; neither ever shrinks, so an index from the old bases stays valid, and
        # devices are registered before vCPUs run.
        self._ranges = ranges
        self._bases = tuple(entry.base for entry in ranges)

    def _find(self, address: int, size: int) -> BusRange | None:
        index = bisect_right(self._bases, address) - 1
        if index < 0:
            return None
        found = self._ranges[index]
        return found if address + size <= found.base + found.length else None

    def answers(self, address: int, size: int) -> bool:
        """Whether a read there is an in-kernel device's."""
        return self._find(address, size) is not None

    def read(self, address: int, size: int) -> int | None:
        """The value read, or None when no in-kernel device is there: the access leaves to the machine."""
        found = self._find(address, size)
        return None if found is None else found.read(address - found.base, size)

    def write(self, address: int, size: int, value: int) -> bool:
        """Whether an ioeventfd, an in-kernel device or the ring of coalesced writes took a vCPU's write."""
        if self.write_now(address, size, value):
            return True
        ring = self._coalesced
        return ring.has_zones(self._pio) and ring.collect(CoalescedWrite(self._pio, address, size, value))

    def write_now(self, address: int, size: int, value: int) -> bool:
        """The same without the ring."""
        if self._ioeventfds.signal(address, size, value):
            return True
        found = self._find(address, size)
        if found is None:
            return False
        found.write(address - found.base, size, value)
        return True
