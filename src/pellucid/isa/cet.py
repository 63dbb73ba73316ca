"""Shadow-stack instructions and ENDBR (SDM vol. 1, 17.2 and 17.3; vol. 2).

Where shadow stacks are off RDSSP is a no-operation and the others raise #UD. ENDBR is one, too, outside tracked code;
where it is due after a branch, `helpers.endbranch` stands for it.
"""

from pellucid.cpu.descriptors import in_64bit, in_real_mode, in_v86
from pellucid.cpu.faults import control_protection, general_protection, undefined
from pellucid.cpu.flags import CC_UNKNOWN, carry, set_eflags
from pellucid.cpu.memory import load_as, store_as
from pellucid.cpu.operands import address, read, write
from pellucid.cpu.privilege import require_cpl0
from pellucid.cpu.segments import cet_control
from pellucid.cpu.shadow import BUSY, end_branch, exchange_token, shadow_at, shadow_enabled, shadow_index
from pellucid.cpu.state import (
    CET_WRITE_SHADOW, CP_RSTORSSP, CP_SETSSBSY, CR4_CET, MODE_TRACK, RFLAGS_CF, TLB_SHADOW, TLB_SHADOW_USER)
from pellucid.isa.table import instruction
from pellucid.native import native, u32, u64, uint

PREVIOUS = 2   # bit 1 of a previous-ssp token; bit 0 of it and of a restore token: made in 64-bit mode


def _width(code):
    """Operand size: WRSSD_M32_R32 4, INCSSPQ_R64 8."""
    return 8 if code.split("_")[0].endswith("Q") else 4


@instruction("ENDBR64", "ENDBR32", cet=True, extra=lambda code: int(code == "ENDBR64"), name="endbr_cet")
@native
def endbr_cet(s, o, f):
    """Ends the suppression of tracking that legacy code began."""
    if (s.mode & MODE_TRACK) != 0 and in_64bit(s) == (f.extra == 1):
        end_branch(s)


@native
def require_shadow(s):
    """#UD where no shadow stack is enabled at the current level."""
    if not shadow_enabled(s):
        undefined(s)


@native
def require_supervisor_shadow(s):
    """#UD where supervisor shadow stacks are not enabled, #GP(0) outside level 0."""
    if in_real_mode(s) or in_v86(s) or not shadow_at(s, u32(0)):
        undefined(s)
    require_cpl0(s)


@native
def mode_bit(s):
    """Bit 0 of a token made in the current mode."""
    return u64(1) if in_64bit(s) else u64(0)


@native
def wide_enough(s, value):
    """Whether an SSP may have this value in the current mode."""
    return in_64bit(s) or value >> 32 == 0


@instruction("RDSSPD", "RDSSPQ", width=_width)
@native
def rdssp(s, o, f):
    if shadow_enabled(s):
        write(s, o, f, 0, uint(f.w)(s.ssp))


@instruction("INCSSPD", "INCSSPQ", width=_width)
@native
def incssp(s, o, f):
    """Reads the first and the last element that it passes, so that no page is skipped unseen."""
    require_shadow(s)
    count = u64(read(s, o, f, 0)) & 0xFF
    index = shadow_index(s.cpl)
    load_as(s, s.ssp, uint(f.w), index)
    if count != 0:
        load_as(s, s.ssp + (count - 1) * f.w, uint(f.w), index)
        s.ssp = s.ssp + count * f.w


@instruction("RSTORSSP", cc_out=CC_UNKNOWN)
@native
def rstorssp(s, o, f):
    """Switches to the shadow stack whose restore token is at the operand, and leaves a previous-ssp token there."""
    require_shadow(s)
    lin = address(s, o)
    if (lin & 7) != 0:
        general_protection(s, 0)
    index = shadow_index(s.cpl)
    previous = s.ssp | mode_bit(s) | PREVIOUS
    while True:
        token = load_as(s, lin, u64, index)
        target = token & ~u64(1)
        bad = (token & 3) != mode_bit(s) or not wide_enough(s, token) or (target - 8) & ~u64(7) != lin
        # A locked access writes in any case.
        found = exchange_token(s, lin, token, token if bad else previous, index)
        if found == token:
            break
    if bad:
        control_protection(s, CP_RSTORSSP)
    s.ssp = lin
    set_eflags(s, u64(RFLAGS_CF) if (token & 4) != 0 else u64(0))


@instruction("SAVEPREVSSP")
@native
def saveprevssp(s, o, f):
    """Pops a previous-ssp token, and pushes a restore token onto the shadow stack that it names."""
    require_shadow(s)
    if (s.ssp & 7) != 0:
        general_protection(s, 0)
    index = shadow_index(s.cpl)
    previous = load_as(s, s.ssp, u64, index)
    after = s.ssp + 8
    if carry(s) != 0:
        # RSTORSSP found a hole of four bytes below the token.
        if in_64bit(s):
            general_protection(s, 0)
        if load_as(s, after, u32, index) != 0:
            general_protection(s, 0)
        after = after + 4
    if (previous & PREVIOUS) == 0 or not wide_enough(s, previous):
        general_protection(s, 0)
    old = previous & ~u64(3)
    store_as(s, old - 4, u32(0), u32, index)
    store_as(s, (old & ~u64(7)) - 8, old | mode_bit(s), u64, index)
    s.ssp = after


@instruction("WRSSD", "WRSSQ", width=_width)
@native
def wrss(s, o, f):
    require_shadow(s)
    if (cet_control(s, s.cpl) & CET_WRITE_SHADOW) == 0:
        undefined(s)
    lin = address(s, o)
    if (lin & (f.w - 1)) != 0:
        general_protection(s, 0)
    store_as(s, lin, read(s, o, f, 1), uint(f.w), shadow_index(s.cpl))


@instruction("WRUSSD", "WRUSSQ", width=_width)
@native
def wruss(s, o, f):
    """A supervisor's write to a user shadow stack, with a user's rights."""
    if (s.cr4 & CR4_CET) == 0 or in_real_mode(s) or in_v86(s):
        undefined(s)
    require_cpl0(s)
    lin = address(s, o)
    if (lin & (f.w - 1)) != 0:
        general_protection(s, 0)
    store_as(s, lin, read(s, o, f, 1), uint(f.w), u32(TLB_SHADOW_USER))


@instruction("SETSSBSY")
@native
def setssbsy(s, o, f):
    """Switches to the shadow stack of IA32_PL0_SSP."""
    require_supervisor_shadow(s)
    lin = s.pl_ssp[0]
    if (lin & 7) != 0:
        general_protection(s, 0)
    if not wide_enough(s, lin):
        control_protection(s, CP_SETSSBSY)
    if exchange_token(s, lin, lin, lin | BUSY, u32(TLB_SHADOW)) != lin:
        control_protection(s, CP_SETSSBSY)
    s.ssp = lin


@instruction("CLRSSBSY", cc_out=CC_UNKNOWN)
@native
def clrssbsy(s, o, f):
    """Frees the shadow stack whose token is at the operand; CF tells that it was not busy."""
    require_supervisor_shadow(s)
    lin = address(s, o)
    if (lin & 7) != 0:
        general_protection(s, 0)
    found = exchange_token(s, lin, lin | BUSY, lin, u32(TLB_SHADOW))
    set_eflags(s, u64(RFLAGS_CF) if found != (lin | BUSY) else u64(0))
    s.ssp = 0
