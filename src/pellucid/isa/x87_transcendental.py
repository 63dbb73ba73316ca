"""x87 functions: powers, logarithms, angles, scaling and remainders."""

from pellucid.cpu.host_x87 import X87_BEFORE, binary, careful, consuming, pushing, run_x87, unary
from pellucid.cpu.x87 import (
    C1, C2, CODES, OVERFLOW, UNDERFLOW, begin_x87, high, in_use, mark, place, pop, push, put, put_indefinite, settle)
from pellucid.isa.table import instruction
from pellucid.native import array, local, native, u16, u64

SINGLE = ("FSIN", "FCOS", "F2XM1")


@instruction(*SINGLE, extra=SINGLE.index, fpu=True)
@native
def of_one(s, o, f):
    """ST(0) = function(ST(0)); C2 where the argument is out of range, and stays."""
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0):
        settle(s, o, f, run_x87(s, unary(SINGLE[f.extra].lower()), p, p, p), C1 | C2 if f.extra < 2 else C1)
    elif settle(s, o, f, u16(UNDERFLOW), C1 | C2 if f.extra < 2 else C1):
        put_indefinite(p)
        mark(s, 0)


@instruction("FSCALE", fpu=True)
@native
def fscale(s, o, f):
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0) and in_use(s, 1):
        settle(s, o, f, run_x87(s, binary("fscale"), p, p, place(s, 1)), C1)
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(p)
        mark(s, 0)


REMAINDERS = ("FPREM", "FPREM1")


@instruction(*REMAINDERS, extra=REMAINDERS.index, fpu=True)
@native
def remainder(s, o, f):
    """C0, C3 and C1 are the quotient's low bits; without a quotient C0 and C3 stay, C1 and C2 are clear."""
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0) and in_use(s, 1):
        sw = careful(s, binary(REMAINDERS[f.extra].lower()), u64(p), u64(p), u64(place(s, 1)))
        if (high(p)[0] & 0x7FFF) != 0x7FFF and (sw & ~s.fpu_cw & X87_BEFORE) == 0:
            settle(s, o, f, sw, CODES)
        else:
            settle(s, o, f, sw, C1 | C2)
    elif settle(s, o, f, u16(UNDERFLOW), C1 | C2):
        put_indefinite(p)
        mark(s, 0)


POPPING = ("FYL2X", "FYL2XP1", "FPATAN")


@instruction(*POPPING, extra=POPPING.index, fpu=True)
@native
def of_two_pop(s, o, f):
    """ST(1) = function(ST(0), ST(1)), and pop."""
    begin_x87(s)
    to = place(s, 1)
    if in_use(s, 0) and in_use(s, 1):
        if settle(s, o, f, run_x87(s, consuming(POPPING[f.extra].lower()), to, place(s, 0), to), C1):
            pop(s)
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(to)
        mark(s, 1)
        pop(s)


PUSHING = ("FSINCOS", "FPTAN", "FXTRACT")


@instruction(*PUSHING, extra=PUSHING.index, fpu=True)
@native
def of_one_push(s, o, f):
    """Two results: one replaces ST(0), the other is pushed."""
    begin_x87(s)
    p = place(s, 0)
    above = place(s, 7)
    if not in_use(s, 0) or in_use(s, 7):
        sw = u16(OVERFLOW) if in_use(s, 0) else u16(UNDERFLOW)
        if settle(s, o, f, sw, C1 | C2 if f.extra < 2 else C1):
            put_indefinite(p)
            put_indefinite(above)
            mark(s, 0)
            push(s)
    else:
        r = local(array[u64, 4])
        sw = careful(s, pushing(PUSHING[f.extra].lower()), u64(r), u64(p), u64(p))
        done = settle(s, o, f, sw, C1 | C2 if f.extra < 2 else C1)
        if done and (f.extra == 2 or (sw & C2) == 0):
            put(above, r[0], u16(r[1]))
            put(p, r[2], u16(r[3]))
            push(s)
