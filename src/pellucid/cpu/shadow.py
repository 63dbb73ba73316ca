"""Shadow stacks and branch tracking: what transfers of control do besides (SDM vol. 1, 17; vol. 2, CALL, INT, IRET).

A shadow stack that is in use has a token at its base, its own address with bit 0 set (busy). Whoever switches to
one sets that bit by compare-and-exchange, and faults where the token is not the address alone.
"""

from pellucid.cpu.breakpoints import watch
from pellucid.cpu.code_pages import before_pointer_store
from pellucid.cpu.faults import Stop, control_protection, general_protection
from pellucid.cpu.memory import fill, load, load_as, load_sys, store_as
from pellucid.cpu.paging import canonical, canonical_base
from pellucid.cpu.segments import cet_control, linear_ip
from pellucid.cpu.code_cache import OP_NOTRACK
from pellucid.cpu.state import (
    CET_LEGACY, CET_NO_SUPPRESS, CET_NO_TRACK, CET_SHADOW, CET_SUPPRESS, CET_TRACK, CET_WAIT, CP_ENDBRANCH,
    CP_FAR_RET, CR0_PE, CR4_CET, CS, EFER_LMA, EXIT_SMC, FEATURES_SYSTEM, FEATURE_LA57, MODE_64, MODE_ENDBRANCH,
    MODE_SHADOW, MODE_SIZE, MODE_TRACK, PAGE_MASK, TLB_SHADOW, TLB_SHADOW_USER, WRITE,
)
from pellucid.native import cas, i64, native, ptr, u8, u32, u64, uint

BUSY = 1
FRAME = 24     # bytes of a far frame: CS, linear instruction pointer, SSP


@native
def shadow_index(cpl):
    """The TLB of shadow-stack accesses at a privilege level."""
    index: u32 = TLB_SHADOW
    if cpl == 3:
        index = TLB_SHADOW_USER
    return index


@native
def shadow_at(s, cpl):
    """Whether shadow stacks are enabled at level `cpl` of protected mode, which may not be the current one."""
    return (s.cr4 & CR4_CET) != 0 and (s.cr0 & CR0_PE) != 0 and (cet_control(s, cpl) & CET_SHADOW) != 0


@native
def shadow_enabled(s):
    """Whether shadow stacks are enabled at the current level."""
    return (s.mode & MODE_SHADOW) != 0


@native
def valid_cet(s, value):
    """Whether IA32_U_CET and IA32_S_CET may have this value (SDM vol. 4)."""
    clash = (value & CET_SUPPRESS) != 0 and (value & CET_WAIT) != 0
    return (value & ~s.cet_allowed) == 0 and not clash and canonical_base(s, value & PAGE_MASK)


@native
def valid_ssp(s, value):
    """Whether IA32_PL0_SSP to IA32_PL3_SSP may have this value."""
    return (value & 3) == 0 and canonical_base(s, value)


# --- near transfers ------------------------------------------------------------------------------------


@native
def shadow_push(s, value, w):
    """Push a return address, 8 bytes of 64-bit operand size and 4 of the others."""
    size = 8 if w == 8 else 4
    store_as(s, s.ssp - size, uint(size)(value), uint(size), shadow_index(s.cpl))
    s.ssp = s.ssp - size


@native
def shadow_top(s, w):
    """The return address on top."""
    size = 8 if w == 8 else 4
    return u64(load_as(s, s.ssp, uint(size), shadow_index(s.cpl)))


@native
def shadow_drop(s, w):
    s.ssp = s.ssp + (8 if w == 8 else 4)


# --- tokens --------------------------------------------------------------------------------------------


@native(inline=False)
def exchange_token(s, lin: u64, old: u64, new: u64, index: u32) -> u64:
    """What stands in the eight aligned bytes at `lin`, replaced by `new` where that is `old`, in one atomic access."""
    value: u64 = 0
    while True:
        host = fill(s, lin, u32(WRITE), index)
        gpa = s.mmio_gpa
        watch(s, lin, u64(8), True)
        value = load_as(s, lin, u64, index)
        if value != old:
            break
        if host == 0:
            store_as(s, lin, new, u64, index)
            break
        before_pointer_store(s, gpa, u64(8))
        if cas(ptr[u64](host), old, new):
            break
    return value


@native(inline=False)
def claim_stack(s, ssp: u64, wide: bool, index: u32, framed: bool) -> None:
    """Make the token at `ssp` busy; #GP(0) where there is no free one.

    It and a far frame below it (`framed`) lie within 32 aligned bytes: no frame crosses a page, and what has the
    instruction executed alone (translated code, breakpoints) shows before the token is busy.
    """
    if (ssp & 0x1F) != 0x18 or (not wide and ssp >> 32 != 0):
        general_protection(s, 0)
    if framed:
        watch(s, ssp - FRAME, u64(FRAME), True)
    if exchange_token(s, ssp, ssp, ssp | BUSY, index) != ssp:
        general_protection(s, 0)


