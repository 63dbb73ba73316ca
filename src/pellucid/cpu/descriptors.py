"""Segment descriptors: reading them, loading them into segment registers (SDM vol. 3, chapters 3 and 5)."""

from pellucid.cpu.faults import fault, general_protection, stack_fault
from pellucid.cpu.memory import load_sys, store_sys
from pellucid.cpu.paging import canonical
from pellucid.cpu.state import (
    ATTR_DPL_SHIFT, ATTR_UNUSABLE, CR0_PE, CS, DS, EFER_LMA, ES, FEATURE_AMD, FEATURES_SYSTEM, FS, GP, GS, LDTR,
    MODE_64, MODE_SIZE, NP, RFLAGS_VM, SS)
from pellucid.native import native, u8, u16, u32, u64

TYPE_CODE, TYPE_CONFORMING, TYPE_READABLE, TYPE_WRITABLE, TYPE_ACCESSED = 8, 4, 2, 2, 1
DESC_P, DESC_S = 1 << 47, 1 << 44


@native
def in_real_mode(s):
    return (s.cr0 & CR0_PE) == 0


@native
def in_v86(s):
    return (s.flags & RFLAGS_VM) != 0


@native
def in_long_mode(s):
    """IA-32e mode, whatever the code segment."""
    return (s.efer & EFER_LMA) != 0


@native
def is_amd(s):
    """Whether CPUID names a processor of AMD's."""
    return (s.features[FEATURES_SYSTEM] & FEATURE_AMD) != 0


@native
def in_64bit(s):
    return (s.mode & MODE_SIZE) == MODE_64


@native
def desc_base(d):
    return ((d >> 16) & 0xFF_FFFF) | ((d >> 32) & 0xFF00_0000)


@native
def desc_limit(d):
    limit = (d & 0xFFFF) | ((d >> 32) & 0xF_0000)
    if (d & (1 << 55)) != 0:
        limit = (limit << 12) | 0xFFF
    return u32(limit)


@native
def desc_attr(d):
    return u32(d >> 40) & 0xF0FF


@native
def desc_dpl(d):
    return u32(d >> 45) & 3


@native
def desc_type(d):
    return u32(d >> 40) & 15


@native
def is_wide_code(d):
    """A code segment of 64-bit mode: L set, D clear."""
    return (d >> 53) & 3 == 1


@native(inline=False)
def check_code_offset(s, offset: u64, d: u64, error: u32) -> None:
    """#GP(error) for an instruction pointer outside the code segment `d`, or not canonical in 64-bit mode."""
    if in_long_mode(s) and (d & (1 << 53)) != 0:
        if not canonical(s, offset):
            general_protection(s, error)
    elif offset > u64(desc_limit(d)):
        general_protection(s, error)


@native
def table_of(s, selector):
    """(base, limit) of the table that a selector names; an unusable LDT has no place for any descriptor."""
    base = s.gdt_base
    limit = s.gdt_limit
    if (selector & 4) != 0:
        base = s.seg_base[LDTR]
        limit = s.seg_limit[LDTR]
        if (s.seg_attr[LDTR] & ATTR_UNUSABLE) != 0:
            limit = u32(0)
    return base, limit


@native(inline=False)
def descriptor_address(s, selector: u32, error: u32, vector: u32) -> u64:
    """Linear address of a selector's descriptor; raises `vector`(error) beyond the table's limit."""
    base, limit = table_of(s, selector)
    if (selector & 0xFFF8) + 7 > limit:
        fault(s, vector, error)
    return linear(s, base + u64(selector & 0xFFF8))


@native(inline=False)
def read_descriptor(s, selector: u32, error: u32, vector: u32) -> u64:
    """The eight bytes of a selector's descriptor."""
    return load_sys(s, descriptor_address(s, selector, error, vector), u64)


@native(inline=False)
def mark_accessed(s, selector: u32, d: u64) -> None:
    """Set the accessed bit in memory where it is clear."""
    if (d & (1 << 40)) == 0:
        at = descriptor_address(s, selector, u32(selector & 0xFFFC), u32(GP))
        store_sys(s, linear(s, at + 5), u8((d >> 40) | 1), u8)


@native
def linear(s, address):
    """Linear addresses are 32 bits wide outside IA-32e mode."""
    return address if in_long_mode(s) else address & 0xFFFF_FFFF


@native
def set_segment(s, n, selector, d):
    """Load the hidden part of segment register n from descriptor d."""
    s.seg_selector[n] = u16(selector)
    s.seg_base[n] = desc_base(d)
    s.seg_limit[n] = desc_limit(d)
    s.seg_attr[n] = desc_attr(d) | 1


