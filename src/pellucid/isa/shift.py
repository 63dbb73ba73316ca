"""Shifts and rotates: SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD (SDM vol. 2).

The count is masked to 5 bits, 6 for 64-bit operands. A count of 0 leaves the flags, so what follows knows the kind
of the flags only where the count is the constant 1: the immediate is no part of an instruction's shape.
"""

from pellucid.cpu.flags import CC_SHL, CC_SHR, CC_UNKNOWN, carry, set_cc, set_eflags, status_flags
from pellucid.cpu.operands import read, read_rw, write
from pellucid.cpu.state import RFLAGS_AF, RFLAGS_CF, RFLAGS_OF
from pellucid.isa.table import instruction
from pellucid.native import native, rotl, rotr, sint, u64, uint


def _by_one(code):
    """SHL_RM32_1: the count is the constant 1."""
    return code.endswith("_1")


def _by_count(code):
    return not code.endswith("_1")


@native
def shift_count(s, o, f, n):
    """The masked count, operand `n`."""
    return u64(read(s, o, f, n)) & (63 if f.widths[0] == 8 else 31)


@native
def shift_left(s, o, f, n):
    T = uint(f.widths[0])
    a = read_rw(s, o, f, 0)
    r = T(u64(a) << n)
    write(s, o, f, 0, r)
    if n != 0:
        set_cc(s, CC_SHL, f.widths[0], r, T(u64(a) << (n - 1)))


@native
def shift_right(s, o, f, n):
    T = uint(f.widths[0])
    a = read_rw(s, o, f, 0)
    r = T(u64(a) >> n)
    write(s, o, f, 0, r)
    if n != 0:
        set_cc(s, CC_SHR, f.widths[0], r, T(u64(a) >> (n - 1)))


@native
def shift_arithmetic(s, o, f, n):
    T = uint(f.widths[0])
    S = sint(f.widths[0])
    wide = sint(8)
    a = read_rw(s, o, f, 0)
    r = T(wide(S(a)) >> n)
    write(s, o, f, 0, r)
    if n != 0:
        set_cc(s, CC_SHR, f.widths[0], r, T(wide(S(a)) >> (n - 1)))


@instruction("SHL", "SAL", codes=_by_one, cc_out=CC_SHL, undefined=RFLAGS_AF, name="shl_1")
@native
def shl_1(s, o, f):
    shift_left(s, o, f, u64(1))


@instruction("SHL", "SAL", codes=_by_count, cc_out=CC_UNKNOWN, undefined=RFLAGS_AF | RFLAGS_OF)
@native
def shl(s, o, f):
    shift_left(s, o, f, shift_count(s, o, f, 1))


@instruction("SHR", codes=_by_one, cc_out=CC_SHR, undefined=RFLAGS_AF, name="shr_1")
@native
def shr_1(s, o, f):
    shift_right(s, o, f, u64(1))


@instruction("SHR", codes=_by_count, cc_out=CC_UNKNOWN, undefined=RFLAGS_AF | RFLAGS_OF)
@native
def shr(s, o, f):
    shift_right(s, o, f, shift_count(s, o, f, 1))


@instruction("SAR", codes=_by_one, cc_out=CC_SHR, undefined=RFLAGS_AF, name="sar_1")
@native
def sar_1(s, o, f):
    shift_arithmetic(s, o, f, u64(1))


@instruction("SAR", codes=_by_count, cc_out=CC_UNKNOWN, undefined=RFLAGS_AF | RFLAGS_OF)
@native
def sar(s, o, f):
    shift_arithmetic(s, o, f, shift_count(s, o, f, 1))


# --- rotates: CF and OF change, the other flags stay -----------------------------------------------------


@native
def rotate_flags(s, cf, of):
    """New CF and OF, each 0 or 1, beside the flags that a rotate keeps."""
    kept = status_flags(s) & ~u64(RFLAGS_CF | RFLAGS_OF)
    set_eflags(s, kept | cf | (of << 11))


