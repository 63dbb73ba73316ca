"""Hardware task switches of protected mode (SDM vol. 3, chapter 7).

A switch reads the whole new TSS and tries every write before it changes anything. Behind that point the new task runs:
a segment of its that does not load raises its exception there, with the new task's registers.
"""

from pellucid.cpu.breakpoints import update_breakpoints
from pellucid.cpu.control import load_pdptrs, pae_paging
from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, check_code_offset, check_data_segment, desc_attr, desc_base, desc_dpl, desc_limit, desc_type,
    in_v86, load_stack_segment, mark_accessed, read_descriptor, set_null, set_real_segment, set_segment)
from pellucid.cpu.faults import Stop, fault, general_protection
from pellucid.cpu.flags import set_rflags
from pellucid.cpu.memory import flush_tlb, load_sys, probe_sys, store_sys
from pellucid.cpu.segments import update_mode
from pellucid.cpu.shadow import shadow_enabled
from pellucid.cpu.stacks import Stack, current_stack, push_onto, stack_pointer
from pellucid.cpu.state import (
    CR0_PG, CR0_TS, CR4_CET, CS, DR6_BT, DR7_LOCAL, DS, ES, EXIT_MMIO, FS, GS, GP, LDTR, NP, RFLAGS_NT, RFLAGS_VM,
    SS, TR, TS)
from pellucid.cpu.task_shadow import TO_PUSH, TaskShadow, begin_task, leave_nested, leave_task, resume_task
from pellucid.cpu.virtual import check_virtual_pending
from pellucid.native import array, local, native, static, struct, u8, u16, u32, u64
from pellucid.native.layout import Struct

RSP = 4
TASK_GATE = 5
# Why a task is entered.
JUMP, NEST, RETURN = 0, 1, 2             # JMP; CALL, interrupts and exceptions; IRET with NT
TSS_MIN_32, TSS_MIN_16 = 0x67, 0x2B
FLAGS_DEFINED = 0x3F7FD7


@struct
class Task(Struct):
    """A TSS's dynamic and static fields, read before the switch."""

    gpr: array[u32, 8]
    segment: array[u32, 6]
    ip: u64
    flags: u64
    cr3: u64
    ldt: u32
    trap: u32
    base: u64
    limit: u32
    wide: u32        # 1: a 32-bit TSS


@native
def width(wide):
    return u64(4) if wide != 0 else u64(2)


@native
def field_address(t, number):
    """Linear address of dynamic field 0 to 15: IP, flags, eight registers, segments (six or four)."""
    first: u64 = 14
    if t.wide != 0:
        first = 0x20
    return (t.base + first + number * width(t.wide)) & 0xFFFF_FFFF


@native(inline=False)
def get_field(s, t, number: u64) -> u64:
    if t.wide != 0:
        return u64(load_sys(s, field_address(t, number), u32))
    return u64(load_sys(s, field_address(t, number), u16))


@native(inline=False)
def put_field(s, t, number: u64, value: u64) -> None:
    if t.wide != 0:
        store_sys(s, field_address(t, number), u32(value), u32)
    else:
        store_sys(s, field_address(t, number), u16(value), u16)


@native(inline=False)
def read_task(s, t) -> None:
    """Everything of a new task's TSS."""
    wide = t.wide != 0
    upper: u32 = 0
    if not wide:
        upper = 0xFFFF_0000
    t.ip = get_field(s, t, u64(0))
    t.flags = get_field(s, t, u64(1))
    for n in static(range(8)):
        t.gpr[n] = u32(get_field(s, t, u64(n + 2))) | upper
    for n in static(range(6)):
        t.segment[n] = 0
        if n < 4 or wide:
            t.segment[n] = u32(get_field(s, t, u64(n + 10))) & 0xFFFF
    t.ldt = u32(load_sys(s, (t.base + (u64(0x60) if wide else u64(0x2A))) & 0xFFFF_FFFF, u16))
    t.cr3 = 0
    t.trap = 0
    if wide:
        t.cr3 = u64(load_sys(s, (t.base + 0x1C) & 0xFFFF_FFFF, u32))
        t.trap = u32(load_sys(s, (t.base + 0x64) & 0xFFFF_FFFF, u16)) & 1


@native
def current_task(s, t):
    """Where the task that runs is saved."""
    t.base = s.seg_base[TR]
    t.limit = s.seg_limit[TR]
    t.wide = (s.seg_attr[TR] >> 3) & 1


