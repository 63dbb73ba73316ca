"""INT n, INT3, INTO, INT1, IRET, UD."""

from pellucid.cpu.descriptors import (
    check_code_offset, in_64bit, in_long_mode, in_real_mode, in_v86, mark_accessed, set_real_code, set_real_segment)
from pellucid.cpu.faults import Stop, general_protection, undefined
from pellucid.cpu.flags import get_rflags, set_rflags, status_flags
from pellucid.cpu.memory import load_sys
from pellucid.cpu.privilege import require_iopl
from pellucid.cpu.returns import (
    check_return, return_code, return_stack, returns_to_64bit, set_return_code, set_return_stack)
from pellucid.cpu.segments import update_mode
from pellucid.cpu.shadow import leave_for_v86
from pellucid.cpu.stack import drop, peek
from pellucid.cpu.state import (
    BP, CS, DB, DS, ES, EXIT_EXCEPTION, FS, GS, OF, PENDING_NMI, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_NT, RFLAGS_OF,
    RFLAGS_RF, RFLAGS_VIF, RFLAGS_VIP, RFLAGS_VM, SOFT_ICEBP, SOFT_INT, SS, TR, TS)
from pellucid.cpu.tasks import RETURN, switch_task, task_descriptor
from pellucid.cpu.virtual import (
    check_virtual_pending, enter_8086_handler, redirected, require_vme, sensitive, taken_flags)
from pellucid.isa.table import JUMP, LEAVE, LEAVE_JUMP, instruction
from pellucid.native import atomic_or, native, ref, u16, u32, u64

RSP = 4


@native
def software_interrupt(s, o, vector, kind):
    """Leave to delivery, which returns behind this instruction."""
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = vector
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = kind
    s.exc_length = u32(o.length)
    raise Stop


@instruction("INT", ends=LEAVE_JUMP, name="int_n")
@native
def int_n(s, o, f):
    vector = u32(o.imm) & 0xFF
    if in_v86(s):
        if redirected(s, vector):
            enter_8086_handler(s, vector, s.rip + u64(o.next_ip))
            return
        require_iopl(s)
    software_interrupt(s, o, vector, SOFT_INT)


@instruction("INT3", ends=JUMP)
@native
def int3(s, o, f):
    software_interrupt(s, o, u32(BP), SOFT_INT)


@instruction("INT1", ends=JUMP)
@native
def int1(s, o, f):
    software_interrupt(s, o, u32(DB), SOFT_ICEBP)


@instruction("INTO", ends=LEAVE)
@native
def into(s, o, f):
    if (status_flags(s) & RFLAGS_OF) != 0:
        software_interrupt(s, o, u32(OF), SOFT_INT)


@instruction("UD0", "UD1", "UD2", ends=JUMP, address_only=True)
@native
def ud(s, o, f):
    undefined(s)


# --- IRET ----------------------------------------------------------------------------------------------


@instruction("IRET", "IRETD", "IRETQ", ends=LEAVE_JUMP, stack=True,
             width=lambda code: {"IRETW": 2, "IRETD": 4, "IRETQ": 8}[code])
@native
def iret(s, o, f):
    unblock_nmi(s)
    if in_real_mode(s):
        iret_real(s, f)
    elif in_v86(s):
        if sensitive(s):
            require_vme(s, u32(f.w))
        iret_real(s, f)
    elif (s.flags & RFLAGS_NT) != 0:
        iret_task(s, o)
    else:
        iret_protected(s, f)


@native
def unblock_nmi(s):
    """NMIs are taken again even where the IRET faults (SDM vol. 3, 6.7.1)."""
    if s.nmi_blocked != 0:
        s.nmi_blocked = 0
        atomic_or(ref(s, "pending"), u64(PENDING_NMI))


@native
def merge_flags(s, value, w):
    """RFLAGS after IRET of w bytes in protected mode: what the current CPL may not change stays (SDM vol. 2, IRET)."""
    may: u64 = 0x244DD5
    if w == 2:
        may = 0x4DD5
    if s.cpl == 0:
        may = may | RFLAGS_IOPL
        if w != 2:
            may = may | RFLAGS_VIF | RFLAGS_VIP
    if s.cpl <= u32(s.flags >> 12) & 3:
        may = may | RFLAGS_IF
    if w != 2:
        may = may | RFLAGS_RF
    return (get_rflags(s) & ~may) | (value & may)


