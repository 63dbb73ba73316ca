"""Ops that stand before an instruction's own: addresses outside 64-bit mode, and traps."""

from pellucid.cpu.faults import general_protection, not_available, undefined
from pellucid.cpu.operands import offset, register
from pellucid.cpu.segments import check_segment
from pellucid.cpu.shadow import end_branch, miss_branch
from pellucid.cpu.state import CR0_EM, CR0_TS, ES
from pellucid.native import native, u32, u64


@native
def address_op(s, o, f):
    """Compute s.ea: the linear address of a memory operand whose address size is not 64 bits.

    f.asize masks the effective address, f.extra = 1 checks the segment: imm holds size | write << 16 |
    segment << 24. The sum with the segment base wraps at 32 bits, except in 64-bit mode (f.m64).
    """
    mask = (1 << (f.asize * 8)) - 1
    ea = offset(s, o) & mask
    if f.extra == 1:
        check_segment(s, u32(o.imm >> 24), ea, o.imm & 0xFFFF, ((o.imm >> 16) & 1) != 0)
    linear = ea + register(s, o.seg, u64)
    if f.m64:
        s.ea = linear
    else:
        s.ea = linear & 0xFFFF_FFFF


@native
def fpu_trap(s, o, f):
    """#NM while CR0.TS is set, or CR0.EM for x87 (f.extra = 0); CR0.EM is #UD for MMX (2) (SDM vol. 3, 2.5)."""
    if f.extra == 2 and (s.cr0 & CR0_EM) != 0:
        undefined(s)
    if (s.cr0 & CR0_TS) != 0 or (f.extra == 0 and (s.cr0 & CR0_EM) != 0):
        not_available(s)


@native
def undefined_op(s, o, f):
    """#UD: no such instruction here."""
    undefined(s)


@native
def endbranch(s, o, f):
    """ENDBR where it is due."""
    end_branch(s)
    to = s.rip + u64(o.next_ip)
    s.rip = to if f.m64 else to & 0xFFFF_FFFF


@native
def missing_endbranch(s, o, f):
    """Something else where ENDBR is due."""
    miss_branch(s)


@native
def too_long(s, o, f):
    """#GP(0): more than fifteen bytes (SDM vol. 3, 6.15)."""
    general_protection(s, 0)


SEGMENT_ES = ES
