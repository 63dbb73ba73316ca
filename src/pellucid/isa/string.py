"""String instructions: MOVS, STOS, LODS, CMPS, SCAS, alone and with REP, REPE, REPNE (SDM vol. 2).

MOVS, STOS and LODS take F2 for REP too, as processors do.
"""

from pellucid.cpu.flags import CC_SUB, CC_UNKNOWN, set_cc
from pellucid.cpu.memory import load, store
from pellucid.cpu.operands import set_gpr
from pellucid.cpu.code_cache import Op
from pellucid.cpu.strings import (
    LOG2, RAX, RCX, RDI, RSI, backwards, check_destination, check_source, chunk, destination_linear, destination_room,
    forget_replay, interrupted, pointer, readable, set_pointer, source_linear, source_room, stride, writable)
from pellucid.isa.table import instruction
from pellucid.native import memcpy, memset, minimum, native, ptr, u8, u64, uint

_REP = ("", "rep", "repne")
_SIZES = {"B": 1, "W": 2, "D": 4, "Q": 8}


def string_width(code):
    """Element size in bytes: MOVSB_M8_M8 1, STOSQ_M64_RAX 8."""
    return _SIZES[code.split("_")[0][-1]]


def _not_sse(code):
    """MOVSD and CMPSD are SSE2 instructions too."""
    return "XMM" not in code


def _all_sizes(name):
    return tuple(name + size for size in "BWDQ")


@native
def advance(s, number, n, w, asize):
    """Move RSI or RDI by n elements."""
    set_pointer(s, number, asize, s.gpr[number] + n * stride(s, w))


@native
def count_down(s, count, n, asize):
    set_pointer(s, RCX, asize, count - n)


# --- MOVS ------------------------------------------------------------------------------------------------


@instruction(*_all_sizes("MOVS"), codes=_not_sse, width=string_width, asize=True, stack=True, rep=_REP)
@native
def movs(s, o, f):
    if f.rep == "":
        move_element(s, o, f.w, f.asize, f.m64)
    else:
        repeat_movs(s, o, f.w, f.asize, f.m64)


@native
def move_element(s, o, w, asize, m64):
    T = uint(w)
    source = pointer(s, RSI, asize)
    destination = pointer(s, RDI, asize)
    check_source(s, o, source, w, m64)
    check_destination(s, destination, w, m64, True)
    value = load(s, source_linear(s, o, source, m64), T)
    store(s, destination_linear(s, destination, m64), value, T)
    advance(s, RSI, u64(1), w, asize)
    advance(s, RDI, u64(1), w, asize)


@native(inline=False)
def repeat_movs(s, o: ptr[Op], w, asize, m64) -> None:
    count = pointer(s, RCX, asize)
    while count != 0:
        n = move_chunk(s, o, count, w, asize, m64)
        if n == 0:
            move_element(s, o, w, asize, m64)
            forget_replay(s)
            n = u64(1)
        count = count - n
        set_pointer(s, RCX, asize, count)
        if count != 0:
            interrupted(s)


@native
def move_chunk(s, o, count, w, asize, m64):
    """Move what lies in one page on both sides; how many elements, 0 when it must go one by one."""
    source = pointer(s, RSI, asize)
    destination = pointer(s, RDI, asize)
    from_ = source_linear(s, o, source, m64)
    to = destination_linear(s, destination, m64)
    n = chunk(s, count, minimum(source_room(s, o, source, from_, w, asize, m64),
                                destination_room(s, destination, to, w, asize, m64, True)))
    if n != 0:
        a = readable(s, from_)
        b: u64 = 0
        if a != 0:
            b = writable(s, to, n << LOG2[w], ((n - 1) << LOG2[w]) if backwards(s) else u64(0))
        if b == 0:
            return u64(0)
        copy_elements(a, b, n, stride(s, w), w)
        advance(s, RSI, n, w, asize)
        advance(s, RDI, n, w, asize)
    return n


@native
def copy_elements(a, b, n, step, w):
    """Copy n elements in order: where the ranges overlap, later elements read what earlier ones wrote."""
    T = uint(w)
    size = n << LOG2[w]
    if step == w and b - a >= size and a - b >= size:
        memcpy(ptr[u8](b), ptr[u8](a), size)
    else:
        i: u64 = 0
        while i != n * step:
            ptr[T](b + i)[0] = ptr[T](a + i)[0]
            i += step


