"""From an access of an I/O region to calls of its device: which accesses are valid, and how they are split and cut.

Two rules, one after the other. The size of the next piece of an access comes from the region's `valid` sizes and the
address's alignment (`access_size`). A valid piece is then fitted to the sizes that the device implements: larger ones
are put together from several calls, smaller ones cut out of one. The first rule is QEMU's exactly. In the second, QEMU
7.2 hands a too small access to the device at its own, unaligned offset; here the aligned word around it is used, as on
a bus with byte enables, and the bytes of a store that were not given are zero. At aligned offsets the two are the same.
"""

import logging
import os

from pellucid.memory.access import MASKS, MemTxResult, swap_bytes
from pellucid.memory.region import MemoryRegion

trace = logging.getLogger("pellucid.memory.invalid")
"""One DEBUG line for each access that nothing answers, or that its region does not take."""


class UnassignedIoOps:
    """Port space where no device is: reads all ones, as an ISA bus does; writes are dropped. Both are traced."""

    __slots__ = ()

    def read(self, offset: int, size: int) -> int:
        """All ones."""
        trace.debug("port %#x: read of %d bytes, nothing is there", offset, size)
        return MASKS[size]

    def write(self, offset: int, size: int, value: int) -> None:
        """Nothing."""
        trace.debug("port %#x: write of %#x, %d bytes, nothing is there", offset, value, size)


def access_size(region: MemoryRegion, length: int, offset: int) -> int:
    """Bytes of the next piece of an access of `length` bytes at `offset`: what the region takes at this alignment."""
    limit = region.valid.max
    if not region.impl.unaligned and offset:
        limit = min(limit, offset & -offset)
    return 1 << (min(length, limit).bit_length() - 1)


def access_valid(region: MemoryRegion, offset: int, size: int, is_write: bool) -> bool:
    """Whether the region takes this access; one that it does not take is traced with the reason."""
    valid = region.valid
    if region.ops is None:
        reason = "read-only" if is_write and region.is_ram else "nothing is there"
    elif region.accepts is not None and not region.accepts(offset, size, is_write):
        reason = "the device rejects it"
    elif not valid.unaligned and offset & (size - 1):
        reason = "not aligned"
    elif not valid.min <= size <= valid.max:
        reason = f"sizes {valid.min} to {valid.max} only"
    else:
        return True
    what = "write" if is_write else "read"
    trace.debug("'%s'+%#x: invalid %s of %d bytes: %s", region.name, offset, what, size, reason)
    return False


def dispatch_read(region: MemoryRegion, offset: int, size: int) -> tuple[int, MemTxResult]:
    """Read a piece that `access_size` has measured; its little-endian value."""
    if not access_valid(region, offset, size, is_write=False):
        return 0, MemTxResult.DECODE_ERROR
    assert region.ops is not None
    read, impl, big = region.ops.read, region.impl, region.big_endian
    if size > impl.max:
        step, value = impl.max, 0
        for at in range(0, size, step):
            shift = 8 * (size - step - at) if big else 8 * at
            value |= (read(offset + at, step) & MASKS[step]) << shift
    elif size < impl.min:
        start, shift = _surrounding(offset, size, impl.min, impl.unaligned, big)
        value = read(start, impl.min) >> shift & MASKS[size]
    else:
        value = read(offset, size) & MASKS[size]
    return swap_bytes(value, size) if big else value, MemTxResult.OK


def dispatch_write(region: MemoryRegion, offset: int, size: int, value: int) -> MemTxResult:
    """Write a piece that `access_size` has measured; `value` is little-endian and cut to `size`."""
    if not access_valid(region, offset, size, is_write=True):
        return MemTxResult.DECODE_ERROR
    if _ring(region, offset, size, value):
        return MemTxResult.OK
    assert region.ops is not None
    write, impl, big = region.ops.write, region.impl, region.big_endian
    if big:
        value = swap_bytes(value, size)
    if size > impl.max:
        step = impl.max
        for at in range(0, size, step):
            shift = 8 * (size - step - at) if big else 8 * at
            write(offset + at, step, value >> shift & MASKS[step])
    elif size < impl.min:
        start, shift = _surrounding(offset, size, impl.min, impl.unaligned, big)
        write(start, impl.min, value << shift)
    else:
        write(offset, size, value)
    return MemTxResult.OK


def _surrounding(offset: int, size: int, unit: int, unaligned: bool, big: bool) -> tuple[int, int]:
    """Where the `unit` bytes around the access begin, and by how many bits its value is shifted in their value."""
    start = offset if unaligned else offset & -unit
    before = offset - start
    return start, 8 * (unit - size - before) if big else 8 * before


def _ring(region: MemoryRegion, offset: int, size: int, value: int) -> bool:
    """Signal the first ioeventfd that matches; False when none does."""
    for eventfd in region.ioeventfds:
        if eventfd.matches(offset, size, value):
            os.eventfd_write(eventfd.fd, 1)
            return True
    return False
