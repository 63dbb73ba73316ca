"""Vector operands: YMM, XMM and MMX registers, and the memory that stands in for them.

A vector type is `vec[T, n]`; `lanes(f, T)` is the one that fills operand 0, 8 bytes for MMX, 16 for SSE, 16 or 32 for
AVX. An instruction's function is written once for every width and for both encodings: with VEX (f.vex) sources stand
beside the destination, the destination's register is zero above the result (SDM vol. 1, 14.3.1), and memory need not
be aligned.

MMX registers are the significands of the x87's physical registers (SDM vol. 1, 9.2): every MMX instruction but
EMMS makes all tags valid and TOP 0, and a write sets the sixteen bits above the significand.
"""

from pellucid.cpu.faults import alignment, general_protection
from pellucid.cpu.host import MXCSR_MM
from pellucid.cpu.memory import linear_wrap, probe_write, slow_load, slow_store, tlb_entry
from pellucid.cpu.operands import address, slot_pointer
from pellucid.cpu.state import PAGE_MASK
from pellucid.cpu.x87 import X87_ES, pending_exception
from pellucid.native import (
    at, bitcast, foreign, likely, native, permute, ptr, shuffle, u16, u64, u128, uint, unlikely, vec, volatile_load,
    volatile_store)


def lanes(f, T):
    """The vector type of lanes T that fills operand 0."""
    return vec[T, f.widths[0] // T.size]


def source_lanes(f, T):
    """The vector type of lanes T that fills operand 1, a register."""
    return vec[T, f.widths[1] // T.size]


def has_mmx(f):
    """Whether an operand is an MMX register."""
    return "n" in f.kinds


def is_nondestructive(f):
    """Whether there are two vector sources beside the destination (VEX), rather than the destination as first one."""
    return len(f.kinds.rstrip("i")) >= 3


def second(f):
    """The number of the second source's operand."""
    return 2 if is_nondestructive(f) else 1


@native
def load_vector(s, lin, V):
    """Read a V of up to 32 bytes at a linear address."""
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.rtag == (lin + (V.size - 1)) & PAGE_MASK):
        return volatile_load(foreign(ptr[V](e.addend + lin)))
    if V.size == 32:
        return bitcast(V, load_pair(s, lin))
    else:
        return bitcast(V, slow_load(s, lin, uint(V.size), s.tlb_index))


@native(inline=False, spares_registers=True)
def load_pair(s, lin: u64):
    """Read 32 bytes off the fast path: as two times 16."""
    low = slow_load(s, lin, u128, s.tlb_index)
    return join(low, slow_load(s, linear_wrap(s, lin + 16), u128, s.tlb_index))


@native
def join(low, high):
    """32 bytes of two u128."""
    H = vec[u64, 2]
    return shuffle(bitcast(H, low), bitcast(H, high), [0, 1, 2, 3])


@native
def half(a, n):
    """16 bytes, low (0) or high (1), of a vec[u64, 4]."""
    return bitcast(u128, shuffle(a, a, [n * 2, n * 2 + 1]))


@native
def permute_halves(a, numbers, V):
    """Lanes of `a`, a V, by their numbers, every 16 bytes by themselves."""
    if V.size == 32:
        n = V.count // 2
        low, high = list(range(n)), list(range(n, 2 * n))
        first = permute(shuffle(a, a, low), shuffle(numbers, numbers, low))
        last = permute(shuffle(a, a, high), shuffle(numbers, numbers, high))
        return shuffle(first, last, low + high)
    return permute(a, numbers)


@native
def by_immediate(imm, V, bits):
    """A lane's number from so many bits of an immediate: the lowest for lane 0, in every 16 bytes from the first on."""
    return (V(V.element(imm)) >> V([lane * bits % 8 for lane in range(V.count)])) & ((1 << bits) - 1)


@native
def store_vector(s, lin, value, V):
    """Write a V of up to 32 bytes at a linear address."""
    e = tlb_entry(s, s.tlb, lin)
    if likely(e.wtag == (lin + (V.size - 1)) & PAGE_MASK):
        volatile_store(foreign(ptr[V](e.addend + lin)), value)
    elif V.size == 32:
        store_pair(s, lin, bitcast(vec[u64, 4], value))
    else:
        slow_store(s, lin, bitcast(uint(V.size), value), uint(V.size), s.tlb_index)


@native(inline=False, spares_registers=True)
def store_pair(s, lin: u64, value) -> None:
    """Write 32 bytes off the fast path: as two times 16, once both may be written."""
    probe_write(s, lin, u64(32))
    slow_store(s, lin, half(value, 0), u128, s.tlb_index)
    slow_store(s, linear_wrap(s, lin + 16), half(value, 1), u128, s.tlb_index)


@native
def require_writable(s, lin, size):
    """Fault now as a store of `size` bytes would."""
    if unlikely(tlb_entry(s, s.tlb, lin).wtag != (lin + (size - 1)) & PAGE_MASK):
        probe_write(s, lin, u64(size))


@native
def check_aligned(s, lin, size):
    """#GP(0) where a memory operand of 16 or 32 bytes is not aligned (SDM vol. 1, 10.4.1.1 and 14.9)."""
    if size >= 16 and unlikely((lin & (size - 1)) != 0):
        general_protection(s, 0)


@native
def check_operand(s, lin, size):
    """Likewise for an operand of arithmetic, which may be misaligned where MXCSR.MM is set (APM vol. 1, 4.3.2)."""
    if size >= 16 and unlikely((lin & (size - 1)) != 0):
        if (s.mxcsr & MXCSR_MM) == 0:
            general_protection(s, 0)
        elif s.align_check != 0:
            alignment(s)


@native
def check_x87(s):
    """#MF for an x87 exception still pending, before an MMX instruction does anything (SDM vol. 1, 9.5.1)."""
    if unlikely((s.fpu_sw & X87_ES) != 0):
        pending_exception(s)


@native
def enter_mmx(s):
    """What every MMX instruction but EMMS does to the x87 state."""
    s.fpu_top = 0
    s.fpu_tags = 0xFF


@native
def operand(s, o, f, n, V):
    """Vector operand `n`, all of V; 16 bytes of memory must be aligned, but for VEX."""
    if has_mmx(f):
        check_x87(s)
    if f.kinds[n] == "m":
        lin = address(s, o)
        if not f.vex:
            check_operand(s, lin, V.size)
        return load_vector(s, lin, V)
    return slot_pointer(s, o, n, V)[0]


@native
def aligned_operand(s, o, f, n, V):
    """Vector operand `n`, all of V; memory must be aligned (MOVAPS and its kin)."""
    if f.kinds[n] == "m":
        lin = address(s, o)
        check_aligned(s, lin, V.size)
        return load_vector(s, lin, V)
    return operand(s, o, f, n, V)


@native
def left(s, o, f, V):
    """The first source of an operation on two: operand 0 itself, or operand 1 where there are three."""
    return operand(s, o, f, 1 if is_nondestructive(f) else 0, V)


@native
def right(s, o, f, V):
    """The second source of an operation on two."""
    return operand(s, o, f, second(f), V)


@native
def scalar(s, o, f, n, T):
    """The low T of operand `n`: of a vector or general register, or all of a memory operand; no alignment."""
    if has_mmx(f):
        check_x87(s)
    if f.kinds[n] == "m":
        U = uint(f.widths[n])
        if f.widths[n] >= 8:
            return T(bitcast(U, load_vector(s, address(s, o), vec[u64, f.widths[n] // 8])))
        return T(load_vector(s, address(s, o), U))
    return slot_pointer(s, o, n, T)[0]


@native
def extended(T, V, value):
    """A vector V whose low lane is the integer T and whose rest is zero."""
    return bitcast(V, uint(V.size)(value))


@native
def loosely(s, o, f, n, T, V):
    """Operand `n` as a V of which only the low T counts: memory is read no further than T."""
    if f.kinds[n] == "m":
        return extended(T, V, scalar(s, o, f, n, T))
    return slot_pointer(s, o, n, V)[0]


@native
def put(s, o, f, V, value):
    """Replace vector register operand 0."""
    slot_pointer(s, o, 0, V)[0] = value
    if f.vex:
        clear_above(s, u64(o.dst), V.size)
    if f.kinds[0] == "n":
        finish_mmx(s, u64(o.dst))
    elif has_mmx(f):
        enter_mmx(s)


@native
def put_aligned(s, o, f, V, value):
    """Replace vector operand 0, register or memory, which must be aligned."""
    if f.kinds[0] == "m":
        lin = address(s, o)
        check_aligned(s, lin, V.size)
        store_vector(s, lin, value, V)
    else:
        put(s, o, f, V, value)


@native
def put_anywhere(s, o, f, V, value):
    """Replace vector operand 0, register or memory, without alignment."""
    if f.kinds[0] == "m":
        store_vector(s, address(s, o), value, V)
        if has_mmx(f):
            enter_mmx(s)
    else:
        put(s, o, f, V, value)


@native
def finish_mmx(s, slot):
    """After the significand at `slot` was written."""
    at(s, slot + 8, u16)[0] = 0xFFFF
    enter_mmx(s)


@native
def clear_above(s, slot, size):
    """Zero the vector register at state offset `slot` above its low 16 bytes; there is nothing above 32."""
    if size == 16:
        at(s, slot + 16, vec[u64, 2])[0] = vec[u64, 2](0)


@native
def blend_mask(s, o, f, V):
    """The mask of a variable blend: operand 3 (/is4), or XMM0."""
    if f.vex:
        return operand(s, o, f, 3, V)
    return xmm(s, 0, V)


@native
def xmm(s, number, V):
    """XMM register by number, for implicit operands."""
    return ptr[V](u64(s.xmm) + number * 64)[0]


@native
def set_xmm(s, number, value, V):
    """Write an XMM register by number."""
    ptr[V](u64(s.xmm) + number * 64)[0] = value