# --- STOS ------------------------------------------------------------------------------------------------


@instruction(*_all_sizes("STOS"), width=string_width, asize=True, stack=True, rep=_REP)
@native
def stos(s, o, f):
    if f.rep == "":
        store_element(s, f.w, f.asize, f.m64)
    else:
        repeat_stos(s, f.w, f.asize, f.m64)


@native
def store_element(s, w, asize, m64):
    T = uint(w)
    destination = pointer(s, RDI, asize)
    check_destination(s, destination, w, m64, True)
    store(s, destination_linear(s, destination, m64), T(s.gpr[RAX]), T)
    advance(s, RDI, u64(1), w, asize)


@native(inline=False)
def repeat_stos(s, w, asize, m64) -> None:
    count = pointer(s, RCX, asize)
    while count != 0:
        n = store_chunk(s, count, w, asize, m64)
        if n == 0:
            store_element(s, w, asize, m64)
            forget_replay(s)
            n = u64(1)
        count = count - n
        set_pointer(s, RCX, asize, count)
        if count != 0:
            interrupted(s)


@native
def store_chunk(s, count, w, asize, m64):
    destination = pointer(s, RDI, asize)
    to = destination_linear(s, destination, m64)
    n = chunk(s, count, destination_room(s, destination, to, w, asize, m64, True))
    if n != 0:
        back = ((n - 1) << LOG2[w]) if backwards(s) else u64(0)
        b = writable(s, to, n << LOG2[w], back)
        if b == 0:
            return u64(0)
        fill_elements(b - back, n, uint(w)(s.gpr[RAX]), w)
        advance(s, RDI, n, w, asize)
    return n


@native
def fill_elements(b, n, value, w):
    T = uint(w)
    byte = u8(value)
    if u64(value) == (u64(byte) * 0x0101_0101_0101_0101) & ((1 << (w * 8)) - 1):
        memset(ptr[u8](b), byte, n << LOG2[w])
    else:
        for i in range(n):
            ptr[T](b)[i] = value


# --- LODS ------------------------------------------------------------------------------------------------


@instruction(*_all_sizes("LODS"), width=string_width, asize=True, stack=True, rep=_REP)
@native
def lods(s, o, f):
    if f.rep == "":
        load_element(s, o, f.w, f.asize, f.m64)
    else:
        repeat_lods(s, o, f.w, f.asize, f.m64)


@native
def load_element(s, o, w, asize, m64):
    source = pointer(s, RSI, asize)
    check_source(s, o, source, w, m64)
    value = load(s, source_linear(s, o, source, m64), uint(w))
    set_gpr(s, RAX, w, value)
    advance(s, RSI, u64(1), w, asize)


@native(inline=False)
def repeat_lods(s, o: ptr[Op], w, asize, m64) -> None:
    """One by one: only the last element stays, so nobody repeats LODS in earnest."""
    count = pointer(s, RCX, asize)
    while count != 0:
        load_element(s, o, w, asize, m64)
        forget_replay(s)
        count = count - 1
        set_pointer(s, RCX, asize, count)
        if count != 0:
            interrupted(s)


# --- SCAS ------------------------------------------------------------------------------------------------


@instruction(*_all_sizes("SCAS"), width=string_width, asize=True, stack=True, rep=_REP, cc_out=CC_UNKNOWN)
@native
def scas(s, o, f):
    if f.rep == "":
        T = uint(f.w)
        a = T(s.gpr[RAX])
        b = scan_element(s, f.w, f.asize, f.m64)
        advance(s, RDI, u64(1), f.w, f.asize)
        set_cc(s, CC_SUB, f.w, a - b, b)
    else:
        repeat_scas(s, f.rep == "rep", f.w, f.asize, f.m64)


@native
def scan_element(s, w, asize, m64):
    destination = pointer(s, RDI, asize)
    check_destination(s, destination, w, m64, False)
    return load(s, destination_linear(s, destination, m64), uint(w))


