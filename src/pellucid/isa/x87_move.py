"""x87 loads, stores, exchanges, constants and the stack pointer."""

from pellucid.cpu.flags import CC_UNKNOWN, condition
from pellucid.cpu.host_x87 import REGISTER, constant, convert_in, convert_out, run_x87
from pellucid.cpu.memory import probe_write
from pellucid.cpu.operands import address, read, write
from pellucid.cpu.x87 import (
    C1, INDEFINITE, INDEFINITE_HIGH, UNDERFLOW, begin_x87, high, in_use, load_ten, mark, place, pop, push, put,
    put_indefinite, settle, settle_push, store_ten, stored)
from pellucid.isa.table import instruction
from pellucid.native import local, native, u16, u32, u64, uint

# --- loads ---------------------------------------------------------------------------------------------

_LOADS = {("FLD", 4): "flds", ("FLD", 8): "fldl", ("FILD", 2): "filds", ("FILD", 4): "fildl", ("FILD", 8): "fildll",
          ("FBLD", 10): "fbld"}


def _name(names: tuple[str, ...]):
    return lambda code: names.index(code.split("_")[0])


@native
def push_converted(s, o, f, op, b):
    """Push what `op` makes of the memory operand at `b`."""
    if in_use(s, 7):
        if settle_push(s, o, f):
            put_indefinite(place(s, 7))
            push(s)
    else:
        sw = run_x87(s, op, place(s, 7), b, b)
        settle(s, o, f, sw, C1)
        if (sw & ~s.fpu_cw & op.stops) == 0:
            push(s)


FROM_MEMORY = ("FLD", "FILD")


@instruction(*FROM_MEMORY, codes=lambda c: "_M" in c and "80" not in c, extra=_name(FROM_MEMORY), fpu=True)
@native
def load_converted(s, o, f):
    begin_x87(s)
    b = local(REGISTER)
    b[0] = u64(read(s, o, f, 0))
    push_converted(s, o, f, convert_in(_LOADS[FROM_MEMORY[f.extra], f.widths[0]]), b)


@instruction("FBLD", fpu=True)
@native
def fbld(s, o, f):
    begin_x87(s)
    b = local(REGISTER)
    load_ten(s, o, b)
    push_converted(s, o, f, convert_in("fbld"), b)


@instruction("FLD", codes=lambda c: "M80" in c, fpu=True)
@native
def fld_extended(s, o, f):
    """All 80 bits, whatever they are: no conversion and no exception but a full stack."""
    begin_x87(s)
    b = local(REGISTER)
    load_ten(s, o, b)
    push_value(s, o, f, b[0], high(b)[0])


@native
def push_value(s, o, f, low, top):
    """Push a register image."""
    if in_use(s, 7):
        if settle_push(s, o, f):
            put_indefinite(place(s, 7))
            push(s)
    else:
        settle(s, o, f, u16(0), C1)
        put(place(s, 7), low, top)
        push(s)


@instruction("FLD", codes=lambda c: "STI" in c, fpu=True)
@native
def fld_register(s, o, f):
    begin_x87(s)
    p = place(s, o.dst)
    if in_use(s, o.dst):
        push_value(s, o, f, p[0], high(p)[0])
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(place(s, 7))
        push(s)


@instruction("FLD1", fpu=True)
@native
def fld1(s, o, f):
    begin_x87(s)
    push_value(s, o, f, u64(1 << 63), u16(0x3FFF))


@instruction("FLDZ", fpu=True)
@native
def fldz(s, o, f):
    begin_x87(s)
    push_value(s, o, f, u64(0), u16(0))


CONSTANTS = ("FLDL2T", "FLDL2E", "FLDPI", "FLDLG2", "FLDLN2")


@instruction(*CONSTANTS, extra=CONSTANTS.index, fpu=True)
@native
def load_constant(s, o, f):
    """Rounded as the control word says (SDM vol. 1, 8.3.8)."""
    begin_x87(s)
    push_converted(s, o, f, constant(CONSTANTS[f.extra].lower()), place(s, 7))


# --- stores --------------------------------------------------------------------------------------------

_STORES = {("FST", 4): "fstps", ("FST", 8): "fstpl", ("FIST", 2): "fistps", ("FIST", 4): "fistpl",
           ("FIST", 8): "fistpll", ("FISTTP", 2): "fisttps", ("FISTTP", 4): "fisttpl", ("FISTTP", 8): "fisttpll"}


def _masked_answer(name, width):
    """What is stored where ST(0) is empty: the indefinite value of the format (SDM vol. 1, tables 4-3 and 4-4)."""
    if name != "FST":
        return 1 << (8 * width - 1)
    return 0xFFC0_0000 if width == 4 else 0xFFF8_0000_0000_0000


@native
def store_converted(s, o, f, name):
    """ST(0) to memory in another format; whether the instruction completes."""
    begin_x87(s)
    r = local(REGISTER)
    r[0] = _masked_answer(name, f.widths[0])
    sw = u16(UNDERFLOW)
    if in_use(s, 0):
        sw = run_x87(s, convert_out(_STORES[name, f.widths[0]]), r, place(s, 0), r)
    done = stored(s, sw)
    if done:
        write(s, o, f, 0, uint(f.widths[0])(r[0]))
    else:
        probe_write(s, address(s, o), u64(f.widths[0]))
    settle(s, o, f, sw, C1)
    return done


