"""Multiplication, division and sign extension of the accumulator (SDM vol. 2: MUL, IMUL, DIV, IDIV, CBW, CWD)."""

from pellucid.cpu.faults import divide_error
from pellucid.cpu.flags import CC_MUL, set_cc
from pellucid.cpu.operands import gpr, read, set_gpr, write
from pellucid.cpu.state import RFLAGS_AF, RFLAGS_PF, RFLAGS_SF, RFLAGS_STATUS, RFLAGS_ZF
from pellucid.isa.table import instruction
from pellucid.native import clz, i64, native, sint, u64, u128, uint

RAX, RDX = 0, 2
_UNDEFINED = RFLAGS_SF | RFLAGS_ZF | RFLAGS_AF | RFLAGS_PF


def _one_operand(code):
    return code.count("_") == 1


def _two_operands(code):
    return code.count("_") == 2


def _three_operands(code):
    return code.count("_") == 3


@native
def set_product(s, w, low, high):
    """A double-width product goes to AX, DX:AX, EDX:EAX or RDX:RAX."""
    if w == 1:
        set_gpr(s, RAX, 2, (u64(high) << 8) | u64(low))
    else:
        set_gpr(s, RAX, w, u64(low))
        set_gpr(s, RDX, w, u64(high))


@instruction("MUL", cc_out=CC_MUL, undefined=_UNDEFINED)
@native
def mul(s, o, f):
    w = f.widths[0]
    T = uint(w)
    D = uint(w * 2)
    product = D(gpr(s, RAX, w)) * D(read(s, o, f, 0))
    low = T(product)
    high = T(product >> (w * 8))
    set_product(s, w, low, high)
    set_cc(s, CC_MUL, w, low, high)


@instruction("IMUL", codes=_one_operand, cc_out=CC_MUL, undefined=_UNDEFINED, name="imul_1")
@native
def imul_1(s, o, f):
    w = f.widths[0]
    T = uint(w)
    S = sint(w)
    D = sint(w * 2)
    product = D(S(gpr(s, RAX, w))) * D(S(read(s, o, f, 0)))
    low = T(product)
    set_product(s, w, low, T(product >> (w * 8)))
    set_cc(s, CC_MUL, w, low, u64(D(S(low)) != product))


@native
def signed_product(s, o, f, a, b):
    """Operand 0 becomes the truncated product; CF and OF say whether it was truncated."""
    w = f.widths[0]
    T = uint(w)
    S = sint(w)
    D = sint(w * 2)
    product = D(S(a)) * D(S(b))
    low = T(product)
    write(s, o, f, 0, low)
    set_cc(s, CC_MUL, w, low, u64(D(S(low)) != product))


@instruction("IMUL", codes=_two_operands, cc_out=CC_MUL, undefined=_UNDEFINED, name="imul_2")
@native
def imul_2(s, o, f):
    signed_product(s, o, f, read(s, o, f, 0), read(s, o, f, 1))


@instruction("IMUL", codes=_three_operands, cc_out=CC_MUL, undefined=_UNDEFINED, name="imul_3")
@native
def imul_3(s, o, f):
    signed_product(s, o, f, read(s, o, f, 1), read(s, o, f, 2))


# --- division --------------------------------------------------------------------------------------------


@native(inline=False)
def divide_wide(high: u64, low: u64, divisor: u64) -> u64:
    """The quotient of a 128-bit dividend where it fits 64 bits (high < divisor), by two digits of 32 bits.

    Knuth, The Art of Computer Programming vol. 2, 4.3.1, algorithm D; LLVM's own 128-bit division would be a call
    into the C compiler's library, which a process need not have.
    """
    shift = clz(divisor)
    v = divisor << shift
    v1 = v >> 32
    v0 = v & 0xFFFF_FFFF
    top = (high << shift) | (low >> (64 - shift))
    rest = low << shift
    q1 = divide_digit(top, rest >> 32, v1, v0)
    middle = (top << 32) + (rest >> 32) - q1 * v
    q0 = divide_digit(middle, rest & 0xFFFF_FFFF, v1, v0)
    return (q1 << 32) + q0


@native
def divide_digit(top, following, v1, v0):
    """One digit of the quotient: an estimate by the divisor's first digit, at most two too large."""
    q = top // v1
    r = top - q * v1
    while (q >> 32) != 0 or q * v0 > ((r << 32) | following):
        q = q - 1
        r = r + v1
        if (r >> 32) != 0:
            break
    return q


