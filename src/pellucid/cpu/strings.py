"""What string instructions share: their addresses, and how many elements lie together in host memory.

A repeated instruction works in chunks of at most one page. Registers are committed after each chunk, so a fault, an
interrupt or a single step in the middle finds RCX, RSI and RDI at the next element (SDM vol. 1, 7.3.9.2).
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.code_pages import before_pointer_store
from pellucid.cpu.memory import fill, tlb_entry
from pellucid.cpu.operands import register, set_gpr
from pellucid.cpu.segments import check_segment
from pellucid.cpu.state import (
    ATTR_DB, CS, ES, EXIT_PENDING, FS, MODE_SEGMENTED, PAGE, PAGE_MASK, READ, RFLAGS_DF, RFLAGS_RF, RFLAGS_TF, WRITE,
    slot_of)
from pellucid.native import minimum, native, u32, u64

RAX, RCX, RDX, RSI, RDI = 0, 1, 2, 6, 7
_SEGMENT_BASES = slot_of("seg_base")
LOG2 = {1: 0, 2: 1, 4: 2, 8: 3}


def address_mask(asize: int) -> int:
    """The bits of a register that an address of `asize` bytes uses; known at compile time."""
    return (1 << (asize * 8)) - 1


@native
def pointer(s, number, asize):
    """RCX, RSI or RDI by address size, zero-extended."""
    return s.gpr[number] & address_mask(asize)


@native
def set_pointer(s, number, asize, value):
    set_gpr(s, number, asize, value & address_mask(asize))


@native
def backwards(s):
    """Whether DF makes the addresses go down."""
    return (s.flags & RFLAGS_DF) != 0


@native
def stride(s, w):
    """The distance to the next element, modulo 2**64."""
    step: u64 = w
    if backwards(s):
        step = ~u64(w) + 1
    return step


@native
def segment_of(o):
    """The number of the source's segment, from its base slot (outside 64-bit mode)."""
    return u32((u64(o.seg) - _SEGMENT_BASES) >> 3)


@native
def source_linear(s, o, offset, m64):
    """Linear address of DS:RSI, or of the segment that a prefix names."""
    linear = offset + register(s, o.seg, u64)
    return linear if m64 else linear & 0xFFFF_FFFF


@native
def destination_linear(s, offset, m64):
    """Linear address of ES:RDI; ES has no base in 64-bit mode."""
    return offset if m64 else (offset + s.seg_base[ES]) & 0xFFFF_FFFF


@native
def is_checked(s, segment):
    """Whether accesses through a segment need its limit and type checked."""
    return (s.mode & MODE_SEGMENTED) != 0 or segment >= FS or segment == CS


@native
def check_source(s, o, offset, w, m64):
    if not m64:
        if is_checked(s, segment_of(o)):
            check_segment(s, segment_of(o), offset, u64(w), False)


@native
def check_destination(s, offset, w, m64, write):
    if not m64:
        if is_checked(s, u32(ES)):
            check_segment(s, u32(ES), offset, u64(w), write)


@native(inline=False)
def segment_room(s, segment: u32, offset: u64, down: bool) -> u64:
    """How many bytes from `offset`, which was checked, the segment still holds; `down` counts to lower addresses."""
    attr = s.seg_attr[segment]
    limit = u64(s.seg_limit[segment])
    first: u64 = 0
    if (attr & 0x1C) == 0x14:
        first = limit + 1
        limit = 0xFFFF
        if (attr & ATTR_DB) != 0:
            limit = 0xFFFF_FFFF
    if down:
        return offset - first + 1
    return limit - offset + 1


@native
def page_room(s, lin, w):
    """How many elements from `lin` on lie wholly in its page; 0 where the first one crosses."""
    within = lin & (PAGE - 1)
    n: u64 = 0
    if backwards(s):
        if within + w <= PAGE:
            n = (within >> LOG2[w]) + 1
    else:
        n = (PAGE - within) >> LOG2[w]
    return n


@native
def offset_room(s, offset, w, asize):
    """How many elements fit before the address wraps round its size."""
    n: u64 = ~u64(0)
    if asize < 8:
        if backwards(s):
            n = (offset >> LOG2[w]) + 1
        else:
            n = (address_mask(asize) + 1 - offset) >> LOG2[w]
    return n


@native
def source_room(s, o, offset, lin, w, asize, m64):
    """Elements of the source that can be taken at once. Raises the fault of the first one's segment."""
    n = minimum(page_room(s, lin, w), offset_room(s, offset, w, asize))
    if not m64:
        segment = segment_of(o)
        if is_checked(s, segment):
            check_segment(s, segment, offset, u64(w), False)
            n = minimum(n, limited(s, segment, offset, w))
    return n


@native
def destination_room(s, offset, lin, w, asize, m64, write):
    n = minimum(page_room(s, lin, w), offset_room(s, offset, w, asize))
    if not m64:
        if is_checked(s, u32(ES)):
            check_segment(s, u32(ES), offset, u64(w), write)
            n = minimum(n, limited(s, u32(ES), offset, w))
    return n


@native
def limited(s, segment, offset, w):
    """At least one element, for that one was checked; as many more as the segment's limit allows."""
    n = segment_room(s, segment, offset, backwards(s)) >> LOG2[w]
    return n if n != 0 else u64(1)


@native
def chunk(s, count, room):
    """How many elements to do at once: one at a time while single-stepping, none while alignment is checked."""
    n = minimum(count, room)
    if (s.flags & RFLAGS_TF) != 0:
        n = minimum(n, u64(1))
    if (s.align_check | s.watch_data) != 0:
        n = u64(0)
    return n


@native
def readable(s, lin):
    """Host address of a byte to read, or 0 for a device. Raises the fault."""
    e = tlb_entry(s, s.tlb, lin)
    if e.rtag == lin & PAGE_MASK:
        return e.addend + lin
    return fill(s, lin, u32(READ), s.tlb_index)


@native
def writable(s, lin, size, back):
    """Host address of a byte to write, or 0 for a device. Raises the fault.

    Of the `size` bytes about to change, `back` lie below `lin`; all are in its page.
    """
    e = tlb_entry(s, s.tlb, lin)
    if e.wtag == lin & PAGE_MASK:
        return e.addend + lin
    return writable_slow(s, lin, size, back)


@native(inline=False)
def writable_slow(s, lin: u64, size: u64, back: u64) -> u64:
    host = fill(s, lin, u32(WRITE), s.tlb_index)
    if host != 0:
        before_pointer_store(s, s.mmio_gpa - back, size)
    return host


@native
def forget_replay(s):
    """An element is committed: what it read from devices must not serve the next one."""
    s.replay_count = 0
    s.replay_at = 0


@native
def interrupted(s) -> None:
    """Between two chunks: leave when someone asked. RIP stays at the instruction, which then goes on.

    RF keeps an instruction breakpoint from being met again for the rest of it (SDM vol. 3, 17.3.1.1).
    """
    if s.pending != 0:
        s.flags = s.flags | RFLAGS_RF
        s.exit_reason = EXIT_PENDING
        raise Stop
