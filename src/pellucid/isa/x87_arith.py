"""x87 arithmetic and comparisons."""

from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.host_x87 import (
    REGISTER, binary, compare, compare_memory, examine, run_x87, unary, with_memory)
from pellucid.cpu.operands import read
from pellucid.cpu.x87 import (
    C0, C1, C2, C3, CODES, UNDERFLOW, begin_x87, high, in_use, mark, place, pop, put_indefinite, settle)
from pellucid.isa.table import instruction
from pellucid.native import local, native, u16, u64

# --- arithmetic ----------------------------------------------------------------------------------------

ARITHMETIC = ("ADD", "SUB", "SUBR", "MUL", "DIV", "DIVR")
_SUFFIX = {(False, 4): "s", (False, 8): "l", (True, 2): "s", (True, 4): "l"}


def _families(names: tuple[str, ...], *patterns: str) -> tuple[str, ...]:
    return tuple(pattern.format(name) for name in names for pattern in patterns)


def _number(code: str) -> int:
    """The place in ARITHMETIC of what an encoding computes: FISUBR_M16INT, FDIVP_STI_ST0."""
    mnemonic = code.split("_")[0].removeprefix("FI").removeprefix("F")
    return ARITHMETIC.index(mnemonic.removesuffix("P"))


def of_memory(name, is_integer, width):
    """The host operation of a register and a memory operand: fadds, fisubrl."""
    return with_memory(f"f{'i' if is_integer else ''}{name.lower()}{_SUFFIX[is_integer, width]}")


def of_registers(name):
    """The host operation of two registers, st = st op st(1)."""
    return binary(f"f{name.lower()} %st(1), %st")


@native
def arithmetic_memory(s, o, f, is_integer):
    """ST(0) = ST(0) op memory."""
    begin_x87(s)
    b = local(REGISTER)
    b[0] = u64(read(s, o, f, 0))
    p = place(s, 0)
    if in_use(s, 0):
        settle(s, o, f, run_x87(s, of_memory(ARITHMETIC[f.extra], is_integer, f.widths[0]), p, p, b), C1)
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(p)
        mark(s, 0)


@instruction(*_families(ARITHMETIC, "F{}"), codes=lambda c: "_M" in c, extra=_number, fpu=True)
@native
def float_with_memory(s, o, f):
    arithmetic_memory(s, o, f, False)


@instruction(*_families(ARITHMETIC, "FI{}"), extra=_number, fpu=True)
@native
def float_with_integer(s, o, f):
    arithmetic_memory(s, o, f, True)


@native
def arithmetic_registers(s, o, f):
    """ST(dst) = ST(dst) op ST(src); whether the instruction completes."""
    begin_x87(s)
    a = place(s, o.dst)
    if in_use(s, o.dst) and in_use(s, o.src):
        return settle(s, o, f, run_x87(s, of_registers(ARITHMETIC[f.extra]), a, a, place(s, o.src)), C1)
    done = settle(s, o, f, u16(UNDERFLOW), C1)
    if done:
        put_indefinite(a)
        mark(s, o.dst)
    return done


@instruction(*_families(ARITHMETIC, "F{}"), codes=lambda c: "_M" not in c, extra=_number, fpu=True)
@native
def float_registers(s, o, f):
    arithmetic_registers(s, o, f)


@instruction(*_families(ARITHMETIC, "F{}P"), extra=_number, fpu=True)
@native
def float_registers_pop(s, o, f):
    if arithmetic_registers(s, o, f):
        pop(s)


# --- sign and root -------------------------------------------------------------------------------------


@native
def change_sign(s, o, f, keep, flip):
    """The sign bit of ST(0): kept or not, then flipped or not."""
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0):
        settle(s, o, f, u16(0), C1)
        high(p)[0] = (high(p)[0] & (0x7FFF | keep)) ^ flip
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(p)
        mark(s, 0)


@instruction("FABS", fpu=True)
@native
def fabs(s, o, f):
    change_sign(s, o, f, 0, 0)


@instruction("FCHS", fpu=True)
@native
def fchs(s, o, f):
    change_sign(s, o, f, 0x8000, 0x8000)


ROOTS = ("FSQRT", "FRNDINT")


@instruction(*ROOTS, extra=ROOTS.index, fpu=True)
@native
def root_or_round(s, o, f):
    begin_x87(s)
    p = place(s, 0)
    if in_use(s, 0):
        settle(s, o, f, run_x87(s, unary(ROOTS[f.extra].lower()), p, p, p), C1)
    elif settle(s, o, f, u16(UNDERFLOW), C1):
        put_indefinite(p)
        mark(s, 0)


# --- comparison ----------------------------------------------------------------------------------------

UNORDERED = C0 | C2 | C3


