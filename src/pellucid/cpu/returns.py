"""What RET far and IRET share: the checks of a return, and the stack of an outer level (SDM vol. 2, IRET and RET)."""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, desc_base, desc_dpl, desc_type, drop_inaccessible_all, in_long_mode, is_wide_code,
    load_stack_segment, mark_accessed, read_descriptor, set_null, set_segment)
from pellucid.cpu.faults import fault, general_protection
from pellucid.cpu.shadow import return_shadow
from pellucid.cpu.state import ATTR_DPL_SHIFT, CR4_CET, CS, GP, NP, SS
from pellucid.native import native, u32, u64, unlikely

RSP = 4


@native(inline=False)
def return_code(s, selector: u32) -> u64:
    """Descriptor of the code segment to return to; #GP or #NP (selector), or #GP(0) for a null one."""
    error = selector & 0xFFFC
    if error == 0:
        general_protection(s, 0)
    d = read_descriptor(s, selector, error, u32(GP))
    rpl = selector & 3
    kind = desc_type(d)
    if (d & DESC_S) == 0 or (kind & 8) == 0 or rpl < s.cpl:
        general_protection(s, error)
    dpl = desc_dpl(d)
    if (kind & 4) != 0:
        if dpl > rpl:
            general_protection(s, error)
    elif dpl != rpl:
        general_protection(s, error)
    if in_long_mode(s) and (d >> 53) & 3 == 3:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    return d


@native
def returns_to_64bit(s, d):
    return in_long_mode(s) and is_wide_code(d)


@native(inline=False)
def return_stack(s, ss: u32, rpl: u32, wide: bool) -> u64:
    """Descriptor of the stack segment at the level to return to; 0 for the null one of 64-bit mode, levels 0 to 2."""
    if (ss & 0xFFFC) == 0 and wide and rpl != 3:
        return u64(0)
    d = load_stack_segment(s, ss, rpl, ss & 0xFFFC, u32(GP))
    mark_accessed(s, ss, d)
    return d


@native
def set_return_stack(s, ss, d, rpl, sp, wide):
    """Load SS and the stack pointer, of which a 16-bit stack takes the low half."""
    if d == 0:
        set_null(s, SS, ss)
        s.seg_attr[SS] = s.seg_attr[SS] | (rpl << ATTR_DPL_SHIFT)
    else:
        set_segment(s, SS, ss, d)
    if wide:
        s.gpr[RSP] = sp
    elif (d & (1 << 54)) != 0:
        s.gpr[RSP] = sp & 0xFFFF_FFFF
    else:
        s.gpr[RSP] = (s.gpr[RSP] & ~u64(0xFFFF)) | (sp & 0xFFFF)


@native
def check_return(s, selector, d, ip, wide, event):
    """The shadow stack's part of a return, by RET or (`event`) IRET; the last step before registers change."""
    if unlikely((s.cr4 & CR4_CET) != 0):
        lip = ip
        if not wide:
            lip = (desc_base(d) + ip) & 0xFFFF_FFFF
        return_shadow(s, selector, lip, wide, event)


@native
def set_return_code(s, selector, d, ip):
    """Load CS and RIP; data segments that an outer level may not use become null. The caller updates the mode."""
    rpl = selector & 3
    s.rip = ip
    set_segment(s, CS, selector, d)
    if rpl > s.cpl:
        s.cpl = rpl
        drop_inaccessible_all(s)
