"""Interrupt, trap and task gates of protected and IA-32e mode (SDM vol. 3, 6.12 to 6.14).

Error codes of faults on the way carry EXT, unless INT n, INT3 or INTO asked for the delivery.
"""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, check_code_offset, desc_dpl, desc_type, in_v86, is_wide_code, mark_accessed, read_descriptor,
    set_null, set_segment)
from pellucid.cpu.faults import fault, general_protection
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.memory import load_sys, tlb_address, tlb_entry
from pellucid.cpu.paging import canonical
from pellucid.cpu.segments import update_mode
from pellucid.cpu.shadow import enter_shadow, track_far
from pellucid.cpu.stacks import Stack, current_stack, push_onto, stack_pointer, task_stack, task_stack64, wide_stack
from pellucid.cpu.state import (
    ATTR_DPL_SHIFT, CR4_CET, CS, DB, DEBUG_FAULT, DS, ES, FS, GP, GS, NP, PAGE_MASK, RFLAGS_IF, RFLAGS_NT,
    RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, SOFT_ICEBP, SOFT_INT, SOFT_NONE, SS)
from pellucid.cpu.tasks import TASK_GATE, interrupt_task
from pellucid.native import likely, local, native, ptr, ref, static, u32, u64, volatile_store

RSP = 4
IST_OFFSET, STACK_OFFSET = 36, 4        # IST1 and RSP0 in the 64-bit TSS
FRAME_BYTES = 48                        # of an event in IA-32e mode, with an error code


@native
def return_address(s, soft):
    """Where the handler returns: behind INT n, INT3, INTO and INT1, else at the interrupted instruction."""
    back = s.rip
    if soft == SOFT_INT or soft == SOFT_ICEBP:
        back = back + u64(s.exc_length)
    return back


@native
def saved_flags(s, vector, soft):
    """RFLAGS as pushed: a fault sets RF so that its instruction can be restarted (SDM vol. 3, 17.3.1.1)."""
    value = get_rflags(s)
    if (soft == SOFT_NONE and vector != DB) or soft == DEBUG_FAULT:
        value = value | RFLAGS_RF
    return value


@native
def external_bit(soft):
    bit: u32 = 1
    if soft == SOFT_INT:
        bit = 0
    return bit


@native
def gate_error(vector, soft):
    """The error code that names an IDT entry."""
    return vector * 8 + 2 + external_bit(soft)


@native
def enter_gate(s, kind, cpl):
    """What every gate does to the flags; an interrupt gate (even type) also clears IF."""
    s.cpl = cpl
    s.flags = s.flags & ~u64(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM)
    if (kind & 1) == 0:
        s.flags = s.flags & ~u64(RFLAGS_IF)
    track_far(s)
    update_mode(s)


@native
def check_gate(s, gate, name, soft):
    """The caller has checked the type: privilege of a software interrupt, presence, a selector."""
    if soft == SOFT_INT and desc_dpl(gate) < s.cpl:
        general_protection(s, name)
    if (gate & DESC_P) == 0:
        fault(s, u32(NP), name)


@native(inline=False)
def check_gate_code(s, selector: u32, ext: u32, wide: bool) -> u64:
    """The code descriptor that a gate names: #GP or #NP (selector + EXT) when it does not serve."""
    if (selector & 0xFFFC) == 0:
        general_protection(s, ext)
    error = (selector & 0xFFFC) | ext
    d = read_descriptor(s, selector, error, u32(GP))
    if (d & DESC_S) == 0 or (desc_type(d) & 8) == 0 or desc_dpl(d) > s.cpl:
        general_protection(s, error)
    if wide and not is_wide_code(d):
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    return d


@native
def handler_level(s, code):
    """The CPL of a handler: its segment's DPL, but a conforming segment runs at the CPL of who was interrupted."""
    cpl = s.cpl
    if (desc_type(code) & 4) == 0:
        cpl = desc_dpl(code)
    return cpl


# --- IA-32e mode ---------------------------------------------------------------------------------------


@native(inline=False)
def deliver_long(s, vector: u32, error: u32, has_error: bool, soft: u32) -> None:
    """Through a 64-bit gate (SDM vol. 3, 6.14)."""
    name = gate_error(vector, soft)
    ext = external_bit(soft)
    if vector * 16 + 15 > s.idt_limit:
        general_protection(s, name)
    at = s.idt_base + u64(vector) * 16
    gate = load_sys(s, at, u64)
    high = load_sys(s, at + 8, u64)
    kind = u32(gate >> 40) & 0x1F
    if kind != 14 and kind != 15 or (high >> 40) & 0x1F != 0:
        general_protection(s, name)
    check_gate(s, gate, name, soft)
    selector = u32(gate >> 16) & 0xFFFF
    code = check_gate_code(s, selector, ext, True)
    cpl = handler_level(s, code)
    target = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000) | (high << 32)
    k = local(Stack)
    wide_stack(s, k, long_stack_pointer(s, gate, cpl, ext) & ~u64(15), cpl, ext)
    push_long(s, k, vector, error, has_error, soft)
    if not canonical(s, target):
        general_protection(s, ext)
    mark_accessed(s, selector, code)
    if (s.cr4 & CR4_CET) != 0:
        enter_shadow(s, cpl, return_address(s, soft), shadow_entry(s, gate), True)
    if cpl < s.cpl:
        set_null(s, SS, cpl)
        s.seg_attr[SS] = s.seg_attr[SS] | (cpl << ATTR_DPL_SHIFT)
    s.gpr[RSP] = k.sp
    s.rip = target
    set_segment(s, CS, (selector & 0xFFFC) | cpl, code)
    enter_gate(s, kind, cpl)


