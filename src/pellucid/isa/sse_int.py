"""Packed integer arithmetic, comparison and shifts; MMX and SSE encodings alike."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.operands import slot_pointer
from pellucid.cpu.simd import half, has_mmx, join, lanes, left, operand, put, right
from pellucid.isa.simd import avx, by_mnemonic, element, vector
from pellucid.native import (
    add_sat, bitcast, i8, i16, i32, i64, maximum, minimum, movemask, native, select, shuffle, sint,
    sub_sat, u8, u16, u32, u64, u128, uint, vec)


def even(count):
    """The numbers of the even lanes among `count`."""
    return list(range(0, count, 2))


def odd(count):
    """The numbers of the odd lanes among `count`."""
    return list(range(1, count, 2))


# --- sums and differences ------------------------------------------------------------------------------


@vector("PADDB", "PADDW", "PADDD", "PADDQ", extra=element)
@native
def padd(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, left(s, o, f, V) + right(s, o, f, V))


@vector("PSUBB", "PSUBW", "PSUBD", "PSUBQ", extra=element)
@native
def psub(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, left(s, o, f, V) - right(s, o, f, V))


@vector("PADDSB", "PADDSW", extra=element)
@native
def padds(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, add_sat(left(s, o, f, V), right(s, o, f, V)))


@vector("PADDUSB", "PADDUSW", extra=element)
@native
def paddus(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, add_sat(left(s, o, f, V), right(s, o, f, V)))


@vector("PSUBSB", "PSUBSW", extra=element)
@native
def psubs(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, sub_sat(left(s, o, f, V), right(s, o, f, V)))


@vector("PSUBUSB", "PSUBUSW", extra=element)
@native
def psubus(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, sub_sat(left(s, o, f, V), right(s, o, f, V)))


@vector("PAVGB", "PAVGW", extra=element)
@native
def pavg(s, o, f):
    V = lanes(f, uint(f.extra))
    W = vec[uint(f.extra * 2), V.count]
    put(s, o, f, V, V((W(left(s, o, f, V)) + W(right(s, o, f, V)) + 1) >> 1))


# --- products ------------------------------------------------------------------------------------------


@vector("PMULLW", "PMULLD", extra=element)
@native
def pmull(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, left(s, o, f, V) * right(s, o, f, V))


@vector("PMULHW")
@native
def pmulhw(s, o, f):
    V = lanes(f, i16)
    W = vec[i32, V.count]
    put(s, o, f, V, V((W(left(s, o, f, V)) * W(right(s, o, f, V))) >> 16))


@vector("PMULHUW")
@native
def pmulhuw(s, o, f):
    V = lanes(f, u16)
    W = vec[u32, V.count]
    put(s, o, f, V, V((W(left(s, o, f, V)) * W(right(s, o, f, V))) >> 16))


@vector("PMULHRSW")
@native
def pmulhrsw(s, o, f):
    V = lanes(f, i16)
    W = vec[i32, V.count]
    put(s, o, f, V, V((((W(left(s, o, f, V)) * W(right(s, o, f, V))) >> 14) + 1) >> 1))


@vector("PMULUDQ")
@native
def pmuludq(s, o, f):
    V = lanes(f, u64)
    put(s, o, f, V, (left(s, o, f, V) & 0xFFFF_FFFF) * (right(s, o, f, V) & 0xFFFF_FFFF))


@vector("PMULDQ")
@native
def pmuldq(s, o, f):
    V = lanes(f, i64)
    put(s, o, f, V, ((left(s, o, f, V) << 32) >> 32) * ((right(s, o, f, V) << 32) >> 32))


@vector("PMADDWD")
@native
def pmaddwd(s, o, f):
    V = lanes(f, i16)
    W = vec[i32, V.count]
    p = W(left(s, o, f, V)) * W(right(s, o, f, V))
    put(s, o, f, lanes(f, i32), shuffle(p, p, even(V.count)) + shuffle(p, p, odd(V.count)))


@vector("PMADDUBSW")
@native
def pmaddubsw(s, o, f):
    """Unsigned bytes of the destination times signed bytes of the source; a product fits 16 bits, a sum saturates."""
    U = lanes(f, u8)
    W = vec[i16, U.count]
    p = W(left(s, o, f, U)) * W(right(s, o, f, lanes(f, i8)))
    put(s, o, f, lanes(f, i16), add_sat(shuffle(p, p, even(U.count)), shuffle(p, p, odd(U.count))))


# --- comparison ----------------------------------------------------------------------------------------


@vector("PCMPEQB", "PCMPEQW", "PCMPEQD", "PCMPEQQ", extra=element)
@native
def pcmpeq(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, select(left(s, o, f, V) == right(s, o, f, V), V(-1), V(0)))


@vector("PCMPGTB", "PCMPGTW", "PCMPGTD", "PCMPGTQ", extra=element)
@native
def pcmpgt(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, select(left(s, o, f, V) > right(s, o, f, V), V(-1), V(0)))


@vector("PMINSB", "PMINSW", "PMINSD", extra=element)
@native
def pmins(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, minimum(left(s, o, f, V), right(s, o, f, V)))


@vector("PMINUB", "PMINUW", "PMINUD", extra=element)
@native
def pminu(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, minimum(left(s, o, f, V), right(s, o, f, V)))


@vector("PMAXSB", "PMAXSW", "PMAXSD", extra=element)
@native
def pmaxs(s, o, f):
    V = lanes(f, sint(f.extra))
    put(s, o, f, V, maximum(left(s, o, f, V), right(s, o, f, V)))


@vector("PMAXUB", "PMAXUW", "PMAXUD", extra=element)
@native
def pmaxu(s, o, f):
    V = lanes(f, uint(f.extra))
    put(s, o, f, V, maximum(left(s, o, f, V), right(s, o, f, V)))


@vector("PTEST", cc_out=CC_UNKNOWN)
@native
def ptest(s, o, f):
    V = lanes(f, u64)
    set_test_flags(s, operand(s, o, f, 0, V), operand(s, o, f, 1, V), V)


@native
def set_test_flags(s, a, b, V):
    """ZF where a and b have no bit in common, CF where b has none that a lacks."""
    every = (1 << V.count) - 1
    set_eflags(s, (u64(movemask((a & b) == V(0)) == every) << 6) | u64(movemask((~a & b) == V(0)) == every))


@avx("TESTPS", "TESTPD", cc_out=CC_UNKNOWN, extra=by_mnemonic({"TESTPS": 4, "TESTPD": 8}))
@native
def test_signs(s, o, f):
    """PTEST of the lanes' signs alone."""
    S = lanes(f, sint(f.extra))
    V = lanes(f, u64)
    a = bitcast(V, operand(s, o, f, 0, S) >> S(S.element.bits - 1))
    b = bitcast(V, operand(s, o, f, 1, S) >> S(S.element.bits - 1))
    set_test_flags(s, a, b, V)


