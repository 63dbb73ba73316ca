"""Masked moves and gathers: lanes of memory of which each is accessed only where its mask is set."""

from pellucid.cpu.breakpoints import debug_exception
from pellucid.cpu.faults import Stop, undefined
from pellucid.cpu.memory import linear_wrap, load, store
from pellucid.cpu.operands import register, slot_pointer
from pellucid.cpu.segments import check_segment
from pellucid.cpu.simd import clear_above, put, require_writable, source_lanes
from pellucid.cpu.state import (
    DEBUGCTL_BTF, DR6_BS, EXIT_EXCEPTION, MODE_64, MODE_SIZE, RFLAGS_RF, SOFT_NONE, slot_of)
from pellucid.isa.simd import avx, by_mnemonic
from pellucid.native import array, at, local, memset, movemask, native, ptr, sint, u8, u32, u64, uint, vec


@native
def lane_address(s, o, asize, index, offset, size, write):
    """The linear address of a lane: base + index * scale + displacement + offset, in its segment.

    Outside 64-bit mode the segment is checked for each lane that is accessed, and for no other.
    """
    ea = (register(s, o.base, u64) + (index << u64(o.scale)) + u64(o.disp) + offset) & ((1 << (asize * 8)) - 1)
    if (s.mode & MODE_SIZE) != MODE_64:
        check_segment(s, u32((u64(o.seg) - slot_of("seg_base")) >> 3), ea, u64(size), write)
    return linear_wrap(s, ea + register(s, o.seg, u64))


# --- masked moves ----------------------------------------------------------------------------------------


@native(inline=False)
def masked_load(s, o, mask: u64, to: ptr[u8], asize, T, count) -> None:
    """Lanes of T whose bit is set in `mask` to the host's memory; the others become zero."""
    memset(to, 0, u64(count * T.size))
    for i in range(u64(count)):
        if (mask >> i) & 1 != 0:
            lin = lane_address(s, o, asize, register(s, o.index, u64), i * T.size, T.size, False)
            ptr[T](u64(to) + i * T.size)[0] = load(s, lin, T)


@native(inline=False)
def masked_store(s, o, mask: u64, source: u64, asize, T, count) -> None:
    """The other way; every fault comes before the first store."""
    for i in range(u64(count)):
        if (mask >> i) & 1 != 0:
            lin = lane_address(s, o, asize, register(s, o.index, u64), i * T.size, T.size, True)
            require_writable(s, lin, T.size)
    for i in range(u64(count)):
        if (mask >> i) & 1 != 0:
            lin = lane_address(s, o, asize, register(s, o.index, u64), i * T.size, T.size, True)
            store(s, lin, ptr[T](source + i * T.size)[0], T)


_MASKED = {"MASKMOVPS": 4, "MASKMOVPD": 8, "PMASKMOVD": 4, "PMASKMOVQ": 8}


@avx(*_MASKED, extra=by_mnemonic(_MASKED), asize=True)
@native
def masked_move(s, o, f):
    """Operand 1 holds the mask in its lanes' signs."""
    T = uint(f.extra)
    S = source_lanes(f, sint(f.extra))
    V = source_lanes(f, T)
    mask = movemask(slot_pointer(s, o, 1, S)[0] < S(0))
    if f.kinds[0] == "m":
        masked_store(s, o, mask, u64(slot_pointer(s, o, 2, T)), f.asize, T, V.count)
    else:
        found = local(array[u8, 32])
        masked_load(s, o, mask, found, f.asize, T, V.count)
        put(s, o, f, V, ptr[V](found)[0])


# --- gathers ---------------------------------------------------------------------------------------------

_LANES = {"PS": 4, "PD": 8, "DD": 4, "QD": 4, "DQ": 8, "QQ": 8}
_GATHERS = ("PGATHERDD", "PGATHERDQ", "PGATHERQD", "PGATHERQQ", "GATHERDPS", "GATHERDPD", "GATHERQPS", "GATHERQPD")


def gathered(code):
    """`extra`: size of an index * 256 + of a lane * 16 + number of lanes, from the code's name."""
    mnemonic, destination, place = code.split("_")[:3]
    index, lane = (8 if "64" in place else 4), _LANES[mnemonic[-2:]]
    count = min((32 if place.endswith("Y") else 16) // index, (32 if destination == "YMM" else 16) // lane)
    return index << 8 | lane << 4 | count


@native(inline=False)
def gather_lanes(s, o, asize, S, T, count) -> None:
    """Lane after lane, each with its mask cleared: a fault leaves what is done, and the instruction goes on behind it.

    For the same reason a lane that is done empties the log of outside accesses: it is not executed again.
    """
    done: bool = False
    for lane in range(u64(count)):
        mask = at(s, u64(o.src2) + lane * T.size, T)
        if (mask[0] >> (T.bits - 1)) != 0:
            index = at(s, u64(o.index) + lane * S.size, S)[0]
            try:
                lin = lane_address(s, o, asize, u64(index), u64(0), T.size, False)
                at(s, u64(o.dst) + lane * T.size, T)[0] = load(s, lin, T)
            except Stop:
                if done:
                    trap_for_lanes(s)
                raise
            s.replay_count = 0
            s.replay_at = 0
            done = True
        mask[0] = 0


@native(inline=False)
def trap_for_lanes(s) -> None:
    """A fault behind lanes that are done: their traps come in its place, and RF is set so that no instruction
    breakpoint comes twice (SDM vol. 2, VPGATHERDD). Processors take the single step for one of these traps.
    """
    if s.exit_reason == EXIT_EXCEPTION and s.alone != 0:
        traps = s.db_pending
        if s.step_trap != 0 and (s.debugctl & DEBUGCTL_BTF) == 0:
            traps = traps | DR6_BS
        if traps != 0:
            s.exc_access = 0
            debug_exception(s, traps, u32(SOFT_NONE))
            s.flags = s.flags | RFLAGS_RF


@avx(*_GATHERS, extra=gathered, asize=True)
@native
def gather(s, o, f):
    """Operand 2 is the mask; it, the destination and the indices must be three registers (SDM vol. 2, VPGATHERDD)."""
    if o.dst == o.src2 or o.dst == o.index or o.index == o.src2:
        undefined(s)
    T = uint((f.extra >> 4) & 15)
    count = f.extra & 15
    gather_lanes(s, o, f.asize, sint(f.extra >> 8), T, count)
    finish_gather(s, u64(o.dst), count * T.size)
    at(s, u64(o.src2), vec[u64, 4])[0] = vec[u64, 4](0)


@native
def finish_gather(s, slot, size):
    """Zero the register above what was gathered: 8, 16 or 32 bytes."""
    if size == 8:
        at(s, slot + 8, u64)[0] = 0
        clear_above(s, slot, 16)
    else:
        clear_above(s, slot, size)