@native
def long_stack_pointer(s, gate, cpl, ext):
    """The interrupt stack that the gate names, the stack of an inner level, or the current one."""
    sp = s.gpr[RSP]
    ist = u32(gate >> 32) & 7
    if ist != 0:
        sp = task_stack64(s, IST_OFFSET + (ist - 1) * 8, ext)
    elif cpl < s.cpl:
        sp = task_stack64(s, STACK_OFFSET + cpl * 8, ext)
    return sp


@native
def shadow_entry(s, gate):
    """The place in the interrupt SSP table of the interrupt stack that the gate names, or 0."""
    at: u64 = 0
    ist = (gate >> 32) & 7
    if ist != 0:
        at = s.ssp_table + ist * 8
    return at


@native
def push_long(s, k, vector, error, has_error, soft):
    """The frame of IA-32e mode. It starts at a multiple of 16 bytes, so mostly lies in one page, which a TLB holds."""
    frame = k.sp - FRAME_BYTES
    e = tlb_entry(s, tlb_address(s, k.index), frame)
    if likely(e.wtag == (frame + (FRAME_BYTES - 1)) & PAGE_MASK) and canonical(s, frame):
        host = ptr[u64](e.addend + frame)
        volatile_store(ref(host, 5), u64(s.seg_selector[SS]))
        volatile_store(ref(host, 4), s.gpr[RSP])
        volatile_store(ref(host, 3), saved_flags(s, vector, soft))
        volatile_store(ref(host, 2), u64(s.seg_selector[CS]))
        volatile_store(ref(host, 1), return_address(s, soft))
        k.sp = frame + 8
        if has_error:
            volatile_store(host, u64(error))
            k.sp = frame
    else:
        push_long_slowly(s, k, vector, error, has_error, soft)


@native(inline=False)
def push_long_slowly(s, k, vector: u32, error: u32, has_error: bool, soft: u32) -> None:
    push_onto(s, k, u64(s.seg_selector[SS]), 8)
    push_onto(s, k, s.gpr[RSP], 8)
    push_onto(s, k, saved_flags(s, vector, soft), 8)
    push_onto(s, k, u64(s.seg_selector[CS]), 8)
    push_onto(s, k, return_address(s, soft), 8)
    if has_error:
        push_onto(s, k, u64(error), 8)


# --- protected and virtual-8086 mode -------------------------------------------------------------------


@native(inline=False)
def deliver_protected(s, vector: u32, error: u32, has_error: bool, soft: u32) -> None:
    """Through a 16- or 32-bit gate, or a task gate (SDM vol. 3, 6.12)."""
    name = gate_error(vector, soft)
    ext = external_bit(soft)
    if vector * 8 + 7 > s.idt_limit:
        general_protection(s, name)
    gate = load_sys(s, (s.idt_base + u64(vector) * 8) & 0xFFFF_FFFF, u64)
    kind = u32(gate >> 40) & 0x1F
    if kind != 6 and kind != 7 and kind != 14 and kind != 15 and kind != TASK_GATE:
        general_protection(s, name)
    check_gate(s, gate, name, soft)
    selector = u32(gate >> 16) & 0xFFFF
    if kind == TASK_GATE:
        interrupt_task(s, selector, return_address(s, soft), saved_flags(s, vector, soft), error, has_error, ext)
        return
    code = check_gate_code(s, selector, ext, False)
    cpl = handler_level(s, code)
    if in_v86(s) and cpl != 0:
        general_protection(s, (selector & 0xFFFC) | ext)
    k = local(Stack)
    if cpl < s.cpl:
        task_stack(s, k, cpl, ext)
    else:
        current_stack(s, k, cpl, ext)
    if (kind & 8) != 0:
        push_protected(s, k, vector, error, has_error, soft, 4)
        enter_protected(s, k, selector, kind, code, cpl, (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000), soft)
    else:
        push_protected(s, k, vector, error, has_error, soft, 2)
        enter_protected(s, k, selector, kind, code, cpl, gate & 0xFFFF, soft)


@native
def push_protected(s, k, vector, error, has_error, soft, w):
    """The frame; a stack that was switched to gets the old one, and before it the segments of virtual-8086 mode."""
    if k.descriptor != 0:
        if in_v86(s):
            for n in static((GS, FS, DS, ES)):
                push_onto(s, k, u64(s.seg_selector[n]), w)
        push_onto(s, k, u64(s.seg_selector[SS]), w)
        push_onto(s, k, s.gpr[RSP], w)
    push_onto(s, k, saved_flags(s, vector, soft), w)
    push_onto(s, k, u64(s.seg_selector[CS]), w)
    push_onto(s, k, return_address(s, soft), w)
    if has_error:
        push_onto(s, k, u64(error), w)


@native
def enter_protected(s, k, selector, kind, code, cpl, target, soft):
    check_code_offset(s, target, code, external_bit(soft))
    mark_accessed(s, selector, code)
    if k.descriptor != 0:
        mark_accessed(s, k.selector, k.descriptor)
    if (s.cr4 & CR4_CET) != 0:
        enter_shadow(s, cpl, return_address(s, soft), u64(0), False)
    if k.descriptor != 0:
        set_segment(s, SS, k.selector, k.descriptor)
        if in_v86(s):
            for n in static((GS, FS, DS, ES)):
                set_null(s, n, u32(0))
    s.gpr[RSP] = stack_pointer(s, k)
    s.rip = target
    set_segment(s, CS, (selector & 0xFFFC) | cpl, code)
    enter_gate(s, kind, cpl)
