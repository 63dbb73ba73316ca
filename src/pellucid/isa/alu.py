"""Integer arithmetic and logic with two operands: ADD to TEST, INC, DEC, NEG, NOT."""

from pellucid.cpu.flags import CC_ADD, CC_DEC, CC_INC, CC_LOGIC, CC_SUB, CC_UNKNOWN, carry, set_cc, set_eflags, szp
from pellucid.cpu.operands import read, read_rw, update
from pellucid.cpu.state import RFLAGS_AF
from pellucid.isa.table import instruction
from pellucid.native import native, u64, uint


@instruction("ADD", lock=True, cc_out=CC_ADD)
@native
def add(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a + b
        if update(s, o, f, 0, a, r):
            break
    set_cc(s, CC_ADD, f.widths[0], r, b)


@instruction("SUB", lock=True, cc_out=CC_SUB)
@native
def sub(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a - b
        if update(s, o, f, 0, a, r):
            break
    set_cc(s, CC_SUB, f.widths[0], r, b)


@instruction("CMP", cc_out=CC_SUB)
@native
def cmp(s, o, f):
    a = read(s, o, f, 0)
    b = read(s, o, f, 1)
    set_cc(s, CC_SUB, f.widths[0], a - b, b)


@native
def logic_flags(s, f, r):
    T = uint(f.widths[0])
    set_cc(s, CC_LOGIC, f.widths[0], r, T(0))


@instruction("AND", lock=True, cc_out=CC_LOGIC, undefined=RFLAGS_AF, name="and")
@native
def and_(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a & b
        if update(s, o, f, 0, a, r):
            break
    logic_flags(s, f, r)


@instruction("OR", lock=True, cc_out=CC_LOGIC, undefined=RFLAGS_AF, name="or")
@native
def or_(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a | b
        if update(s, o, f, 0, a, r):
            break
    logic_flags(s, f, r)


@instruction("XOR", lock=True, cc_out=CC_LOGIC, undefined=RFLAGS_AF)
@native
def xor(s, o, f):
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a ^ b
        if update(s, o, f, 0, a, r):
            break
    logic_flags(s, f, r)


@instruction("TEST", cc_out=CC_LOGIC, undefined=RFLAGS_AF)
@native
def test(s, o, f):
    logic_flags(s, f, read(s, o, f, 0) & read(s, o, f, 1))


@native
def carry_flags(s, f, a, b, r, cf):
    """The flags of ADC and SBB outright: `cf` is the carry out."""
    top = f.widths[0] * 8 - 1
    af = u64(a ^ b ^ r) & RFLAGS_AF
    set_eflags(s, szp(r, f.widths[0]) | cf | af | (u64(overflow(a, b, r) >> top) << 11))


@native
def overflow(a, b, r):
    return (a ^ r) & (b ^ r)


@instruction("ADC", lock=True, cc_out=CC_UNKNOWN)
@native
def adc(s, o, f):
    T = uint(f.widths[0])
    c = carry(s)
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a + b + T(c)
        if update(s, o, f, 0, a, r):
            break
    out = u64(r < a or (c != 0 and r == a))
    carry_flags(s, f, a, b, r, out)


@instruction("SBB", lock=True, cc_out=CC_UNKNOWN)
@native
def sbb(s, o, f):
    T = uint(f.widths[0])
    c = carry(s)
    while True:
        b = read(s, o, f, 1)
        a = read_rw(s, o, f, 0)
        r = a - b - T(c)
        if update(s, o, f, 0, a, r):
            break
    out = u64(a < b or (c != 0 and a == b))
    carry_flags(s, f, a, ~b, r, out)
    s.cc_src = s.cc_src ^ RFLAGS_AF


@instruction("INC", lock=True, cc_out=CC_INC)
@native
def inc(s, o, f):
    c = carry(s)
    while True:
        a = read_rw(s, o, f, 0)
        r = a + 1
        if update(s, o, f, 0, a, r):
            break
    set_cc(s, CC_INC, f.widths[0], r, c)


@instruction("DEC", lock=True, cc_out=CC_DEC)
@native
def dec(s, o, f):
    c = carry(s)
    while True:
        a = read_rw(s, o, f, 0)
        r = a - 1
        if update(s, o, f, 0, a, r):
            break
    set_cc(s, CC_DEC, f.widths[0], r, c)


@instruction("NEG", lock=True, cc_out=CC_SUB)
@native
def neg(s, o, f):
    while True:
        a = read_rw(s, o, f, 0)
        r = -a
        if update(s, o, f, 0, a, r):
            break
    set_cc(s, CC_SUB, f.widths[0], r, a)


@instruction("NOT", lock=True, name="not")
@native
def not_(s, o, f):
    while True:
        a = read_rw(s, o, f, 0)
        if update(s, o, f, 0, a, ~a):
            break


