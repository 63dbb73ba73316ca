"""Decimal adjustment: AAA, AAS, AAM, AAD, DAA, DAS, outside 64-bit mode (SDM vol. 2)."""

from pellucid.cpu.faults import divide_error
from pellucid.cpu.flags import CC_LOGIC, CC_UNKNOWN, set_cc, set_eflags, status_flags, szp
from pellucid.cpu.operands import read, set_gpr
from pellucid.cpu.state import RFLAGS_AF, RFLAGS_CF, RFLAGS_OF, RFLAGS_PF, RFLAGS_SF, RFLAGS_ZF
from pellucid.isa.table import instruction
from pellucid.native import native, u8, u64

RAX = 0


@native
def low_digit_adjusts(s, al):
    """Whether the low digit is no decimal digit, or AF says that it overflowed."""
    return (al & 15) > 9 or (status_flags(s) & RFLAGS_AF) != 0


@native
def adjust_unpacked(s, difference):
    """AAA and AAS: `difference` is added to AX where the low digit needs it."""
    ax = s.gpr[RAX] & 0xFFFF
    flags: u64 = 0
    if low_digit_adjusts(s, ax):
        ax = ax + difference
        flags = RFLAGS_AF | RFLAGS_CF
    set_gpr(s, RAX, 2, ax & 0xFF0F)
    set_eflags(s, flags | szp(u8(ax & 15), 1))


@instruction("AAA", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF | RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF)
@native
def aaa(s, o, f):
    adjust_unpacked(s, u64(0x106))


@instruction("AAS", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF | RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF)
@native
def aas(s, o, f):
    adjust_unpacked(s, u64(0xFFFF_FFFF_FFFF_FEFA))


@instruction("AAM", cc_out=CC_LOGIC, undefined=RFLAGS_OF | RFLAGS_AF | RFLAGS_CF)
@native
def aam(s, o, f):
    base = u64(read(s, o, f, 0))
    if base == 0:
        divide_error(s)
    al = s.gpr[RAX] & 0xFF
    set_gpr(s, RAX, 2, (al // base << 8) | (al % base))
    set_cc(s, CC_LOGIC, 1, al % base, u64(0))


@instruction("AAD", cc_out=CC_LOGIC, undefined=RFLAGS_OF | RFLAGS_AF | RFLAGS_CF)
@native
def aad(s, o, f):
    base = u64(read(s, o, f, 0))
    ax = s.gpr[RAX]
    al = (ax + ((ax >> 8) & 0xFF) * base) & 0xFF
    set_gpr(s, RAX, 2, al)
    set_cc(s, CC_LOGIC, 1, al, u64(0))


@native
def high_digit_adjusts(s, al):
    return al > 0x99 or (status_flags(s) & RFLAGS_CF) != 0


@instruction("DAA", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def daa(s, o, f):
    old = s.gpr[RAX] & 0xFF
    al = old
    flags: u64 = 0
    if low_digit_adjusts(s, old):
        al = al + 6
        flags = RFLAGS_AF
    if high_digit_adjusts(s, old):
        al = al + 0x60
        flags = flags | RFLAGS_CF
    set_gpr(s, RAX, 1, al & 0xFF)
    set_eflags(s, flags | szp(u8(al), 1))


@instruction("DAS", cc_out=CC_UNKNOWN, undefined=RFLAGS_OF)
@native
def das(s, o, f):
    old = s.gpr[RAX] & 0xFF
    al = old
    flags: u64 = 0
    if low_digit_adjusts(s, old):
        al = al - 6
        flags = RFLAGS_AF
        if old < 6:
            flags = RFLAGS_AF | RFLAGS_CF
    if high_digit_adjusts(s, old):
        al = al - 0x60
        flags = flags | RFLAGS_CF
    set_gpr(s, RAX, 1, al & 0xFF)
    set_eflags(s, flags | szp(u8(al), 1))
