"""Queued invalidation (6.5.2): descriptors of 16 bytes in a ring in memory, taken from head to tail.

All that stand in the ring are done at once when the tail moves, at most as many as it holds (32,768). A descriptor that
is none stops the queue.
"""

from collections.abc import Callable

from pellucid.machine.vtd.faults import Events
from pellucid.machine.vtd.registers import MOST_ADDRESS_MASK
from pellucid.machine.vtd.tables import Translator, read_ram
from pellucid.memory import AddressSpace

SIZE = 16
CONTEXT_CACHE, IOTLB, DEVICE_IOTLB, INTERRUPT_ENTRIES, WAIT = 1, 2, 3, 4, 5
GLOBAL, DOMAIN, SELECTIVE = 1, 2, 3
WAIT_INTERRUPT, WAIT_STATUS = 1 << 4, 1 << 5
LOW_64 = (1 << 64) - 1
RESERVED = {
    CONTEXT_CACHE: 0xFFFF_FFFF_FFFF_FFFF << 64 | 0xFFFC_0000_0000_FFC0,
    IOTLB: 0xF80 << 64 | 0xFFFF_FFFF_0000_FF00,
    DEVICE_IOTLB: 0xFFE << 64 | 0xFFFF_0000_0000_FFE0,
    INTERRUPT_ENTRIES: 0xFFFF_FFFF_FFFF_FFFF << 64 | 0xFFFF_0000_07FF_FFE0,
    WAIT: 0x3 << 64 | 0xFFFF_FF80,
}
"""Bits that are zero, by type."""


class Queue:
    """Does descriptors. `table` is the ring's address register as latched, `head` the byte offset of the next one."""

    def __init__(self, memory: AddressSpace, translator: Translator, events: Events) -> None:
        self._memory, self._translator, self._events = memory, translator, events
        self._act: dict[int, Callable[[int], bool]] = {
            CONTEXT_CACHE: self._context_cache, IOTLB: self._iotlb, WAIT: self._wait,
            # Neither a device's own cache nor a copy of the interrupt table is kept: nothing to do.
            DEVICE_IOTLB: lambda descriptor: True, INTERRUPT_ENTRIES: lambda descriptor: True,
        }  # fmt: skip

    def run(self, table: int, head: int, tail: int) -> int:
        """Do what stands from `head` up to `tail`; where it stopped, behind the last one done."""
        base, length = table & ~0xFFF, 1 << (table & 7) + 12
        if tail >= length:
            self._events.queue_error()
            return head
        while head != tail:
            descriptor = read_ram(self._memory, base + head, SIZE)
            if descriptor is None or not self._do(descriptor):
                self._events.queue_error()
                return head
            head = (head + SIZE) % length
        return head

    def _do(self, descriptor: int) -> bool:
        """Whether it was one."""
        kind = descriptor & 0xF
        act = self._act.get(kind)
        return act is not None and not descriptor & RESERVED[kind] and act(descriptor)

    def _context_cache(self, descriptor: int) -> bool:
        return invalidate_contexts(
            self._translator, descriptor >> 4 & 3, descriptor >> 16 & 0xFFFF, descriptor >> 32 & 0xFFFF,
            descriptor >> 48 & 3)  # fmt: skip

    def _iotlb(self, descriptor: int) -> bool:
        high = descriptor >> 64
        return invalidate_pages(self._translator, descriptor >> 4 & 3, descriptor >> 16 & 0xFFFF, high)

    def _wait(self, descriptor: int) -> bool:
        if descriptor & WAIT_STATUS:
            view = self._memory.map(descriptor >> 64, 4, True)
            if view is not None and view[2] == 4:
                # RAM alone: a status that went to a register of this unit would have it run its queue from within.
                self._memory.write_bytes(descriptor >> 64, (descriptor >> 32 & 0xFFFF_FFFF).to_bytes(4, "little"))
        if descriptor & WAIT_INTERRUPT:
            self._events.wait_completed()
        return True


def invalidate_contexts(translator: Translator, granularity: int, domain: int, source: int, mask: int) -> bool:
    """Context entries: all, a domain's, or a source's with `mask` function bits ignored. Pages stay (6.5.1.1)."""
    if granularity == GLOBAL:
        translator.forget_contexts()
    elif granularity == DOMAIN:
        translator.forget_contexts(domain)
    elif granularity == SELECTIVE:
        translator.forget_contexts(source=(source, mask))
    return granularity != 0


def invalidate_pages(translator: Translator, granularity: int, domain: int, address: int) -> bool:
    """Translations: all, a domain's, or pages of it: `address` has their number's logarithm in bits 5:0."""
    order = address & 0x3F
    if granularity == GLOBAL:
        translator.forget_pages()
    elif granularity == DOMAIN:
        translator.forget_pages(domain)
    elif granularity == SELECTIVE and order <= MOST_ADDRESS_MASK:
        translator.forget_pages(domain, address, order)
    else:
        return False
    return True