@instruction("ROL", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def rol(s, o, f):
    n = shift_count(s, o, f, 1)
    a = read_rw(s, o, f, 0)
    r = rotl(a, n)
    write(s, o, f, 0, r)
    if n != 0:
        cf = u64(r) & 1
        rotate_flags(s, cf, cf ^ u64(r >> (f.widths[0] * 8 - 1)))


@native
def top_two(r, w):
    """OF of a right rotate: whether the two top bits differ."""
    return (u64(r >> (w * 8 - 1)) ^ u64(r >> (w * 8 - 2))) & 1


@instruction("ROR", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def ror(s, o, f):
    n = shift_count(s, o, f, 1)
    a = read_rw(s, o, f, 0)
    r = rotr(a, n)
    write(s, o, f, 0, r)
    if n != 0:
        rotate_flags(s, u64(r >> (f.widths[0] * 8 - 1)), top_two(r, f.widths[0]))


@native
def through_carry(n, w):
    """The count of a rotate through CF: modulo 9 and 17 for 8 and 16 bits (SDM vol. 2, RCL)."""
    if w <= 2:
        return n % (w * 8 + 1)
    return n


@instruction("RCL", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def rcl(s, o, f):
    T = uint(f.widths[0])
    width = f.widths[0] * 8
    n = through_carry(shift_count(s, o, f, 1), f.widths[0])
    c = carry(s)
    a = read_rw(s, o, f, 0)
    r = a
    if n != 0:
        r = (a << n) | (T(c) << (n - 1)) | (a >> (width + 1 - n))
    write(s, o, f, 0, r)
    if n != 0:
        cf = u64(a >> (width - n)) & 1
        rotate_flags(s, cf, cf ^ u64(r >> (width - 1)))


@instruction("RCR", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def rcr(s, o, f):
    T = uint(f.widths[0])
    width = f.widths[0] * 8
    n = through_carry(shift_count(s, o, f, 1), f.widths[0])
    c = carry(s)
    a = read_rw(s, o, f, 0)
    r = a
    if n != 0:
        r = (a >> n) | (T(c) << (width - n)) | (a << (width + 1 - n))
    write(s, o, f, 0, r)
    if n != 0:
        rotate_flags(s, u64(a >> (n - 1)) & 1, top_two(r, f.widths[0]))


# --- double shifts ---------------------------------------------------------------------------------------


@native
def double_left(a, b, n, w):
    """The destination shifted left by n, filled from b. 16 bits by more than 16 (undefined) goes on with a."""
    T = uint(w)
    if w == 2:
        return T(((u64(a) << 32) | (u64(b) << 16) | u64(a)) >> (32 - n))
    return (a << n) | (b >> (w * 8 - n))


@native
def double_right(a, b, n, w):
    T = uint(w)
    if w == 2:
        return T(((u64(a) << 32) | (u64(b) << 16) | u64(a)) >> n)
    return (a >> n) | (b << (w * 8 - n))


@instruction("SHLD", cc_out=CC_UNKNOWN, undefined=RFLAGS_AF | RFLAGS_OF)
@native
def shld(s, o, f):
    w = f.widths[0]
    n = shift_count(s, o, f, 2)
    b = read(s, o, f, 1)
    a = read_rw(s, o, f, 0)
    r = double_left(a, b, n, w)
    write(s, o, f, 0, r)
    if n != 0:
        set_cc(s, CC_SHL, w, r, double_left(a, b, n - 1, w))


@instruction("SHRD", cc_out=CC_UNKNOWN, undefined=RFLAGS_AF | RFLAGS_OF)
@native
def shrd(s, o, f):
    w = f.widths[0]
    n = shift_count(s, o, f, 2)
    b = read(s, o, f, 1)
    a = read_rw(s, o, f, 0)
    r = double_right(a, b, n, w)
    write(s, o, f, 0, r)
    if n != 0:
        set_cc(s, CC_SHR, w, r, double_right(a, b, n - 1, w))
