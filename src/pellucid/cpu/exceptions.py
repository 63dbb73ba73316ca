"""Delivery of exceptions and interrupts through the IDT (SDM vol. 3, chapter 6), with double and triple faults.

Everything that can fault is done before the first change of state, so that a fault during delivery finds the
state of the interrupted instruction.
"""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, desc_base, desc_dpl, desc_type, in_64bit, in_long_mode, in_real_mode, in_v86, load_stack_segment,
    mark_accessed, read_descriptor, set_null, set_segment)
from pellucid.cpu.faults import Stop, fault, general_protection, stack_fault
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.memory import load_sys, store_sys
from pellucid.cpu.paging import canonical
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    CS, DB, DF, DS, ES, EXIT_EXCEPTION, FS, GS, NP, PF, RFLAGS_AC, RFLAGS_IF, RFLAGS_NT, RFLAGS_RF, RFLAGS_TF,
    RFLAGS_VM, SS, TR, TS)
from pellucid.native import native, static, u16, u32, u64, uint

SOFT_NONE, SOFT_INT, SOFT_ICEBP, EXTERNAL = 0, 1, 2, 3
RSP = 4


@native(inline=False)
def single_step_trap(s) -> None:
    """#DB after an instruction that began with RFLAGS.TF set."""
    s.dr[6] = s.dr[6] | 0x4000
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = DB
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = 0


@native
def contributory(vector):
    """Divide error, and the segment faults (SDM vol. 3, table 6-4)."""
    return vector == 0 or (vector >= 10 and vector <= 13)


@native
def note(s, vector, error):
    """Keep the last exceptions for whoever explains a triple fault."""
    at = (s.history_at & 15) * 4
    s.history[at] = u64(vector) | (u64(error) << 32)
    s.history[at + 1] = s.rip
    s.history[at + 2] = s.exc_address
    s.history[at + 3] = u64(s.seg_selector[CS]) | (u64(s.cpl) << 32)
    s.history_at += 1
    s.count_exceptions += 1


@native(inline=False)
def deliver_exception(s) -> bool:
    """Deliver the exception in s.exc_*, and those that its delivery raises; False is a triple fault."""
    s.alone = 1  # no block runs: a push over translated code need not leave
    delivered = deliver_until_done(s)
    s.alone = 0
    return delivered


@native(inline=False)
def deliver_until_done(s) -> bool:
    while True:
        vector = s.exc_vector
        error = s.exc_error
        has_error = s.exc_has_error
        soft = s.exc_soft
        note(s, vector, error)
        try:
            if vector == PF and soft == 0:
                s.cr2 = s.exc_address
            deliver_event(s, vector, error, has_error != 0, soft)
            return True
        except Stop:
            if s.exit_reason != EXIT_EXCEPTION or vector == DF:
                return False
            second = s.exc_vector
            s.exc_soft = 0
            first_hard = soft != SOFT_INT and soft != EXTERNAL
            both = contributory(vector) and contributory(second)
            paging = vector == PF and (contributory(second) or second == PF)
            if first_hard and (both or paging):
                s.exc_vector = DF
                s.exc_error = 0
                s.exc_has_error = 1


@native(inline=False)
def deliver_interrupt(s, vector: u32) -> bool:
    """Deliver an external interrupt or NMI; False is a triple fault."""
    s.exc_vector = vector
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = EXTERNAL
    return deliver_exception(s)


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
    if soft == SOFT_NONE and vector != DB:
        value = value | RFLAGS_RF
    return value


@native
def deliver_event(s, vector, error, has_error, soft):
    if in_real_mode(s):
        deliver_real(s, vector, soft)
    elif in_long_mode(s):
        deliver_long(s, vector, error, has_error, soft)
    else:
        deliver_protected(s, vector, error, has_error, soft)


@native(inline=False)
def deliver_real(s, vector: u32, soft: u32) -> None:
    """Through the interrupt vector table: FLAGS, CS and IP on the stack."""
    if vector * 4 + 3 > s.idt_limit:
        general_protection(s, 0)
    entry = load_sys(s, s.idt_base + u64(vector) * 4, u32)
    sp = s.gpr[RSP] & s.sp_mask
    sp = push_raw(s, sp, u64(get_rflags(s)), 2, s.sp_mask)
    sp = push_raw(s, sp, u64(s.seg_selector[CS]), 2, s.sp_mask)
    sp = push_raw(s, sp, return_address(s, soft), 2, s.sp_mask)
    s.gpr[RSP] = (s.gpr[RSP] & ~s.sp_mask) | sp
    s.flags = s.flags & ~u64(RFLAGS_IF | RFLAGS_TF | RFLAGS_AC | RFLAGS_RF)
    s.rip = u64(entry & 0xFFFF)
    s.seg_selector[CS] = u16(entry >> 16)
    s.seg_base[CS] = u64(entry >> 16) << 4
    update_mode(s)