@native
def iret_real(s, f):
    """Real mode, and virtual-8086 mode, where IOPL and VM stay."""
    ip = u64(peek(s, f, 0, f.w))
    cs = u32(peek(s, f, f.w, f.w))
    flags = u64(peek(s, f, f.w * 2, f.w))
    if ip > u64(s.seg_limit[CS]):
        general_protection(s, 0)
    keep: u64 = RFLAGS_VM | RFLAGS_VIF | RFLAGS_VIP
    if f.w == 2:
        keep = 0xFFFF_0000
    if in_v86(s):
        keep = keep | RFLAGS_IOPL
    if sensitive(s):
        flags = taken_flags(s, flags)
        keep = (keep | RFLAGS_IF) & ~u64(RFLAGS_VIF)
    drop(s, f, f.w * 3)
    set_rflags(s, (get_rflags(s) & keep) | (flags & ~keep & 0x3F7FD5))
    s.rip = ip
    set_real_code(s, cs & 0xFFFF)
    update_mode(s)


@native(inline=False)
def iret_task(s, o) -> None:
    """NT: back to the task that the current TSS links to; #GP(0) in IA-32e mode."""
    if in_long_mode(s):
        general_protection(s, 0)
    selector = u32(load_sys(s, s.seg_base[TR] & 0xFFFF_FFFF, u16))
    d = task_descriptor(s, selector, u32(TS), u32(0), True)
    switch_task(s, selector, d, u32(RETURN), s.rip + u64(o.next_ip), get_rflags(s), u32(0), u64(o.ip))


@native
def iret_protected(s, f):
    ip = u64(peek(s, f, 0, f.w))
    selector = u32(peek(s, f, f.w, f.w)) & 0xFFFF
    flags = u64(peek(s, f, f.w * 2, f.w))
    if f.w == 4 and not f.m64:
        if (flags & RFLAGS_VM) != 0 and s.cpl == 0 and not in_long_mode(s):
            iret_to_v86(s, f, ip, selector, flags)
            return
    iret_code(s, f, ip, selector, flags)


@native
def iret_code(s, f, ip, selector, flags):
    """A return within protected or IA-32e mode; 64-bit mode always pops the stack pointer."""
    d = return_code(s, selector)
    wide = returns_to_64bit(s, d)
    if not wide:
        ip = ip & 0xFFFF_FFFF
    merged = merge_flags(s, flags, f.w)
    rpl = selector & 3
    if rpl > s.cpl or in_64bit(s):
        sp = u64(peek(s, f, f.w * 3, f.w))
        ss = u32(peek(s, f, f.w * 4, f.w)) & 0xFFFF
        ssd = return_stack(s, ss, rpl, wide)
        check_code_offset(s, ip, d, u32(0))
        mark_accessed(s, selector, d)
        check_return(s, selector, d, ip, wide, True)
        set_return_stack(s, ss, ssd, rpl, sp, wide)
    else:
        check_code_offset(s, ip, d, u32(0))
        mark_accessed(s, selector, d)
        check_return(s, selector, d, ip, wide, True)
        drop(s, f, f.w * 3)
    set_rflags(s, merged)
    set_return_code(s, selector, d, ip)
    update_mode(s)
    check_virtual_pending(s)


@native
def iret_to_v86(s, f, ip, selector, flags):
    """To virtual-8086 mode: ESP, SS, ES, DS, FS and GS follow on the stack."""
    if ip > 0xFFFF:
        general_protection(s, 0)
    sp = u64(peek(s, f, 12, 4))
    ss = u32(peek(s, f, 16, 4)) & 0xFFFF
    es = u32(peek(s, f, 20, 4)) & 0xFFFF
    ds = u32(peek(s, f, 24, 4)) & 0xFFFF
    fs = u32(peek(s, f, 28, 4)) & 0xFFFF
    gs = u32(peek(s, f, 32, 4)) & 0xFFFF
    leave_for_v86(s)
    set_rflags(s, flags & 0x3F7FD5)
    s.cpl = 3
    s.rip = ip
    s.gpr[RSP] = sp
    set_real_segment(s, u32(ES), es)
    set_real_segment(s, u32(CS), selector)
    set_real_segment(s, u32(SS), ss)
    set_real_segment(s, u32(DS), ds)
    set_real_segment(s, u32(FS), fs)
    set_real_segment(s, u32(GS), gs)
    update_mode(s)
    check_virtual_pending(s)