@native(inline=False)
def repeat_scas(s, while_equal, w, asize, m64) -> None:
    """The flags change when the instruction ends or is interrupted, not when it faults."""
    T = uint(w)
    a = T(s.gpr[RAX])
    b = T(0)
    count = pointer(s, RCX, asize)
    if count == 0:
        return
    while True:
        destination = pointer(s, RDI, asize)
        lin = destination_linear(s, destination, m64)
        n = chunk(s, count, destination_room(s, destination, lin, w, asize, m64, False))
        host: u64 = 0
        if n != 0:
            host = readable(s, lin)
        if host != 0:
            n = scan(host, n, stride(s, w), a, while_equal, T)
            b = ptr[T](host + (n - 1) * stride(s, w))[0]
        else:
            b = scan_element(s, w, asize, m64)
            n = u64(1)
            forget_replay(s)
        advance(s, RDI, n, w, asize)
        count = count - n
        set_pointer(s, RCX, asize, count)
        if count == 0 or (a == b) != while_equal:
            break
        if s.pending != 0:
            break
    set_cc(s, CC_SUB, w, a - b, b)
    if count != 0 and (a == b) == while_equal:
        interrupted(s)


@native
def scan(host, n, step, value, while_equal, T):
    """How many of n elements are looked at until one ends the scan, itself included."""
    i: u64 = 0
    at = host
    while i < n:
        x = ptr[T](at)[0]
        i += 1
        if (x == value) != while_equal:
            break
        at = at + step
    return i


# --- CMPS ------------------------------------------------------------------------------------------------


@instruction(*_all_sizes("CMPS"), codes=_not_sse, width=string_width, asize=True, stack=True, rep=_REP,
             cc_out=CC_UNKNOWN)
@native
def cmps(s, o, f):
    if f.rep == "":
        a, b = compare_element(s, o, f.w, f.asize, f.m64)
        advance(s, RSI, u64(1), f.w, f.asize)
        advance(s, RDI, u64(1), f.w, f.asize)
        set_cc(s, CC_SUB, f.w, a - b, b)
    else:
        repeat_cmps(s, o, f.rep == "rep", f.w, f.asize, f.m64)


@native
def compare_element(s, o, w, asize, m64):
    source = pointer(s, RSI, asize)
    destination = pointer(s, RDI, asize)
    check_source(s, o, source, w, m64)
    a = load(s, source_linear(s, o, source, m64), uint(w))
    check_destination(s, destination, w, m64, False)
    b = load(s, destination_linear(s, destination, m64), uint(w))
    return a, b


@native(inline=False)
def repeat_cmps(s, o: ptr[Op], while_equal, w, asize, m64) -> None:
    T = uint(w)
    a = T(0)
    b = T(0)
    count = pointer(s, RCX, asize)
    if count == 0:
        return
    while True:
        source = pointer(s, RSI, asize)
        destination = pointer(s, RDI, asize)
        left = source_linear(s, o, source, m64)
        right = destination_linear(s, destination, m64)
        n = chunk(s, count, minimum(source_room(s, o, source, left, w, asize, m64),
                                    destination_room(s, destination, right, w, asize, m64, False)))
        first: u64 = 0
        second: u64 = 0
        if n != 0:
            first = readable(s, left)
            second = readable(s, right)
        if first != 0 and second != 0:
            n = compare(first, second, n, stride(s, w), while_equal, T)
            a = ptr[T](first + (n - 1) * stride(s, w))[0]
            b = ptr[T](second + (n - 1) * stride(s, w))[0]
        else:
            a, b = compare_element(s, o, w, asize, m64)
            n = u64(1)
            forget_replay(s)
        advance(s, RSI, n, w, asize)
        advance(s, RDI, n, w, asize)
        count = count - n
        set_pointer(s, RCX, asize, count)
        if count == 0 or (a == b) != while_equal:
            break
        if s.pending != 0:
            break
    set_cc(s, CC_SUB, w, a - b, b)
    if count != 0 and (a == b) == while_equal:
        interrupted(s)


@native
def compare(first, second, n, step, while_equal, T):
    """How many of n pairs are looked at until one ends the comparison, itself included."""
    i: u64 = 0
    at: u64 = 0
    while i < n:
        x = ptr[T](first + at)[0]
        y = ptr[T](second + at)[0]
        i += 1
        if (x == y) != while_equal:
            break
        at = at + step
    return i