KEEP, POP = ("FST", "FIST"), ("FSTP", "FISTP", "FISTTP")


@instruction(*KEEP, codes=lambda c: "_M" in c, extra=_name(KEEP), fpu=True)
@native
def store_keep(s, o, f):
    store_converted(s, o, f, KEEP[f.extra])


@instruction(*POP, codes=lambda c: "_M" in c and "80" not in c, extra=_name(POP), fpu=True)
@native
def store_pop(s, o, f):
    if store_converted(s, o, f, ("FST", "FIST", "FISTTP")[f.extra]):
        pop(s)


@instruction("FSTP", codes=lambda c: "M80" in c, fpu=True)
@native
def fstp_extended(s, o, f):
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0):
        store_ten(s, o, p[0], high(p)[0])
        settle(s, o, f, u16(0), C1)
        pop(s)
    else:
        if stored(s, u16(UNDERFLOW)):
            store_ten(s, o, u64(INDEFINITE), u16(INDEFINITE_HIGH))
        else:
            probe_write(s, address(s, o), u64(10))
        if settle(s, o, f, u16(UNDERFLOW), C1):
            pop(s)


@instruction("FBSTP", fpu=True)
@native
def fbstp(s, o, f):
    begin_x87(s)
    r = local(REGISTER)
    put(r, u64(INDEFINITE), u16(INDEFINITE_HIGH))
    sw = u16(UNDERFLOW)
    if in_use(s, 0):
        sw = run_x87(s, convert_out("fbstp"), r, place(s, 0), r)
    done = stored(s, sw)
    if done:
        store_ten(s, o, r[0], high(r)[0])
    else:
        probe_write(s, address(s, o), u64(10))
    settle(s, o, f, sw, C1)
    if done:
        pop(s)


@native
def store_register(s, o, f):
    """ST(0) to ST(i); whether the instruction completes."""
    begin_x87(s)
    p = place(s, 0)
    to = place(s, o.dst)
    done: bool = True
    if in_use(s, 0):
        settle(s, o, f, u16(0), C1)
        put(to, p[0], high(p)[0])
        mark(s, o.dst)
    else:
        done = settle(s, o, f, u16(UNDERFLOW), C1)
        if done:
            put_indefinite(to)
            mark(s, o.dst)
    return done


@instruction("FST", codes=lambda c: "STI" in c, fpu=True)
@native
def fst_register(s, o, f):
    store_register(s, o, f)


@instruction("FSTP", "FSTPNCE", codes=lambda c: "STI" in c, fpu=True)
@native
def fstp_register(s, o, f):
    if store_register(s, o, f):
        pop(s)


# --- moves inside the stack ----------------------------------------------------------------------------


@native
def fill_empty(s, i):
    """An empty register becomes the indefinite value."""
    if not in_use(s, i):
        put_indefinite(place(s, i))
        mark(s, i)


@instruction("FXCH", fpu=True)
@native
def fxch(s, o, f):
    begin_x87(s)
    sw = u16(0)
    if not in_use(s, 0) or not in_use(s, o.src):
        sw = u16(UNDERFLOW)
    if settle(s, o, f, sw, C1):
        fill_empty(s, 0)
        fill_empty(s, o.src)
        a = place(s, 0)
        b = place(s, o.src)
        low = a[0]
        top = high(a)[0]
        put(a, b[0], high(b)[0])
        put(b, low, top)


# Condition numbers of FCMOVcc.
_MOVES = {"B": 2, "NB": 3, "E": 4, "NE": 5, "BE": 6, "NBE": 7, "U": 10, "NU": 11}


@instruction(*(f"FCMOV{c}" for c in _MOVES), extra=lambda c: _MOVES[c.split("_")[0][5:]], fpu=True)
@native
def fcmov(s, o, f):
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0) and in_use(s, o.src):
        settle(s, o, f, u16(0), 0)
        if condition(s, f.extra, CC_UNKNOWN):
            b = place(s, o.src)
            put(p, b[0], high(b)[0])
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(p)
        mark(s, 0)


@native
def move_top(s, o, f, by):
    begin_x87(s)
    settle(s, o, f, u16(0), C1)
    s.fpu_top = (s.fpu_top + by) & 7


@instruction("FINCSTP", fpu=True)
@native
def fincstp(s, o, f):
    move_top(s, o, f, 1)


@instruction("FDECSTP", fpu=True)
@native
def fdecstp(s, o, f):
    move_top(s, o, f, 7)


@native
def free(s, o):
    begin_x87(s)
    s.fpu_tags = s.fpu_tags & ~(u32(1) << ((s.fpu_top + u32(o.dst)) & 7))
    s.fpu_ip = s.rip + u64(o.ip)


@instruction("FFREE", fpu=True)
@native
def ffree(s, o, f):
    free(s, o)


@instruction("FFREEP", fpu=True)
@native
def ffreep(s, o, f):
    free(s, o)
    pop(s)


@instruction("FNOP", fpu=True)
@native
def fnop(s, o, f):
    begin_x87(s)
    s.fpu_ip = s.rip + u64(o.ip)