@native
def set_null(s, n, selector):
    s.seg_selector[n] = u16(selector)
    s.seg_base[n] = 0
    s.seg_limit[n] = 0
    s.seg_attr[n] = ATTR_UNUSABLE


@native
def set_real_segment(s, n, selector):
    """A segment load in real or virtual-8086 mode: base = selector * 16."""
    s.seg_selector[n] = u16(selector)
    s.seg_base[n] = u64(selector) << 4
    if in_v86(s):
        s.seg_limit[n] = 0xFFFF
        s.seg_attr[n] = 0xF3
    else:
        s.seg_attr[n] = (s.seg_attr[n] & 0xC000) | 0x93


@native
def set_real_code(s, selector):
    """CS in real and virtual-8086 mode: in real mode its limit and size stay, as protected mode left them."""
    limit = s.seg_limit[CS]
    set_real_segment(s, u32(CS), selector)
    if not in_v86(s):
        s.seg_attr[CS] = (s.seg_attr[CS] & 0xC000) | 0x9B
        s.seg_limit[CS] = limit


@native(inline=False)
def load_stack_segment(s, selector: u32, cpl: u32, error: u32, vector: u32) -> u64:
    """Check a selector for SS at privilege `cpl`; the descriptor. Raises vector(error), #SS when not present."""
    if (selector & 0xFFFC) == 0:
        fault(s, vector, error & 1)
    d = read_descriptor(s, selector, error, vector)
    kind = desc_type(d)
    if (selector & 3) != cpl or (d & DESC_S) == 0 or (kind & 8) != 0 or (kind & 2) == 0 or desc_dpl(d) != cpl:
        fault(s, vector, error)
    if (d & DESC_P) == 0:
        stack_fault(s, error)
    return d


@native(inline=False)
def load_segment(s, n: u32, selector: u32) -> None:
    """MOV or POP into ES, SS, DS, FS or GS. The caller updates the mode."""
    if in_real_mode(s) or in_v86(s):
        set_real_segment(s, n, selector)
        return
    error = selector & 0xFFFC
    if n == SS:
        if error == 0 and in_64bit(s) and s.cpl != 3 and (selector & 3) == s.cpl:
            set_null(s, n, selector)
            s.seg_attr[SS] = ATTR_UNUSABLE | (s.cpl << ATTR_DPL_SHIFT)
            return
        d = load_stack_segment(s, selector, s.cpl, error, u32(GP))
        mark_accessed(s, selector, d)
        set_segment(s, n, selector, d)
        return
    if error == 0:
        base = s.seg_base[n]
        set_null(s, n, selector)
        if is_amd(s):
            s.seg_base[n] = base  # APM vol. 2, 4.5.3
        return
    d = check_data_segment(s, selector, error, u32(GP))
    mark_accessed(s, selector, d)
    set_segment(s, n, selector, d)


@native(inline=False)
def check_data_segment(s, selector: u32, error: u32, vector: u32) -> u64:
    """Check a selector that is not null for DS, ES, FS or GS; the descriptor. Raises vector(error) or #NP(error)."""
    d = read_descriptor(s, selector, error, vector)
    kind = desc_type(d)
    if (d & DESC_S) == 0 or (kind & 0xA) == 8:
        fault(s, vector, error)
    if (kind & 0xC) != 0xC:
        dpl = desc_dpl(d)
        if (selector & 3) > dpl or s.cpl > dpl:
            fault(s, vector, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    return d


@native(inline=False)
def drop_inaccessible(s, n: u32) -> None:
    """On a return to an outer level: a data segment that the outer level may not use becomes null.

    Unlike a load of the null selector this leaves the base, which 64-bit mode goes on using for FS and GS.
    """
    attr = s.seg_attr[n]
    kind = attr & 15
    if (kind & 0xC) != 0xC and ((attr >> 5) & 3) < s.cpl and (attr & ATTR_UNUSABLE) == 0:
        base = s.seg_base[n]
        set_null(s, n, u32(0))
        s.seg_base[n] = base


@native
def drop_inaccessible_all(s):
    drop_inaccessible(s, u32(ES))
    drop_inaccessible(s, u32(DS))
    drop_inaccessible(s, u32(FS))
    drop_inaccessible(s, u32(GS))


@native
def set_flat(s, n, selector, attr):
    """A flat 4 GiB segment, as SYSCALL and SYSENTER load."""
    s.seg_selector[n] = u16(selector)
    s.seg_base[n] = 0
    s.seg_limit[n] = 0xFFFF_FFFF
    s.seg_attr[n] = attr