@native
def push_raw(s, sp, value, w, mask):
    """Push with supervisor privilege at ss_base + sp; the new offset."""
    T = uint(w)
    to = (sp - w) & mask
    store_sys(s, (s.ss_base + to) & 0xFFFF_FFFF, T(value), T)
    return to


@native
def gate_error(vector, soft):
    """The error code that names an IDT entry; EXT unless software asked."""
    code = vector * 8 + 2
    if soft != SOFT_INT:
        code = code + 1
    return code


@native
def external_bit(soft):
    bit: u32 = 1
    if soft == SOFT_INT:
        bit = 0
    return bit


@native(inline=False)
def deliver_long(s, vector: u32, error: u32, has_error: bool, soft: u32) -> None:
    """Through a 64-bit gate (SDM vol. 3, 6.14)."""
    name = gate_error(vector, soft)
    ext = external_bit(soft)
    if vector * 16 + 15 > s.idt_limit:
        general_protection(s, name)
    gate = s.idt_base + u64(vector) * 16
    low = load_sys(s, gate, u64)
    high = load_sys(s, gate + 8, u64)
    kind = u32(low >> 40) & 0x1F
    if kind != 14 and kind != 15 or (high >> 40) & 0x1F != 0:
        general_protection(s, name)
    if soft == SOFT_INT and desc_dpl(low) < s.cpl:
        general_protection(s, name)
    if (low & DESC_P) == 0:
        fault(s, u32(NP), name)
    selector = u32(low >> 16) & 0xFFFF
    if (selector & 0xFFFC) == 0:
        general_protection(s, ext)
    code = check_gate_code(s, selector, ext)
    if (code >> 53) & 3 != 1:
        general_protection(s, (selector & 0xFFFC) | ext)
    cpl = s.cpl
    if (desc_type(code) & 4) == 0:
        cpl = desc_dpl(code)
    sp = s.gpr[RSP]
    ist = u32(low >> 32) & 7
    if ist != 0:
        sp = task_stack64(s, 36 + (ist - 1) * 8)
    elif cpl < s.cpl:
        sp = task_stack64(s, 4 + cpl * 8)
    if not canonical(s, sp):
        stack_fault(s, ext)
    sp = sp & ~u64(15)
    push_long(s, sp, vector, error, has_error, soft)
    sp = sp - 40
    if has_error:
        sp = sp - 8
    mark_accessed(s, selector, code)
    s.gpr[RSP] = sp
    if cpl < s.cpl:
        set_null(s, SS, cpl)
        s.seg_attr[SS] = s.seg_attr[SS] | (cpl << 5)
    s.rip = (low & 0xFFFF) | ((low >> 32) & 0xFFFF_0000) | (high << 32)
    set_segment(s, CS, (selector & 0xFFFC) | cpl, code)
    enter_gate(s, kind, cpl)


@native
def push_long(s, sp, vector, error, has_error, soft):
    store_sys(s, sp - 8, u64(s.seg_selector[SS]), u64)
    # Compatibility mode has no upper half of RSP to save.
    old = s.gpr[RSP] if in_64bit(s) else s.gpr[RSP] & 0xFFFF_FFFF
    store_sys(s, sp - 16, old, u64)
    store_sys(s, sp - 24, saved_flags(s, vector, soft), u64)
    store_sys(s, sp - 32, u64(s.seg_selector[CS]), u64)
    store_sys(s, sp - 40, return_address(s, soft), u64)
    if has_error:
        store_sys(s, sp - 48, u64(error), u64)


@native
def enter_gate(s, kind, cpl):
    """What every gate does to the flags; an interrupt gate (even type) also clears IF."""
    s.cpl = cpl
    s.flags = s.flags & ~u64(RFLAGS_TF | RFLAGS_NT | RFLAGS_RF | RFLAGS_VM)
    if (kind & 1) == 0:
        s.flags = s.flags & ~u64(RFLAGS_IF)
    update_mode(s)


@native(inline=False)
def check_gate_code(s, selector: u32, ext: u32) -> u64:
    """The code descriptor that a gate names: #GP or #NP (selector + EXT) when it does not serve."""
    error = (selector & 0xFFFC) | ext
    d = read_descriptor(s, selector, error, u32(13))
    if (d & DESC_S) == 0 or (desc_type(d) & 8) == 0 or desc_dpl(d) > s.cpl:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    return d


@native(inline=False)
def task_stack64(s, offset: u32) -> u64:
    """A stack pointer of the 64-bit TSS; #TS beyond its limit."""
    if offset + 7 > s.seg_limit[TR]:
        fault(s, u32(TS), u32(s.seg_selector[TR]) & 0xFFFC)
    return load_sys(s, s.seg_base[TR] + u64(offset), u64)


