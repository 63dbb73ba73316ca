"""Coalesced writes: those that only prepare a later access are collected, and the vCPU goes on without an exit.

A machine registers zones (a VGA index port, a network card's ring registers). Writes to them go to a ring that all
vCPUs of a VM share; the machine takes them, in their order, whenever a vCPU has left the guest, before it handles the
exit. When the ring is full, a write exits as any other.
"""

import collections
import threading
from typing import NamedTuple

from pellucid.kvm.errors import InvalidRequestError

MOST_WRITES = 170
"""As many as KVM's ring has room for in its page."""


class CoalescedWrite(NamedTuple):
    """One collected write; `pio`: to a port."""

    pio: bool
    address: int
    size: int
    value: int


class CoalescedRing:
    """The zones of a VM and the writes that were collected. False while there are none, which needs no lock to know."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._zones: dict[bool, tuple[range, ...]] = {False: (), True: ()}
        self._writes: collections.deque[CoalescedWrite] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._writes)

    def register(self, address: int, size: int, *, pio: bool) -> None:
        """Collect writes that lie wholly in [address, address+size)."""
        if size <= 0:
            raise InvalidRequestError(f"a coalesced zone of {size} bytes")
        with self._lock:
            self._zones[pio] = (*self._zones[pio], range(address, address + size))

    def unregister(self, address: int, size: int, *, pio: bool) -> None:
        """Undo `register`; `InvalidRequestError` when there is no such zone."""
        zone = range(address, address + size)
        with self._lock:
            if zone not in self._zones[pio]:
                raise InvalidRequestError(f"no coalesced zone of {size} bytes at {address:#x}")
            left = list(self._zones[pio])
            left.remove(zone)
            self._zones[pio] = tuple(left)

    def has_zones(self, pio: bool) -> bool:
        """Whether any write is collected."""
        return bool(self._zones[pio])

    def collect(self, write: CoalescedWrite) -> bool:
        """A guest's write: keep it, if it is in a zone and there is room. From any vCPU's thread."""
        for zone in self._zones[write.pio]:
            if zone.start <= write.address and write.address + write.size <= zone.stop:
                if len(self._writes) >= MOST_WRITES:
                    return False
                self._writes.append(write)
                return True
        return False

    def take(self) -> list[CoalescedWrite]:
        """What was collected, oldest first. One caller at a time, which delivers it before the next one takes."""
        return [self._writes.popleft() for _ in range(len(self._writes))]