@native(inline=False)
def save_task(s, t, ip: u64, flags: u64) -> None:
    """Write the registers of the task that runs into its TSS."""
    put_field(s, t, u64(0), ip)
    put_field(s, t, u64(1), flags)
    for n in static(range(8)):
        put_field(s, t, u64(n + 2), s.gpr[n])
    for n in static(range(6)):
        if n < 4 or t.wide != 0:
            put_field(s, t, u64(n + 10), u64(s.seg_selector[n]))


@native(inline=False)
def task_descriptor(s, selector: u32, vector: u32, ext: u32, busy: bool) -> u64:
    """The descriptor of a TSS to enter: in the GDT, available (or, for a return, busy), present, long enough."""
    error = (selector & 0xFFFC) | ext
    if (selector & 4) != 0:
        fault(s, vector, error)
    d = read_descriptor(s, selector, error, vector)
    kind = desc_type(d)
    wanted: u32 = 1
    if busy:
        wanted = 3
    if (d & DESC_S) != 0 or (kind & 7) != wanted:
        fault(s, vector, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    least: u32 = TSS_MIN_16
    if (kind & 8) != 0:
        least = TSS_MIN_32
    if desc_limit(d) < least:
        fault(s, u32(TS), error)
    return d


@native
def set_busy(s, selector, d, busy):
    """Write the busy bit of a TSS descriptor in the GDT."""
    kind = u8(d >> 40) & 0xFD
    if busy:
        kind = kind | 2
    store_sys(s, busy_byte(s, selector), kind, u8)


@native
def busy_byte(s, selector):
    return (s.gdt_base + u64(selector & 0xFFF8) + 5) & 0xFFFF_FFFF


@native(inline=False)
def switch_task(s, selector: u32, d: u64, way: u32, back: u64, flags: u64, ext: u32, bias: u64) -> None:
    """Enter the task of TSS descriptor `d`; `back` and `flags` are saved for the one that leaves.

    An instruction passes in `bias` how far it is behind its block's start: what it raises from here on is at
    RIP + bias.
    """
    old = local(Task)
    new = local(Task)
    current_task(s, old)
    new.base = desc_base(d)
    new.limit = desc_limit(d)
    new.wide = (desc_type(d) >> 3) & 1
    least: u32 = TSS_MIN_16
    if old.wide != 0:
        least = TSS_MIN_32
    if old.limit < least:
        fault(s, u32(TS), (u32(s.seg_selector[TR]) & 0xFFFC) | ext)
    read_task(s, new)
    leaving = u32(s.seg_selector[TR])
    left = read_descriptor(s, leaving, (leaving & 0xFFFC) | ext, u32(TS))
    probe_sys(s, old.base, u64(least) + 1)
    probe_sys(s, new.base, u64(2))
    probe_sys(s, busy_byte(s, leaving), u64(1))
    probe_sys(s, busy_byte(s, selector), u64(1))
    if way == RETURN:
        flags = flags & ~u64(RFLAGS_NT)
    shadow = local(TaskShadow)
    cpl = u32(3) if (new.flags & RFLAGS_VM) != 0 else new.segment[CS] & 3
    if (s.cr4 & CR4_CET) != 0:
        if way == RETURN:
            leave_nested(s, shadow, cpl)
        else:
            leave_task(s, shadow, cpl, new.base, new.wide != 0, back)
            if way == NEST and shadow_enabled(s) and shadow.keep == 0:
                shadow.frame = TO_PUSH
    # A device's answer to one of these starts the instruction over, so the busy bits, which it tests, change last.
    save_task(s, old, back, flags)
    if way == NEST:
        store_sys(s, new.base & 0xFFFF_FFFF, u16(leaving), u16)
    else:
        set_busy(s, leaving, left, False)
    if way != RETURN:
        set_busy(s, selector, d, True)
    enter_task(s, new, shadow, selector, d, way, ext, bias)


@native
def enter_task(s, t, shadow, selector, d, way, ext, bias):
    """The point of no return: load the registers, then the segments."""
    s.seg_selector[TR] = u16(selector)
    s.seg_base[TR] = t.base
    s.seg_limit[TR] = t.limit
    s.seg_attr[TR] = desc_attr(d) | 2
    s.cr0 = s.cr0 | CR0_TS
    s.dr[7] = s.dr[7] & ~u64(DR7_LOCAL)
    update_breakpoints(s)
    for n in static(range(8)):
        s.gpr[n] = u64(t.gpr[n])
    s.rip = t.ip - bias
    flags = (t.flags & FLAGS_DEFINED) | 2
    if way == NEST:
        flags = flags | RFLAGS_NT
    set_rflags(s, flags)
    for n in static(range(6)):
        set_null(s, n, t.segment[n])
    set_null(s, LDTR, t.ldt)
    s.cpl = t.segment[CS] & 3
    if (flags & RFLAGS_VM) != 0:
        s.cpl = 3
    if t.wide != 0 and (s.cr0 & CR0_PG) != 0:
        if pae_paging(s.cr0, s.cr4, s.efer):
            load_pdptrs(s, t.cr3)
        s.cr3 = t.cr3
        flush_tlb(s, False)
    update_mode(s)
    load_committed(s, t, shadow, way, (selector & 0xFFFC) | ext, ext)
    s.rip = t.ip
    if t.trap != 0:
        s.db_pending = s.db_pending | DR6_BT
    update_mode(s)
    check_virtual_pending(s)


@native
def load_committed(s, t, shadow, way, name, ext):
    """Load the segments with nothing to go back to: translated code that the accessed bits overwrite just dies, and
    descriptor tables on a device are not built (counted; #TS).
    """
    outer = s.alone
    s.alone = 1
    s.bring_in = 1
    try:
        load_task_segments(s, t, ext)
        if way == RETURN:
            resume_task(s, shadow, t.ip, name)
        else:
            begin_task(s, shadow, name)
        s.alone = outer
        s.bring_in = 0
    except Stop:
        s.alone = outer
        s.bring_in = 0
        if s.exit_reason == EXIT_MMIO:
            s.count_mmio_tables += 1
            fault(s, u32(TS), ext)
        raise Stop


@native(inline=False)
def load_task_segments(s, t, ext: u32) -> None:
    """LDTR and the six segment registers of the task that now runs (SDM vol. 3, table 7-1)."""
    if (t.ldt & 0xFFFC) != 0:
        error = (t.ldt & 0xFFFC) | ext
        if (t.ldt & 4) != 0:
            fault(s, u32(TS), error)
        d = read_descriptor(s, t.ldt, error, u32(TS))
        if u32(d >> 40) & 0x9F != 0x82:
            fault(s, u32(TS), error)
        set_segment(s, LDTR, t.ldt, d)
        s.seg_attr[LDTR] = desc_attr(d)
    if in_v86(s):
        for n in static(range(6)):
            set_real_segment(s, n, t.segment[n])
        if t.ip > 0xFFFF:
            general_protection(s, ext)
        return
    stack = load_stack_segment(s, t.segment[SS], s.cpl, (t.segment[SS] & 0xFFFC) | ext, u32(TS))
    mark_accessed(s, t.segment[SS], stack)
    set_segment(s, SS, t.segment[SS], stack)
    for n in static((DS, ES, FS, GS)):
        if (t.segment[n] & 0xFFFC) != 0:
            data = check_data_segment(s, t.segment[n], (t.segment[n] & 0xFFFC) | ext, u32(TS))
            mark_accessed(s, t.segment[n], data)
            set_segment(s, n, t.segment[n], data)
    load_task_code(s, t.segment[CS], t.ip, ext)


@native
def load_task_code(s, selector, ip, ext):
    error = (selector & 0xFFFC) | ext
    if (selector & 0xFFFC) == 0:
        fault(s, u32(TS), error)
    d = read_descriptor(s, selector, error, u32(TS))
    kind = desc_type(d)
    dpl = desc_dpl(d)
    fits = (d & DESC_S) != 0 and (kind & 8) != 0
    if (kind & 4) != 0:
        fits = fits and dpl <= (selector & 3)
    else:
        fits = fits and dpl == (selector & 3)
    if not fits:
        fault(s, u32(TS), error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    mark_accessed(s, selector, d)
    set_segment(s, CS, selector, d)
    check_code_offset(s, ip, d, ext)


@native(inline=False)
def interrupt_task(s, selector: u32, back: u64, flags: u64, error: u32, has_error: bool, ext: u32) -> None:
    """An event through a task gate; the error code goes on the new task's stack."""
    d = task_descriptor(s, selector, u32(GP), ext, False)
    switch_task(s, selector, d, u32(NEST), back, flags, ext, u64(0))
    if has_error:
        k = local(Stack)
        current_stack(s, k, s.cpl, ext)
        if (s.seg_attr[TR] & 8) != 0:
            push_onto(s, k, u64(error), 4)
        else:
            push_onto(s, k, u64(error), 2)
        s.gpr[RSP] = stack_pointer(s, k)