# --- shifts --------------------------------------------------------------------------------------------


@native
def shift_count(s, o, f):
    """The count: an immediate byte, or the low 64 bits of the last operand (SDM vol. 2, PSLLW)."""
    if f.kinds[-1] == "i":
        return o.imm & 0xFF
    return operand(s, o, f, len(f.kinds) - 1, vec[u64, 1 if has_mmx(f) else 2])[0]


def shifted(f):
    """The number of the operand that a shift shifts."""
    return len(f.kinds) - 2


@native
def shift_operands(s, o, f, V):
    """What is shifted, and the count in every lane, no larger than the lane's width."""
    count = shift_count(s, o, f)
    a = operand(s, o, f, shifted(f), V)
    return a, V(V.element(minimum(count, u64(V.element.bits))))


@vector("PSLLW", "PSLLD", "PSLLQ", extra=element)
@native
def psll(s, o, f):
    V = lanes(f, uint(f.extra))
    a, n = shift_operands(s, o, f, V)
    put(s, o, f, V, a << n)


@vector("PSRLW", "PSRLD", "PSRLQ", extra=element)
@native
def psrl(s, o, f):
    V = lanes(f, uint(f.extra))
    a, n = shift_operands(s, o, f, V)
    put(s, o, f, V, a >> n)


@vector("PSRAW", "PSRAD", extra=element)
@native
def psra(s, o, f):
    V = lanes(f, sint(f.extra))
    a, n = shift_operands(s, o, f, V)
    put(s, o, f, V, a >> n)


@vector("PSLLDQ", "PSRLDQ", extra=by_mnemonic({"PSLLDQ": 0, "PSRLDQ": 1}))
@native
def shift_bytes(s, o, f):
    """Every 16 bytes by themselves."""
    if f.widths[0] == 32:
        V = lanes(f, u64)
        a = slot_pointer(s, o, shifted(f), V)[0]
        put(s, o, f, V, join(shifted_bytes(half(a, 0), o, f), shifted_bytes(half(a, 1), o, f)))
    else:
        put(s, o, f, u128, shifted_bytes(slot_pointer(s, o, shifted(f), u128)[0], o, f))


@native
def shifted_bytes(value, o, f):
    """16 bytes shifted left (f.extra = 0) or right by as many bytes as the immediate says."""
    n = (o.imm & 0xFF) << 3
    return value << n if f.extra == 0 else value >> n


# --- sign and magnitude --------------------------------------------------------------------------------


@vector("PABSB", "PABSW", "PABSD", extra=element)
@native
def pabs(s, o, f):
    V = lanes(f, sint(f.extra))
    a = operand(s, o, f, 1, V)
    put(s, o, f, V, select(a < V(0), -a, a))


@vector("PSIGNB", "PSIGNW", "PSIGND", extra=element)
@native
def psign(s, o, f):
    V = lanes(f, sint(f.extra))
    a = left(s, o, f, V)
    b = right(s, o, f, V)
    put(s, o, f, V, select(b < V(0), -a, select(b == V(0), V(0), a)))