@native
def release_stack(s, ssp, index):
    """Make the token at `ssp` free, if there is a busy one."""
    exchange_token(s, ssp, ssp | BUSY, ssp, index)


# --- far transfers inwards: events, CALL ---------------------------------------------------------------


@native
def check_reach(s, ssp, wide):
    """#GP(0) for a shadow stack that code which is not 64-bit cannot reach."""
    if not wide and ssp >> 32 != 0:
        general_protection(s, 0)


@native(inline=False)
def probe_frame(s, ssp: u64, index: u32) -> None:
    """Fault as the pushes of a far frame below `ssp` would."""
    fill(s, ssp - 8, u32(WRITE), index)
    if ((ssp - 8) ^ (ssp - FRAME)) & PAGE_MASK != 0:
        fill(s, ssp - FRAME, u32(WRITE), index)


@native(inline=False)
def push_frame(s, ssp: u64, lip: u64, index: u32) -> u64:
    """Push CS, a linear instruction pointer and SSP below `ssp`, aligned to 8 bytes; where they are."""
    return push_words(s, ssp, u64(s.seg_selector[CS]), lip, s.ssp, index)


@native(inline=False)
def push_words(s, ssp: u64, cs: u64, lip: u64, before: u64, index: u32) -> u64:
    """`push_frame` for any task."""
    to = ssp & ~u64(7)
    probe_frame(s, to, index)
    if to != ssp:
        store_as(s, to, u32(0), u32, index)
    store_as(s, to - 8, cs, u64, index)
    store_as(s, to - 16, lip, u64, index)
    store_as(s, to - FRAME, before, u64, index)
    return to - FRAME


@native
def linear_pointer(s, ip):
    """The linear address of an instruction pointer in the current code segment."""
    lip = s.cs_base + ip
    return lip if (s.mode & MODE_SIZE) == MODE_64 else lip & 0xFFFF_FFFF


@native
def kept_pointer(s):
    """SSP as IA32_PL3_SSP keeps it: in IA-32e mode canonical by the width that CPUID tells, whatever it was."""
    ssp = s.ssp
    if (s.efer & EFER_LMA) != 0:
        unused: u64 = 16
        if (s.features[FEATURES_SYSTEM] & FEATURE_LA57) != 0:
            unused = 7
        ssp = u64(i64(ssp << unused) >> unused)
    return ssp


@native(inline=False)
def enter_shadow(s, cpl: u32, back: u64, table: u64, wide: bool) -> None:
    """The shadow stack's part of an event or a far CALL to level `cpl`, before CPL and CS change.

    `back` is the return address, `table` the place of the SSP that an interrupt stack table's entry brings, or 0. It
    is the last step that can fault, and ends with SSP set.
    """
    ssp = s.ssp
    inner = cpl < s.cpl
    index = shadow_index(cpl)
    if shadow_at(s, cpl):
        framed = not inner or s.cpl != 3
        if table != 0:
            ssp = load_sys(s, table, u64)
        elif inner:
            ssp = s.pl_ssp[cpl]
        if table != 0 or inner:
            claim_stack(s, ssp, wide, index, framed)
        if framed:
            check_reach(s, ssp, wide)
            ssp = push_frame(s, ssp, linear_pointer(s, back), index)
    if inner and s.cpl == 3 and shadow_enabled(s):
        s.pl_ssp[3] = kept_pointer(s)
    s.ssp = ssp


@native(inline=False)
def enter_shadow_fast(s) -> None:
    """SYSCALL and SYSENTER, before CPL changes: no shadow stack until the kernel has set one up with SETSSBSY."""
    if shadow_enabled(s):
        s.pl_ssp[3] = kept_pointer(s)
    if shadow_at(s, u32(0)):
        s.ssp = 0


# --- far transfers outwards: RET, IRET -----------------------------------------------------------------


@native(inline=False)
def check_frame(s, selector: u32, lip: u64, wide: bool) -> u64:
    """The SSP of the far frame on top, which must have this CS and linear instruction pointer: else #CP(FAR-RET)."""
    ssp = s.ssp
    index = shadow_index(s.cpl)
    if (ssp & 7) != 0:
        control_protection(s, CP_FAR_RET)
    cs = load_as(s, ssp + 16, u64, index)
    pointer = load_as(s, ssp + 8, u64, index)
    before = load_as(s, ssp, u64, index)
    if cs != u64(selector) or pointer != lip or (before & 3) != 0:
        control_protection(s, CP_FAR_RET)
    check_pointer(s, before, wide)
    return before


