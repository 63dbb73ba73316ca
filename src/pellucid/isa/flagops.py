"""Instructions on the flags: CLC to STD, LAHF, SAHF, PUSHF, POPF, SALC; and XLAT."""

from pellucid.cpu.flags import CC_UNKNOWN, carry, get_rflags, set_eflags, set_rflags, status_flags
from pellucid.cpu.memory import load
from pellucid.cpu.operands import set_gpr
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stack import drop, peek, push
from pellucid.cpu.state import (
    CR0_PE, RFLAGS_AC, RFLAGS_CF, RFLAGS_DF, RFLAGS_ID, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_NT, RFLAGS_OF, RFLAGS_RF,
    RFLAGS_STATUS, RFLAGS_TF, RFLAGS_VIF, RFLAGS_VM)
from pellucid.cpu.strings import address_mask, check_source, source_linear
from pellucid.cpu.virtual import require_vme, sensitive, shown_flags, taken_flags
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, u8, u32, u64, uint, unlikely

RAX, RBX = 0, 3


@instruction("CLC", cc_out=CC_UNKNOWN)
@native
def clc(s, o, f):
    set_eflags(s, status_flags(s) & ~u64(RFLAGS_CF))


@instruction("STC", cc_out=CC_UNKNOWN)
@native
def stc(s, o, f):
    set_eflags(s, status_flags(s) | RFLAGS_CF)


@instruction("CMC", cc_out=CC_UNKNOWN)
@native
def cmc(s, o, f):
    set_eflags(s, status_flags(s) ^ RFLAGS_CF)


@instruction("CLD")
@native
def cld(s, o, f):
    s.flags = s.flags & ~u64(RFLAGS_DF)


@instruction("STD")
@native
def std(s, o, f):
    s.flags = s.flags | RFLAGS_DF


@instruction("LAHF")
@native
def lahf(s, o, f):
    low = (status_flags(s) & 0xD5) | 2
    s.gpr[RAX] = (s.gpr[RAX] & ~u64(0xFF00)) | (low << 8)


@instruction("SAHF", cc_out=CC_UNKNOWN)
@native
def sahf(s, o, f):
    set_eflags(s, (status_flags(s) & RFLAGS_OF) | ((s.gpr[RAX] >> 8) & 0xD5))


@instruction("SALC")
@native
def salc(s, o, f):
    set_gpr(s, RAX, 1, (~carry(s) + 1) & 0xFF)


@instruction("XLATB", asize=True, stack=True)
@native
def xlat(s, o, f):
    offset = (s.gpr[RBX] + (s.gpr[RAX] & 0xFF)) & address_mask(f.asize)
    check_source(s, o, offset, 1, f.m64)
    set_gpr(s, RAX, 1, load(s, source_linear(s, o, offset, f.m64), u8))


# --- PUSHF and POPF --------------------------------------------------------------------------------------


def _flags_width(code):
    """Operand size: PUSHFW 2, PUSHFD 4, PUSHFQ 8."""
    return {"W": 2, "D": 4, "Q": 8}[code[-1]]


@instruction("PUSHF", "PUSHFD", "PUSHFQ", stack=True, width=_flags_width)
@native
def pushf(s, o, f):
    value = get_rflags(s) & ~u64(RFLAGS_VM | RFLAGS_RF)
    if unlikely(sensitive(s)):
        require_vme(s, u32(f.w))
        value = shown_flags(s, value)
    push(s, f, uint(f.w)(value), f.w)


@native
def writable_flags(s, w):
    """The bits that POPF may change at this privilege (SDM vol. 2, POPF)."""
    may: u64 = RFLAGS_STATUS | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT
    if w != 2:
        may = may | RFLAGS_AC | RFLAGS_ID
    privileged = (s.cr0 & CR0_PE) == 0 or s.cpl == 0
    if privileged:
        may = may | RFLAGS_IOPL
    if privileged or s.cpl <= u32(s.flags >> 12) & 3:
        may = may | RFLAGS_IF
    return may


@instruction("POPF", "POPFD", "POPFQ", stack=True, width=_flags_width, ends=LEAVE, cc_out=CC_UNKNOWN)
@native
def popf(s, o, f):
    virtual = sensitive(s)
    if unlikely(virtual):
        require_vme(s, u32(f.w))
    value = u64(peek(s, f, 0, f.w))
    may = writable_flags(s, f.w)
    if unlikely(virtual):
        value = taken_flags(s, value)
        may = may | RFLAGS_VIF
    drop(s, f, f.w)
    old = get_rflags(s)
    if f.w != 2:
        old = old & ~u64(RFLAGS_RF)
    if (s.flags & RFLAGS_VM) != 0:
        may = may & ~u64(RFLAGS_IOPL)
    set_rflags(s, (old & ~may) | (value & may))
    update_mode(s)