@native(inline=False)
def deliver_protected(s, vector: u32, error: u32, has_error: bool, soft: u32) -> None:
    """Through a 16- or 32-bit gate (SDM vol. 3, 6.12)."""
    name = gate_error(vector, soft)
    ext = external_bit(soft)
    if vector * 8 + 7 > s.idt_limit:
        general_protection(s, name)
    gate = load_sys(s, s.idt_base + u64(vector) * 8, u64)
    kind = u32(gate >> 40) & 0x1F
    if kind != 6 and kind != 7 and kind != 14 and kind != 15:
        if kind == 5:
            s.count_task_gates += 1
        general_protection(s, name)
    if soft == SOFT_INT and desc_dpl(gate) < s.cpl:
        general_protection(s, name)
    if (gate & DESC_P) == 0:
        fault(s, u32(NP), name)
    selector = u32(gate >> 16) & 0xFFFF
    if (selector & 0xFFFC) == 0:
        general_protection(s, ext)
    code = check_gate_code(s, selector, ext)
    cpl = s.cpl
    if (desc_type(code) & 4) == 0:
        cpl = desc_dpl(code)
    if in_v86(s) and cpl != 0:
        general_protection(s, (selector & 0xFFFC) | ext)
    if (kind & 8) != 0:
        enter_protected(s, vector, error, has_error, soft, gate, code, cpl, 4)
    else:
        enter_protected(s, vector, error, has_error, soft, gate, code, cpl, 2)


@native
def enter_protected(s, vector, error, has_error, soft, gate, code, cpl, w):
    ext = external_bit(soft)
    selector = u32(gate >> 16) & 0xFFFF
    kind = u32(gate >> 40) & 0x1F
    from_v86 = in_v86(s)
    base = s.ss_base
    mask = s.sp_mask
    sp = s.gpr[RSP] & mask
    new_ss: u32 = 0
    ss: u64 = 0
    if cpl < s.cpl:
        new_ss = task_stack_selector(s, cpl)
        sp = u64(task_stack_offset(s, cpl))
        ss = load_stack_segment(s, new_ss, cpl, (new_ss & 0xFFFC) | ext, u32(TS))
        base = desc_base(ss)
        mask = 0xFFFF
        if (ss >> 54) & 1 != 0:
            mask = 0xFFFF_FFFF
        if from_v86:
            for n in static((GS, FS, DS, ES)):
                sp = push_at(s, base, sp, u64(s.seg_selector[n]), w, mask)
        sp = push_at(s, base, sp, u64(s.seg_selector[SS]), w, mask)
        sp = push_at(s, base, sp, s.gpr[RSP], w, mask)
    sp = push_at(s, base, sp, saved_flags(s, vector, soft), w, mask)
    sp = push_at(s, base, sp, u64(s.seg_selector[CS]), w, mask)
    sp = push_at(s, base, sp, return_address(s, soft), w, mask)
    if has_error:
        sp = push_at(s, base, sp, u64(error), w, mask)
    mark_accessed(s, selector, code)
    if cpl < s.cpl:
        set_segment(s, SS, new_ss, ss)
        s.gpr[RSP] = sp
        if from_v86:
            for n in static((GS, FS, DS, ES)):
                set_null(s, n, u32(0))
    else:
        s.gpr[RSP] = (s.gpr[RSP] & ~mask) | sp
    offset = gate & 0xFFFF
    if w == 4:
        offset = offset | ((gate >> 32) & 0xFFFF_0000)
    s.rip = offset
    set_segment(s, CS, (selector & 0xFFFC) | cpl, code)
    enter_gate(s, kind, cpl)


@native
def push_at(s, base, sp, value, w, mask):
    T = uint(w)
    to = (sp - w) & mask
    store_sys(s, (base + to) & 0xFFFF_FFFF, T(value), T)
    return to


@native(inline=False)
def task_stack_offset(s, cpl: u32) -> u32:
    """ESP or SP of a privilege level in the current 16- or 32-bit TSS."""
    if (s.seg_attr[TR] & 8) != 0:
        check_task_limit(s, 4 + cpl * 8 + 5)
        return load_sys(s, s.seg_base[TR] + u64(4 + cpl * 8), u32)
    check_task_limit(s, 2 + cpl * 4 + 3)
    return u32(load_sys(s, s.seg_base[TR] + u64(2 + cpl * 4), u16))


@native(inline=False)
def task_stack_selector(s, cpl: u32) -> u32:
    """SS of a privilege level in the current TSS."""
    if (s.seg_attr[TR] & 8) != 0:
        check_task_limit(s, 4 + cpl * 8 + 5)
        return u32(load_sys(s, s.seg_base[TR] + u64(8 + cpl * 8), u16))
    check_task_limit(s, 2 + cpl * 4 + 3)
    return u32(load_sys(s, s.seg_base[TR] + u64(4 + cpl * 4), u16))


@native
def check_task_limit(s, last):
    if last > s.seg_limit[TR]:
        fault(s, u32(TS), u32(s.seg_selector[TR]) & 0xFFFC)


