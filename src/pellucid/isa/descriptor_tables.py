"""Descriptor tables and system segments: LGDT to STR; what descriptors permit: LAR, LSL, VERR, VERW, ARPL."""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, desc_attr, desc_base, desc_dpl, desc_limit, desc_type, descriptor_address, in_long_mode, linear,
    read_descriptor, set_null, table_of)
from pellucid.cpu.faults import fault, general_protection
from pellucid.cpu.flags import get_rflags, set_rflags
from pellucid.cpu.memory import check_base, load, load_sys, probe_write, store, store_sys
from pellucid.cpu.operands import address, read, set_register, write
from pellucid.cpu.paging import canonical_base
from pellucid.cpu.privilege import require_cpl0, require_protected, require_umip
from pellucid.cpu.state import GP, LDTR, NP, TR
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, u8, u16, u32, u64, uint


@native
def load_table(s, o, f):
    """Base of a pseudo-descriptor; its limit stays in s.ea."""
    require_cpl0(s)
    lin = address(s, o)
    limit = load(s, lin, u16)
    base: u64 = 0
    if f.w == 8:
        base = load(s, lin + 2, u64)
        check_base(s, base)
    else:
        base = u64(load(s, lin + 2, u32))
        if f.w == 2:
            base = base & 0xFF_FFFF
    s.table_limit = u32(limit)
    return base


def _table_width(code):
    return {"M1664": 8, "M1632": 4, "M1632_16": 2, "M1632_32": 4}[code.split("_", 1)[1]]


@instruction("LGDT", ends=LEAVE, width=_table_width, address_only=False)
@native
def lgdt(s, o, f):
    base = load_table(s, o, f)
    s.gdt_base = base
    s.gdt_limit = s.table_limit


@instruction("LIDT", ends=LEAVE, width=_table_width)
@native
def lidt(s, o, f):
    base = load_table(s, o, f)
    s.idt_base = base
    s.idt_limit = s.table_limit


@native
def store_table(s, o, f, base, limit):
    require_umip(s)
    lin = address(s, o)
    probe_write(s, lin, u64(2 + (8 if f.w == 8 else 4)))
    store(s, lin, u16(limit), u16)
    if f.w == 8:
        store(s, lin + 2, base, u64)
    else:
        store(s, lin + 2, u32(base), u32)


@instruction("SGDT", width=_table_width)
@native
def sgdt(s, o, f):
    store_table(s, o, f, s.gdt_base, s.gdt_limit)


@instruction("SIDT", width=_table_width)
@native
def sidt(s, o, f):
    store_table(s, o, f, s.idt_base, s.idt_limit)


@native
def read_selector(s, o, f):
    if f.kinds[0] == "m":
        return u32(load(s, address(s, o), u16))
    else:
        return u32(u16(read(s, o, f, 0)))


@native
def write_selector(s, o, f, selector):
    if f.kinds[0] == "m":
        store(s, address(s, o), selector, u16)
    else:
        write(s, o, f, 0, uint(f.widths[0])(selector))


@instruction("SLDT", "STR", extra=lambda c: LDTR if c.startswith("SLDT") else TR)
@native
def sldt_str(s, o, f):
    require_protected(s)
    require_umip(s)
    write_selector(s, o, f, s.seg_selector[f.extra])


@native
def system_descriptor(s, selector):
    """The descriptor of an LDT or TSS, which must be in the GDT: its first eight bytes."""
    error = selector & 0xFFFC
    if (selector & 4) != 0:
        general_protection(s, error)
    return read_descriptor(s, selector, error, u32(GP))


@native
def system_base(s, selector, d):
    """The base in a system descriptor; in IA-32e mode it has sixteen bytes, with the high half of the base."""
    base = desc_base(d)
    if in_long_mode(s):
        error = selector & 0xFFFC
        high = load_sys(s, descriptor_address(s, selector + 8, error, u32(GP)), u64)
        base = base | (high << 32)
        if (high >> 40) & 0x1F != 0 or not canonical_base(s, base):
            general_protection(s, error)
    return base


@native
def set_system_segment(s, n, selector, d, base):
    s.seg_selector[n] = u16(selector)
    s.seg_base[n] = base
    s.seg_limit[n] = desc_limit(d)
    s.seg_attr[n] = desc_attr(d)


