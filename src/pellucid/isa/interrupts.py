"""INT n, INT3, INTO, INT1, IRET, UD."""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, desc_dpl, desc_type, drop_inaccessible_all, in_64bit, in_long_mode, in_real_mode, in_v86,
    load_stack_segment, mark_accessed, read_descriptor, set_null, set_real_segment, set_segment)
from pellucid.cpu.faults import Stop, fault, general_protection, undefined
from pellucid.cpu.flags import get_rflags, set_rflags, status_flags
from pellucid.cpu.memory import check_canonical
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stack import drop, peek
from pellucid.cpu.state import (
    BP, CS, DB, DS, ES, EXIT_EXCEPTION, FS, GS, NP, OF, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_NT, RFLAGS_OF, RFLAGS_VIF,
    RFLAGS_VIP, RFLAGS_VM, SS)
from pellucid.isa.table import JUMP, LEAVE_JUMP, PLAIN, instruction
from pellucid.native import native, u32, u64

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


@instruction("INT", ends=JUMP, name="int_n")
@native
def int_n(s, o, f):
    if in_v86(s) and (s.flags & RFLAGS_IOPL) != RFLAGS_IOPL:
        general_protection(s, 0)
    software_interrupt(s, o, u32(o.imm) & 0xFF, 1)


@instruction("INT3", ends=JUMP)
@native
def int3(s, o, f):
    software_interrupt(s, o, u32(BP), 1)


@instruction("INT1", ends=JUMP)
@native
def int1(s, o, f):
    software_interrupt(s, o, u32(DB), 2)


@instruction("INTO", ends=PLAIN)
@native
def into(s, o, f):
    if (status_flags(s) & RFLAGS_OF) != 0:
        software_interrupt(s, o, u32(OF), 1)


@instruction("UD0", "UD1", "UD2", ends=JUMP, address_only=True)
@native
def ud(s, o, f):
    undefined(s)


@native
def merge_flags(s, value, w):
    """RFLAGS after IRET or POPF of w bytes: what the current CPL may not change stays (SDM vol. 2, IRET)."""
    may: u64 = 0x244DD5
    if w == 2:
        may = 0x4DD5
    iopl = u32(s.flags >> 12) & 3
    if s.cpl == 0:
        may = may | RFLAGS_IOPL
        if w != 2:
            may = may | RFLAGS_VIF | RFLAGS_VIP
    if s.cpl <= iopl:
        may = may | RFLAGS_IF
    if w != 2:
        may = may | 0x10000
    return (get_rflags(s) & ~may) | (value & may)


@instruction("IRET", "IRETD", "IRETQ", ends=LEAVE_JUMP, stack=True,
             width=lambda code: {"IRETW": 2, "IRETD": 4, "IRETQ": 8}[code])
@native
def iret(s, o, f):
    if in_real_mode(s):
        iret_real(s, f)
    elif in_v86(s):
        if (s.flags & RFLAGS_IOPL) != RFLAGS_IOPL:
            general_protection(s, 0)
        iret_real(s, f)
    else:
        iret_protected(s, f)
    s.nmi_blocked = 0


@native
def iret_real(s, f):
    ip = u64(peek(s, f, 0, f.w))
    cs = u32(peek(s, f, f.w, f.w))
    flags = u64(peek(s, f, f.w * 2, f.w))
    if ip > 0xFFFF:
        general_protection(s, 0)
    drop(s, f, f.w * 3)
    old = get_rflags(s)
    keep: u64 = 0x1A0000
    if f.w == 2:
        keep = 0xFFFF_0000
    if in_v86(s):
        keep = keep | RFLAGS_IOPL
    set_rflags(s, (old & keep) | (flags & ~keep & 0x3F7FD5))
    s.rip = ip
    set_real_code(s, cs & 0xFFFF)
    update_mode(s)


@native
def set_real_code(s, selector):
    limit = s.seg_limit[CS]
    set_real_segment(s, u32(CS), selector)
    if not in_v86(s):
        s.seg_attr[CS] = (s.seg_attr[CS] & 0xC000) | 0x9B
        s.seg_limit[CS] = limit


@native
def iret_protected(s, f):
    if (s.flags & RFLAGS_NT) != 0:
        if not in_long_mode(s):
            s.count_task_gates += 1
        general_protection(s, 0)
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
    error = selector & 0xFFFC
    if error == 0:
        general_protection(s, 0)
    d = read_descriptor(s, selector, error, u32(13))
    rpl = selector & 3
    kind = desc_type(d)
    if (d & DESC_S) == 0 or (kind & 8) == 0 or rpl < s.cpl:
        general_protection(s, error)
    if (kind & 4) != 0:
        if desc_dpl(d) > rpl:
            general_protection(s, error)
    elif desc_dpl(d) != rpl:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    to_64 = in_long_mode(s) and (d & (1 << 53)) != 0
    outer = rpl > s.cpl
    merged = merge_flags(s, flags, f.w)
    if outer or in_64bit(s):
        sp = u64(peek(s, f, f.w * 3, f.w))
        ss = u32(peek(s, f, f.w * 4, f.w)) & 0xFFFF
        null_ss = (ss & 0xFFFC) == 0 and to_64 and rpl != 3
        ssd: u64 = 0
        if not null_ss:
            ssd = load_stack_segment(s, ss, rpl, ss & 0xFFFC, u32(13))
        check_target(s, ip, to_64, d)
        mark_accessed(s, selector, d)
        if null_ss:
            set_null(s, SS, ss)
            s.seg_attr[SS] = s.seg_attr[SS] | (rpl << 5)
        else:
            mark_accessed(s, ss, ssd)
            set_segment(s, SS, ss, ssd)
        if to_64 or (ssd & (1 << 54)) != 0:
            s.gpr[RSP] = sp
        else:
            s.gpr[RSP] = (s.gpr[RSP] & ~u64(0xFFFF)) | (sp & 0xFFFF)
    else:
        check_target(s, ip, to_64, d)
        mark_accessed(s, selector, d)
        drop(s, f, f.w * 3)
    s.rip = ip
    set_segment(s, CS, selector, d)
    set_rflags(s, merged)
    if outer:
        s.cpl = rpl
        drop_inaccessible_all(s)
    update_mode(s)


@native
def check_target(s, ip, to_64, d):
    """A return address outside the code segment, or not canonical: #GP(0)."""
    if to_64:
        check_canonical(s, ip)
    else:
        limit = (d & 0xFFFF) | ((d >> 32) & 0xF_0000)
        if (d & (1 << 55)) != 0:
            limit = (limit << 12) | 0xFFF
        if ip > limit:
            general_protection(s, 0)


@native
def iret_to_v86(s, f, ip, selector, flags):
    sp = u64(peek(s, f, 12, 4))
    ss = u32(peek(s, f, 16, 4)) & 0xFFFF
    es = u32(peek(s, f, 20, 4)) & 0xFFFF
    ds = u32(peek(s, f, 24, 4)) & 0xFFFF
    fs = u32(peek(s, f, 28, 4)) & 0xFFFF
    gs = u32(peek(s, f, 32, 4)) & 0xFFFF
    set_rflags(s, flags & 0x3F7FD5)
    s.cpl = 3
    s.rip = ip & 0xFFFF
    s.gpr[RSP] = sp
    set_real_segment(s, u32(CS), selector)
    set_real_segment(s, u32(SS), ss)
    set_real_segment(s, u32(ES), es)
    set_real_segment(s, u32(DS), ds)
    set_real_segment(s, u32(FS), fs)
    set_real_segment(s, u32(GS), gs)
    update_mode(s)