@native
def check_pointer(s, ssp, wide):
    """#GP(0) for an SSP that the code to return to cannot have."""
    if (not wide and ssp >> 32 != 0) or (wide and not canonical(s, ssp)):
        general_protection(s, 0)


@native(inline=False)
def return_shadow(s, selector: u32, lip: u64, wide: bool, event: bool) -> None:
    """The shadow stack's part of a far RET or (`event`) IRET to the level of `selector`, before CPL changes.

    It is the last step that can fault, and ends with SSP set.
    """
    cpl = selector & 3
    was = shadow_enabled(s)
    index = shadow_index(s.cpl)
    ssp = s.ssp
    to = ssp
    if was:
        if (ssp & 7) != 0:
            control_protection(s, CP_FAR_RET)
        if cpl != 3 or s.cpl == 3:
            to = check_frame(s, selector, lip, wide)
            ssp = ssp + FRAME
    if cpl > s.cpl:
        if cpl == 3 and shadow_at(s, cpl):
            to = s.pl_ssp[3]
            check_pointer(s, to, wide)
        if was:
            release_stack(s, ssp, index)
    elif was and event and to != ssp and (s.efer & EFER_LMA) != 0:
        release_stack(s, ssp, index)  # an interrupt stack table's entry had switched to it
    s.ssp = to


@native(inline=False)
def leave_shadow_fast(s) -> None:
    """SYSRET and SYSEXIT."""
    if shadow_at(s, u32(3)):
        s.ssp = s.pl_ssp[3]


@native(inline=False)
def leave_for_v86(s) -> None:
    """IRET to virtual-8086 mode, which has no shadow stack and no tracking: #GP(0) where level 3 has either."""
    if (s.cr4 & CR4_CET) != 0 and (s.u_cet & (CET_SHADOW | CET_TRACK)) != 0:
        general_protection(s, 0)
    if shadow_enabled(s):
        if (s.ssp & 7) != 0:
            control_protection(s, CP_FAR_RET)
        release_stack(s, s.ssp, u32(TLB_SHADOW))


# --- branch tracking -----------------------------------------------------------------------------------


@native
def set_cet_control(s, control):
    """Write IA32_U_CET or IA32_S_CET, whichever is in force; the caller sees to the mode."""
    if s.cpl == 3:
        s.u_cet = control
    else:
        s.s_cet = control


@native(inline=False)
def track(s, flags: u32) -> None:
    """Behind an indirect near branch: the next instruction must be ENDBR, unless the branch is not tracked."""
    control = cet_control(s, s.cpl)
    free = (flags & OP_NOTRACK) != 0 and (control & CET_NO_TRACK) != 0
    if (s.mode & MODE_TRACK) != 0 and (control & CET_SUPPRESS) == 0 and not free:
        set_cet_control(s, control | CET_WAIT)
        s.mode = s.mode | MODE_ENDBRANCH


@native
def track_far(s):
    """Behind a far transfer, with the new CPL set: the next instruction must be ENDBR. The caller updates the mode."""
    if (s.cr4 & CR4_CET) != 0:
        control = cet_control(s, s.cpl)
        if (control & CET_TRACK) != 0:
            set_cet_control(s, (control | CET_WAIT) & ~u64(CET_SUPPRESS))


@native(inline=False)
def end_branch(s) -> None:
    """ENDBR of the current code size: the branch is complete, and branches are tracked from here on."""
    control = cet_control(s, s.cpl)
    set_cet_control(s, control & ~u64(CET_WAIT | CET_SUPPRESS))
    s.mode = s.mode & ~u32(MODE_ENDBRANCH)


@native(inline=False)
def miss_branch(s) -> None:
    """Another instruction where ENDBR is due: #CP(ENDBRANCH), unless the legacy bitmap has its page. There tracking is
    suppressed, and the instruction executes.
    """
    control = cet_control(s, s.cpl)
    if (control & CET_LEGACY) == 0:
        control_protection(s, CP_ENDBRANCH)
    lin = linear_ip(s)
    at = (control & PAGE_MASK) + ((lin & 0xFFFF_FFFF_FFFF) >> 15)
    if (s.mode & MODE_SIZE) != MODE_64:
        at = at & 0xFFFF_FFFF
    if (load(s, at, u8) >> u8((lin >> 12) & 7)) & 1 == 0:
        control_protection(s, CP_ENDBRANCH)
    control = control & ~u64(CET_WAIT)
    if (control & CET_NO_SUPPRESS) == 0:
        control = control | CET_SUPPRESS
    set_cet_control(s, control)
    s.mode = s.mode & ~u32(MODE_ENDBRANCH)
    s.exit_reason = EXIT_SMC  # execute it alone, in the new mode
    raise Stop
