"""Shadow stacks and branch tracking across a hardware task switch (SDM vol. 3, 8.1 and 8.3; vol. 1, 17.2.4).

A 32-bit TSS names the shadow stack of its task, whose token must be free; the frame of a task that nests another goes
on the stack of the new one, as that of a procedure does. JMP forgets the SSP of the task that it leaves.
"""

from pellucid.cpu.faults import control_protection, fault
from pellucid.cpu.memory import load_as, load_sys
from pellucid.cpu.shadow import (
    BUSY, FRAME, exchange_token, linear_pointer, push_words, release_stack, shadow_at, shadow_enabled, shadow_index,
    track_far)
from pellucid.cpu.state import CET_SHADOW, CET_TRACK, CP_FAR_RET, CR4_CET, CS, RFLAGS_VM, TS
from pellucid.native import native, struct, u32, u64
from pellucid.native.layout import Struct

SSP_FIELD = 0x68
NO_FRAME, TO_PUSH, TO_CHECK = range(3)


@struct
class TaskShadow(Struct):
    """What a switch takes along from the task that it leaves."""

    ssp: u64       # of the new TSS
    before: u64    # the SSP in the frame, or to return to
    lip: u64
    cs: u64
    frame: u32     # NO_FRAME, TO_PUSH or TO_CHECK
    keep: u32      # 1: `before` is level 3's


@native(inline=False)
def leave_task(s, t, cpl: u32, base: u64, wide: bool, back: u64) -> None:
    """JMP, CALL or an event: read what the new task of level `cpl` needs, before anything changes."""
    t.ssp = 0
    if wide:
        t.ssp = u64(load_sys(s, (base + SSP_FIELD) & 0xFFFF_FFFF, u32))
    t.frame = NO_FRAME
    t.keep = u32(shadow_enabled(s) and s.cpl == 3 and cpl < 3)
    t.before = s.ssp
    t.lip = linear_pointer(s, back)
    t.cs = u64(s.seg_selector[CS])


@native(inline=False)
def leave_nested(s, t, cpl: u32) -> None:
    """IRET: read the frame to return by, where the stack has one, and free the token below it."""
    t.frame = NO_FRAME
    t.keep = 0
    t.before = s.pl_ssp[3]
    if shadow_enabled(s):
        ssp = s.ssp
        index = shadow_index(s.cpl)
        if cpl == s.cpl or cpl < 3:
            t.frame = TO_CHECK
            t.before = load_as(s, ssp, u64, index)
            t.lip = load_as(s, ssp + 8, u64, index)
            t.cs = load_as(s, ssp + 16, u64, index)
            ssp = ssp + FRAME
        release_stack(s, ssp, index)


@native
def forbid_v86(s, name):
    """#TS(TSS) for a task in virtual-8086 mode while level 3 has shadow stacks or tracks branches."""
    if (s.flags & RFLAGS_VM) != 0 and (s.u_cet & (CET_SHADOW | CET_TRACK)) != 0:
        fault(s, u32(TS), name)


@native(inline=False)
def begin_task(s, t, name: u32) -> None:
    """Behind JMP, CALL or an event, in the new task; `name` is the error code that names its TSS."""
    if t.keep != 0:
        s.pl_ssp[3] = t.before
    if (s.cr4 & CR4_CET) == 0:
        return
    forbid_v86(s, name)
    if shadow_at(s, s.cpl):
        index = shadow_index(s.cpl)
        ssp = t.ssp
        if (ssp & 7) != 0:
            fault(s, u32(TS), name)
        if exchange_token(s, ssp, ssp, ssp | BUSY, index) != ssp:
            fault(s, u32(TS), name)
        if t.frame == TO_PUSH:
            ssp = push_words(s, ssp, t.cs, t.lip, t.before, index)
        s.ssp = ssp
    track_far(s)


@native(inline=False)
def resume_task(s, t, ip: u64, name: u32) -> None:
    """Behind IRET, in the task that goes on at `ip`."""
    if (s.cr4 & CR4_CET) == 0:
        return
    forbid_v86(s, name)
    if t.frame == TO_CHECK:
        lip = (s.seg_base[CS] + ip) & 0xFFFF_FFFF
        if t.cs != u64(s.seg_selector[CS]) or t.lip != lip:
            control_protection(s, CP_FAR_RET)
    if shadow_at(s, s.cpl):
        if (t.before & 3) != 0 or t.before >> 32 != 0:
            control_protection(s, CP_FAR_RET)
        s.ssp = t.before