@instruction("LLDT", ends=LEAVE)
@native
def lldt(s, o, f):
    require_protected(s)
    require_cpl0(s)
    selector = read_selector(s, o, f)
    if (selector & 0xFFFC) == 0:
        set_null(s, LDTR, selector)
    else:
        d = system_descriptor(s, selector)
        if u32(d >> 40) & 0x1F != 2:
            general_protection(s, selector & 0xFFFC)
        if (d & DESC_P) == 0:
            fault(s, u32(NP), selector & 0xFFFC)
        set_system_segment(s, LDTR, selector, d, system_base(s, selector, d))


@instruction("LTR", ends=LEAVE)
@native
def ltr(s, o, f):
    require_protected(s)
    require_cpl0(s)
    selector = read_selector(s, o, f)
    if (selector & 0xFFFC) == 0:
        general_protection(s, 0)
    d = system_descriptor(s, selector)
    kind = u32(d >> 40) & 0x1F
    if kind != 9 and (kind != 1 or in_long_mode(s)):
        general_protection(s, selector & 0xFFFC)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), selector & 0xFFFC)
    base = system_base(s, selector, d)
    store_sys(s, linear(s, s.gdt_base + u64(selector & 0xFFF8) + 5), u8(d >> 40) | 2, u8)
    set_system_segment(s, TR, selector, d, base)
    s.seg_attr[TR] = s.seg_attr[TR] | 2


# --- LAR, LSL, VERR, VERW, ARPL ------------------------------------------------------------------------


@native(inline=False)
def probe_descriptor(s, selector: u32, what: u32) -> u64:
    """The descriptor when LAR (0), LSL (1), VERR (2) or VERW (3) may see it, else 0."""
    if (selector & 0xFFFC) == 0:
        return u64(0)
    base, limit = table_of(s, selector)
    if (selector & 0xFFF8) + 7 > limit:
        return u64(0)
    d = load_sys(s, linear(s, base + u64(selector & 0xFFF8)), u64)
    kind = desc_type(d)
    if (d & DESC_S) == 0:
        known = kind == 2 or kind == 9 or kind == 11 or kind == 12 and what == 0
        if not in_long_mode(s):
            known = known or kind == 1 or kind == 3 or (what == 0 and (kind == 4 or kind == 5))
        if what >= 2 or not known:
            return u64(0)
    elif what == 2:
        if (kind & 0xA) == 8:
            return u64(0)
    elif what == 3:
        if (kind & 0xA) != 2:
            return u64(0)
    if (d & DESC_S) == 0 or (kind & 0xC) != 0xC:
        dpl = desc_dpl(d)
        if s.cpl > dpl or (selector & 3) > dpl:
            return u64(0)
    return d


@native
def set_zf(s, on):
    flags = get_rflags(s) & ~u64(0x40)
    if on:
        flags = flags | 0x40
    set_rflags(s, flags)


@native
def selector_operand(s, o, f, n):
    if f.kinds[n] == "m":
        return u32(load(s, address(s, o), u16))
    else:
        return u32(read(s, o, f, n)) & 0xFFFF


@instruction("LAR", cc_out=0xFF)
@native
def lar(s, o, f):
    require_protected(s)
    d = probe_descriptor(s, selector_operand(s, o, f, 1), u32(0))
    if d != 0:
        write(s, o, f, 0, uint(f.widths[0])((d >> 32) & 0xFFFF00))
    set_zf(s, d != 0)


@instruction("LSL", cc_out=0xFF)
@native
def lsl(s, o, f):
    require_protected(s)
    d = probe_descriptor(s, selector_operand(s, o, f, 1), u32(1))
    if d != 0:
        write(s, o, f, 0, uint(f.widths[0])(desc_limit(d)))
    set_zf(s, d != 0)


@instruction("VERR", "VERW", cc_out=0xFF, extra=lambda c: 2 if c.startswith("VERR") else 3)
@native
def verify(s, o, f):
    require_protected(s)
    set_zf(s, probe_descriptor(s, selector_operand(s, o, f, 0), u32(f.extra)) != 0)


@instruction("ARPL", cc_out=0xFF)
@native
def arpl(s, o, f):
    require_protected(s)
    want = u16(read(s, o, f, 1)) & 3
    old = u16(read(s, o, f, 0))
    lower = (old & 3) < want
    if lower:
        if f.kinds[0] == "r":
            set_register(s, o.dst, 2, (old & 0xFFFC) | want)
        else:
            write(s, o, f, 0, (old & 0xFFFC) | want)
    set_zf(s, lower)