@native
def set_quotient(s, w, quotient, remainder):
    """AL and AH, or (R/E)AX and (R/E)DX; both are truncated to the operand's width."""
    T = uint(w)
    if w == 1:
        set_gpr(s, RAX, 2, (u64(T(remainder)) << 8) | u64(T(quotient)))
    else:
        set_gpr(s, RAX, w, u64(T(quotient)))
        set_gpr(s, RDX, w, u64(T(remainder)))


@native
def dividend(s, w):
    """AX, DX:AX or EDX:EAX, zero-extended."""
    if w == 1:
        return s.gpr[RAX] & 0xFFFF
    return (u64(gpr(s, RDX, w)) << (w * 8)) | u64(gpr(s, RAX, w))


@instruction("DIV", undefined=RFLAGS_STATUS)
@native
def div(s, o, f):
    w = f.widths[0]
    divisor = u64(read(s, o, f, 0))
    if w == 8:
        high = s.gpr[RDX]
        low = s.gpr[RAX]
        if high >= divisor:
            divide_error(s)
        quotient: u64 = 0
        if high == 0:
            quotient = low // divisor
        else:
            quotient = divide_wide(high, low, divisor)
        set_quotient(s, w, quotient, low - quotient * divisor)
    else:
        whole = dividend(s, w)
        if (whole >> (w * 8)) >= divisor:
            divide_error(s)
        q = whole // divisor
        set_quotient(s, w, q, whole - q * divisor)


@native
def magnitude(x):
    """The absolute value of a 64-bit two's complement number."""
    if i64(x) < 0:
        return ~x + 1
    return x


@native(inline=False)
def divide_signed_wide(s, divisor: u64) -> None:
    """IDIV of RDX:RAX by magnitudes, where the dividend does not fit 64 bits."""
    whole = (u128(s.gpr[RDX]) << 64) | u128(s.gpr[RAX])
    negative = (s.gpr[RDX] >> 63) != 0
    if negative:
        whole = ~whole + 1
    d = magnitude(divisor)
    high = u64(whole >> 64)
    low = u64(whole)
    if high >= d:
        divide_error(s)
    quotient = divide_wide(high, low, d)
    remainder = low - quotient * d
    limit: u64 = 0x7FFF_FFFF_FFFF_FFFF
    opposite = negative != (i64(divisor) < 0)
    if opposite:
        limit = 0x8000_0000_0000_0000
    if quotient > limit:
        divide_error(s)
    s.gpr[RAX] = ~quotient + 1 if opposite else quotient
    s.gpr[RDX] = ~remainder + 1 if negative else remainder


@instruction("IDIV", undefined=RFLAGS_STATUS)
@native
def idiv(s, o, f):
    w = f.widths[0]
    S = sint(w)
    D = sint(min(w * 2, 8))
    divisor = read(s, o, f, 0)
    if divisor == 0:
        divide_error(s)
    if w == 8:
        if s.gpr[RDX] == u64(i64(s.gpr[RAX]) >> 63) and (s.gpr[RAX] << 1 != 0 or s.gpr[RDX] == 0):
            divide_signed(s, w, i64(s.gpr[RAX]), i64(divisor))
        else:
            divide_signed_wide(s, divisor)
    else:
        divide_signed(s, w, i64(D(dividend(s, w))), i64(S(divisor)))


@native
def divide_signed(s, w, whole, divisor):
    """Of 64-bit numbers; towards zero, the remainder has the dividend's sign. The quotient must fit `w` bytes."""
    S = sint(w)
    quotient = signed_quotient(whole, divisor)
    if i64(S(quotient)) != quotient:
        divide_error(s)
    set_quotient(s, w, quotient, whole - quotient * divisor)


@native
def signed_quotient(whole, divisor):
    quotient = u64(magnitude(u64(whole))) // magnitude(u64(divisor))
    if (whole < 0) != (divisor < 0):
        return i64(~quotient + 1)
    return i64(quotient)


# --- sign extension of the accumulator -------------------------------------------------------------------


@instruction("CBW", "CWDE", "CDQE")
@native
def cbw(s, o, f):
    half = f.w // 2
    S = sint(half)
    T = uint(f.w)
    set_gpr(s, RAX, f.w, u64(T(S(gpr(s, RAX, half)))))


@instruction("CWD", "CDQ", "CQO")
@native
def cwd(s, o, f):
    S = sint(f.w)
    T = uint(f.w)
    set_gpr(s, RDX, f.w, u64(T(S(gpr(s, RAX, f.w)) >> (f.w * 8 - 1))))