def _quiet(code: str) -> int:
    """1 for the forms that take quiet NaNs without complaint."""
    return int(code.startswith("FU"))


@native
def compared(s, o, f, sw):
    """Condition codes from the status word `sw`; whether the instruction completes."""
    return settle(s, o, f, sw, CODES)


@native
def compare_registers(s, o, f, i):
    """ST(0) with ST(i); the status word to settle."""
    if in_use(s, 0) and in_use(s, i):
        if f.extra == 1:
            sw = run_x87(s, compare("fucom %st(1)"), place(s, 0), place(s, 0), place(s, i))
        else:
            sw = run_x87(s, compare("fcom %st(1)"), place(s, 0), place(s, 0), place(s, i))
    else:
        sw = u16(UNDERFLOW | UNORDERED)
    return sw


@native
def compare_with_memory(s, o, f, is_integer):
    """ST(0) with memory; whether the instruction completes."""
    begin_x87(s)
    b = local(REGISTER)
    b[0] = u64(read(s, o, f, 0))
    if in_use(s, 0):
        op = compare_memory(f"f{'i' if is_integer else ''}com{_SUFFIX[is_integer, f.widths[0]]}")
        return compared(s, o, f, run_x87(s, op, place(s, 0), place(s, 0), b))
    return compared(s, o, f, u16(UNDERFLOW | UNORDERED))


@instruction("FCOM", codes=lambda c: "_M" in c, fpu=True)
@native
def fcom_memory(s, o, f):
    compare_with_memory(s, o, f, False)


@instruction("FCOMP", codes=lambda c: "_M" in c, fpu=True)
@native
def fcomp_memory(s, o, f):
    if compare_with_memory(s, o, f, False):
        pop(s)


@instruction("FICOM", fpu=True)
@native
def ficom(s, o, f):
    compare_with_memory(s, o, f, True)


@instruction("FICOMP", fpu=True)
@native
def ficomp(s, o, f):
    if compare_with_memory(s, o, f, True):
        pop(s)


@instruction("FCOM", "FUCOM", codes=lambda c: "_M" not in c, extra=_quiet, fpu=True)
@native
def fcom(s, o, f):
    begin_x87(s)
    compared(s, o, f, compare_registers(s, o, f, o.src))


@instruction("FCOMP", "FUCOMP", codes=lambda c: "_M" not in c, extra=_quiet, fpu=True)
@native
def fcomp(s, o, f):
    begin_x87(s)
    if compared(s, o, f, compare_registers(s, o, f, o.src)):
        pop(s)


@instruction("FCOMPP", "FUCOMPP", extra=_quiet, fpu=True)
@native
def fcompp(s, o, f):
    begin_x87(s)
    if compared(s, o, f, compare_registers(s, o, f, 1)):
        pop(s)
        pop(s)


@native
def compare_to_flags(s, o, f):
    """ZF, PF and CF from C3, C2 and C0, the others clear; whether the instruction completes."""
    begin_x87(s)
    sw = compare_registers(s, o, f, o.src)
    done = settle(s, o, f, sw & ~u16(CODES), C1)
    if done:
        set_eflags(s, u64((sw >> 8) & 0x45))
    return done


@instruction("FCOMI", "FUCOMI", extra=_quiet, fpu=True, cc_out=CC_UNKNOWN)
@native
def fcomi(s, o, f):
    compare_to_flags(s, o, f)


@instruction("FCOMIP", "FUCOMIP", extra=_quiet, fpu=True, cc_out=CC_UNKNOWN)
@native
def fcomip(s, o, f):
    if compare_to_flags(s, o, f):
        pop(s)


@instruction("FTST", fpu=True)
@native
def ftst(s, o, f):
    begin_x87(s)
    sw = u16(UNDERFLOW | UNORDERED)
    if in_use(s, 0):
        sw = run_x87(s, examine("ftst"), place(s, 0), place(s, 0), place(s, 0))
    compared(s, o, f, sw)


@instruction("FXAM", fpu=True)
@native
def fxam(s, o, f):
    """The class of ST(0) and its sign, also of an empty register (SDM vol. 2, FXAM)."""
    begin_x87(s)
    p = place(s, 0)
    exponent = high(p)[0] & 0x7FFF
    codes = u16(high(p)[0] >> 15) << 9
    if not in_use(s, 0):
        codes = codes | (C3 | C0)
    elif exponent == 0:
        if p[0] == 0:
            codes = codes | C3
        else:
            codes = codes | (C3 | C2)
    elif (p[0] >> 63) != 0:
        if exponent != 0x7FFF:
            codes = codes | C2
        elif p[0] << 1 == 0:
            codes = codes | (C2 | C0)
        else:
            codes = codes | C0
    settle(s, o, f, codes, CODES)
