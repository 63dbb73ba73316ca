"""Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT; and SWAPGS.

AMD's processors have SYSCALL and SYSRET outside 64-bit mode too, and no SYSENTER and SYSEXIT in long mode (APM vol. 3).
"""

from pellucid.cpu.descriptors import in_64bit, in_long_mode, in_real_mode, in_v86, is_amd, set_flat
from pellucid.cpu.faults import general_protection, undefined
from pellucid.cpu.flags import get_rflags, set_rflags
from pellucid.cpu.memory import check_canonical
from pellucid.cpu.privilege import require_cpl0
from pellucid.cpu.segments import update_mode
from pellucid.cpu.shadow import enter_shadow_fast, leave_shadow_fast, track_far
from pellucid.cpu.state import CR4_CET, CS, DR6_BS, EFER_SCE, GS, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, SS
from pellucid.isa.table import LEAVE_JUMP, instruction
from pellucid.native import native, u16, u32, u64, unlikely

RCX, RDX, RSP, R11 = 1, 2, 4, 11
CODE64, CODE32, DATA, USER = 0xA09B, 0xC09B, 0xC093, 0x60


@native
def require_syscall(s):
    """#UD where there is no SYSCALL and SYSRET."""
    if (s.efer & EFER_SCE) == 0 or in_real_mode(s) or in_v86(s):
        undefined(s)
    if not in_64bit(s) and not is_amd(s):
        undefined(s)


@native
def enter_kernel(s):
    """CPL 0, without a shadow stack, at an ENDBR (SDM vol. 2, SYSCALL)."""
    if unlikely((s.cr4 & CR4_CET) != 0):
        enter_shadow_fast(s)
    s.cpl = 0
    track_far(s)


@native
def enter_user(s):
    """CPL 3 and its shadow stack."""
    s.cpl = 3
    if unlikely((s.cr4 & CR4_CET) != 0):
        leave_shadow_fast(s)


@instruction("SYSCALL", ends=LEAVE_JUMP)
@native
def syscall(s, o, f):
    require_syscall(s)
    flags = get_rflags(s)
    selector = u32(s.star >> 32) & 0xFFFC
    masked = s.sfmask
    code: u32 = CODE64
    target = s.lstar
    s.gpr[RCX] = s.rip + u64(o.next_ip)
    if not in_64bit(s):
        s.gpr[RCX] = s.gpr[RCX] & 0xFFFF_FFFF
        target = s.cstar
    if in_long_mode(s):
        s.gpr[R11] = flags & ~u64(RFLAGS_RF)
    else:
        code = CODE32
        target = s.star & 0xFFFF_FFFF
        masked = RFLAGS_VM | RFLAGS_IF
    if (masked & RFLAGS_TF) != 0:
        s.step_trap = 0
    enter_kernel(s)
    s.rip = target
    set_flat(s, CS, selector, code)
    set_flat(s, SS, selector + 8, u32(DATA))
    set_rflags(s, flags & ~masked & ~u64(RFLAGS_RF))
    update_mode(s)


@instruction("SYSRET", "SYSRETQ", "SYSRETD", ends=LEAVE_JUMP, width=lambda c: 8 if c.endswith("Q") else 4)
@native
def sysret(s, o, f):
    require_syscall(s)
    require_cpl0(s)
    amd = is_amd(s)
    flags = s.gpr[R11]
    if not in_long_mode(s):
        flags = get_rflags(s) | RFLAGS_IF
    base = u32(s.star >> 48)
    if f.w == 8:
        if not amd:
            check_canonical(s, s.gpr[RCX])
        s.rip = s.gpr[RCX]
        set_flat(s, CS, (base + 16) | 3, u32(CODE64 | USER))
    else:
        s.rip = s.gpr[RCX] & 0xFFFF_FFFF
        set_flat(s, CS, base | 3, u32(CODE32 | USER))
    if amd:
        s.seg_selector[SS] = u16((base + 8) | 3)  # the rest of SS stays
    else:
        set_flat(s, SS, (base + 8) | 3, u32(DATA | USER))
    enter_user(s)
    set_rflags(s, (flags & 0x3C7FD7) | 2)
    # Unlike IRET, a SYSRET that sets TF is followed by the trap at once.
    if (s.flags & RFLAGS_TF) != 0:
        s.db_pending = s.db_pending | DR6_BS
    update_mode(s)


@instruction("SYSENTER", ends=LEAVE_JUMP)
@native
def sysenter(s, o, f):
    if is_amd(s) and in_long_mode(s):
        undefined(s)
    if in_real_mode(s) or (s.sysenter_cs & 0xFFFC) == 0:
        general_protection(s, 0)
    selector = u32(s.sysenter_cs) & 0xFFFC
    s.flags = s.flags & ~u64(RFLAGS_VM | RFLAGS_IF)
    attr: u32 = CODE32
    s.rip = s.sysenter_eip
    s.gpr[RSP] = s.sysenter_esp
    if in_long_mode(s):
        attr = CODE64
    else:
        s.rip = s.rip & 0xFFFF_FFFF
        s.gpr[RSP] = s.gpr[RSP] & 0xFFFF_FFFF
    enter_kernel(s)
    set_flat(s, CS, selector, attr)
    set_flat(s, SS, selector + 8, u32(DATA))
    update_mode(s)


@instruction("SYSEXIT", "SYSEXITQ", "SYSEXITD", ends=LEAVE_JUMP, width=lambda c: 8 if c.endswith("Q") else 4)
@native
def sysexit(s, o, f):
    if is_amd(s) and in_long_mode(s):
        undefined(s)
    if in_real_mode(s) or (s.sysenter_cs & 0xFFFC) == 0 or s.cpl != 0:
        general_protection(s, 0)
    selector = u32(s.sysenter_cs) & 0xFFFC
    if f.w == 8:
        check_canonical(s, s.gpr[RDX])
        check_canonical(s, s.gpr[RCX])
        s.rip = s.gpr[RDX]
        s.gpr[RSP] = s.gpr[RCX]
        set_flat(s, CS, (selector + 32) | 3, u32(CODE64 | USER))
        set_flat(s, SS, (selector + 40) | 3, u32(DATA | USER))
    else:
        s.rip = s.gpr[RDX] & 0xFFFF_FFFF
        s.gpr[RSP] = s.gpr[RCX] & 0xFFFF_FFFF
        set_flat(s, CS, (selector + 16) | 3, u32(CODE32 | USER))
        set_flat(s, SS, (selector + 24) | 3, u32(DATA | USER))
    enter_user(s)
    update_mode(s)


@instruction("SWAPGS")
@native
def swapgs(s, o, f):
    require_cpl0(s)
    old = s.seg_base[GS]
    s.seg_base[GS] = s.kernel_gs_base
    s.kernel_gs_base = old
