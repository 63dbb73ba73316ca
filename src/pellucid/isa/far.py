"""Far transfers and segment registers: JMP, CALL and RET far, MOV/PUSH/POP of segments, LDS to LGS."""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, desc_base, desc_dpl, desc_type, drop_inaccessible_all, in_long_mode, in_real_mode, in_v86,
    load_segment, load_stack_segment, mark_accessed, read_descriptor, set_segment)
from pellucid.cpu.exceptions import push_at, task_stack64, task_stack_offset, task_stack_selector
from pellucid.cpu.faults import Stop, fault, general_protection
from pellucid.cpu.memory import check_canonical, load, load_sys, store, store_sys
from pellucid.cpu.operands import address, write
from pellucid.cpu.segments import update_mode
from pellucid.cpu.stack import drop, peek, push
from pellucid.cpu.state import CS, NP, SHADOW_MOV_SS, SS, TS
from pellucid.isa.interrupts import check_target, set_real_code
from pellucid.isa.table import LEAVE, LEAVE_JUMP, instruction
from pellucid.native import at, native, u16, u32, u64, uint

RSP = 4


def _pointer_width(code):
    """Operand size of far forms: JMP_PTR1632 4, CALL_M1616 2, JMP_M1664 8, RETFW 2, RETFQ 8."""
    for suffix, w in (("1664", 8), ("1632", 4), ("1616", 2)):
        if suffix in code:
            return w
    head = code.split("_")[0]
    return {"W": 2, "D": 4, "Q": 8}[head[-1]]


def _far(code):
    return "PTR16" in code or "_M16" in code


@native
def far_pointer(s, o, f):
    """Selector and offset of a far operand: immediate ptr16:n, or memory m16:n."""
    if f.kinds[0] == "b":
        bits = f.w * 8
        offset = o.imm & ((1 << bits) - 1)
        return u32(o.imm >> bits) & 0xFFFF, offset
    else:
        lin = address(s, o)
        offset = u64(load(s, lin, uint(f.w)))
        return u32(load(s, lin + f.w, u16)), offset


@instruction("JMP", codes=_far, ends=LEAVE_JUMP, stack=True, width=_pointer_width, name="jmp_far")
@native
def jmp_far(s, o, f):
    selector, offset = far_pointer(s, o, f)
    if in_real_mode(s) or in_v86(s):
        s.rip = offset
        set_real_code(s, selector)
    else:
        transfer(s, o, f, selector, offset, False)
    update_mode(s)


@instruction("CALL", codes=_far, ends=LEAVE_JUMP, stack=True, width=_pointer_width, name="call_far")
@native
def call_far(s, o, f):
    selector, offset = far_pointer(s, o, f)
    if in_real_mode(s) or in_v86(s):
        T = uint(f.w)
        back = s.rip + u64(o.next_ip)
        push_pair(s, f, T(s.seg_selector[CS]), T(back))
        s.rip = offset
        set_real_code(s, selector)
    else:
        transfer(s, o, f, selector, offset, True)
    update_mode(s)


@native
def push_pair(s, f, first, second):
    """Two pushes, neither done when the second faults."""
    old = s.gpr[RSP]
    push(s, f, first, f.w)
    try:
        push(s, f, second, f.w)
    except Stop:
        s.gpr[RSP] = old
        raise Stop


@native
def transfer(s, o, f, selector, offset, call):
    """A protected-mode far JMP or CALL (SDM vol. 2, JMP and CALL)."""
    error = selector & 0xFFFC
    if error == 0:
        general_protection(s, 0)
    d = read_descriptor(s, selector, error, u32(13))
    kind = desc_type(d)
    if (d & DESC_S) == 0:
        through_gate(s, o, f, selector, d, kind, call)
        return
    dpl = desc_dpl(d)
    if (kind & 8) == 0:
        general_protection(s, error)
    if (kind & 4) != 0:
        if dpl > s.cpl:
            general_protection(s, error)
    elif (selector & 3) > s.cpl or dpl != s.cpl:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    to_64 = in_long_mode(s) and (d & (1 << 53)) != 0
    if to_64 and (d & (1 << 54)) != 0:
        general_protection(s, error)
    check_target(s, offset, to_64, d)
    if call:
        T = uint(f.w)
        back = s.rip + u64(o.next_ip)
        push_pair(s, f, T(s.seg_selector[CS]), T(back))
    mark_accessed(s, selector, d)
    set_segment(s, CS, (selector & 0xFFFC) | s.cpl, d)
    s.rip = offset


@native
def through_gate(s, o, f, selector, gate, kind, call):
    """Call gates; a TSS or task gate is not built yet and raises #GP, counted in count_task_gates."""
    error = selector & 0xFFFC
    if kind != 12 and kind != 4:
        if kind == 5 or kind == 1 or kind == 9:
            s.count_task_gates += 1
        general_protection(s, error)
    if desc_dpl(gate) < s.cpl or desc_dpl(gate) < (selector & 3):
        general_protection(s, error)
    if (gate & DESC_P) == 0:
        fault(s, u32(NP), error)
    target = u32(gate >> 16) & 0xFFFF
    if (target & 0xFFFC) == 0:
        general_protection(s, 0)
    code_error = target & 0xFFFC
    d = read_descriptor(s, target, code_error, u32(13))
    dpl = desc_dpl(d)
    ckind = desc_type(d)
    if (d & DESC_S) == 0 or (ckind & 8) == 0 or dpl > s.cpl:
        general_protection(s, code_error)
    if not call and (ckind & 4) == 0 and dpl != s.cpl:
        general_protection(s, code_error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), code_error)
    inner = call and (ckind & 4) == 0 and dpl < s.cpl
    offset = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000)
    if in_long_mode(s):
        high = load_sys(s, gate_high(s, selector), u64)
        offset = offset | (high << 32)
        check_canonical(s, offset)
        gate_call(s, o, gate, target, d, offset, dpl, inner, call, 8)
    elif kind == 12:
        gate_call(s, o, gate, target, d, offset, dpl, inner, call, 4)
    else:
        gate_call(s, o, gate, target, d, offset & 0xFFFF, dpl, inner, call, 2)


@native
def gate_high(s, selector):
    base = s.gdt_base
    if (selector & 4) != 0:
        base = s.seg_base[6]
    return base + u64(selector & 0xFFF8) + 8


@native
def gate_call(s, o, gate, target, d, offset, dpl, inner, call, w):
    cpl = s.cpl
    if call:
        back = s.rip + u64(o.next_ip)
        mask = s.sp_mask
        base = s.ss_base
        sp = s.gpr[RSP] & mask
        if inner:
            cpl = dpl
            gate_inner(s, gate, back, dpl, w)
        else:
            sp = push_at64(s, base, sp, u64(s.seg_selector[CS]), w, mask)
            sp = push_at64(s, base, sp, back, w, mask)
            s.gpr[RSP] = (s.gpr[RSP] & ~mask) | sp
    mark_accessed(s, target, d)
    s.cpl = cpl
    set_segment(s, CS, (target & 0xFFFC) | cpl, d)
    s.rip = offset


@native
def push_at64(s, base, sp, value, w, mask):
    """Push on a stack given by base, pointer and mask; linear addresses wrap at 32 bits unless w is 8."""
    T = uint(w)
    to = (sp - w) & mask
    if w == 8:
        store_sys(s, base + to, T(value), T)
    else:
        store_sys(s, (base + to) & 0xFFFF_FFFF, T(value), T)
    return to


@native
def gate_inner(s, gate, back, dpl, w):
    """Switch to the stack of level `dpl`: SS:SP, parameters (16- and 32-bit gates), CS:IP."""
    old_ss = u64(s.seg_selector[SS])
    old_sp = s.gpr[RSP]
    if w == 8:
        sp = task_stack64(s, 4 + dpl * 8)
        sp = push_at64(s, u64(0), sp, old_ss, 8, ~u64(0))
        sp = push_at64(s, u64(0), sp, old_sp, 8, ~u64(0))
        sp = push_at64(s, u64(0), sp, u64(s.seg_selector[CS]), 8, ~u64(0))
        sp = push_at64(s, u64(0), sp, back, 8, ~u64(0))
        s.gpr[RSP] = sp
        s.seg_selector[SS] = u16(dpl)
        s.seg_attr[SS] = u32(0x10000) | (dpl << 5)
    else:
        T = uint(w)
        new_ss = task_stack_selector(s, dpl)
        sp = u64(task_stack_offset(s, dpl))
        ssd = load_stack_segment(s, new_ss, dpl, new_ss & 0xFFFC, u32(TS))
        base = desc_base(ssd)
        mask: u64 = 0xFFFF
        if (ssd >> 54) & 1 != 0:
            mask = 0xFFFF_FFFF
        sp = push_at(s, base, sp, old_ss, w, mask)
        sp = push_at(s, base, sp, old_sp, w, mask)
        count = (gate >> 32) & 31
        for i in range(count):
            from_top = (old_sp + (count - 1 - i) * w) & s.sp_mask
            value = load(s, (s.ss_base + from_top) & 0xFFFF_FFFF, T)
            sp = push_at(s, base, sp, u64(value), w, mask)
        sp = push_at(s, base, sp, u64(s.seg_selector[CS]), w, mask)
        sp = push_at(s, base, sp, back, w, mask)
        set_segment(s, SS, new_ss, ssd)
        s.gpr[RSP] = sp


@instruction("RETF", ends=LEAVE_JUMP, stack=True, width=_pointer_width)
@native
def retf(s, o, f):
    extra = o.imm & 0xFFFF
    offset = u64(peek(s, f, 0, f.w))
    selector = u32(peek(s, f, f.w, f.w)) & 0xFFFF
    if in_real_mode(s) or in_v86(s):
        drop(s, f, f.w * 2 + extra)
        s.rip = offset
        set_real_code(s, selector)
    else:
        return_far(s, f, selector, offset, extra)
    update_mode(s)


@native
def return_far(s, f, selector, offset, extra):
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
    if rpl > s.cpl:
        T = uint(f.w)
        sp = u64(T(peek(s, f, u64(f.w * 2) + extra, f.w)))
        ss = u32(peek(s, f, u64(f.w * 3) + extra, f.w)) & 0xFFFF
        ssd: u64 = 0
        null_ss = (ss & 0xFFFC) == 0 and to_64 and rpl != 3
        if not null_ss:
            ssd = load_stack_segment(s, ss, rpl, ss & 0xFFFC, u32(13))
        check_target(s, offset, to_64, d)
        s.cpl = rpl
        if null_ss:
            s.seg_selector[SS] = u16(ss)
            s.seg_attr[SS] = u32(0x10000) | (rpl << 5)
        else:
            set_segment(s, SS, ss, ssd)
        s.gpr[RSP] = sp + extra
        mark_accessed(s, selector, d)
        set_segment(s, CS, selector, d)
        s.rip = offset
        drop_inaccessible_all(s)
    else:
        check_target(s, offset, to_64, d)
        mark_accessed(s, selector, d)
        drop(s, f, f.w * 2 + extra)
        set_segment(s, CS, selector, d)
        s.rip = offset


# --- segment registers ---------------------------------------------------------------------------------


@instruction("MOV", codes=lambda code: code.endswith("_SREG"), name="mov_from_segment")
@native
def mov_from_segment(s, o, f):
    value = s.seg_selector[o.src]
    if f.kinds[0] == "m":
        store(s, address(s, o), value, u16)
    else:
        T = uint(f.widths[0])
        write(s, o, f, 0, T(value))


@instruction("MOV", codes=lambda code: code.startswith("MOV_SREG"), ends=LEAVE, name="mov_to_segment")
@native
def mov_to_segment(s, o, f):
    selector: u32 = 0
    if f.kinds[1] == "m":
        selector = u32(load(s, address(s, o), u16))
    else:
        selector = u32(at(s, u64(o.src), u16)[0])
    load_segment(s, u32(o.dst), selector)
    if o.dst == SS:
        s.shadow = SHADOW_MOV_SS
    update_mode(s)


def _segment_push(code):
    return code.split("_")[-1] in ("ES", "CS", "SS", "DS", "FS", "GS")


def _segment_width(code):
    return {"Q": 8, "D": 4, "W": 2}[code.split("_")[0][-1]]


@instruction("PUSH", codes=_segment_push, stack=True, width=_segment_width, name="push_segment")
@native
def push_segment(s, o, f):
    push(s, f, uint(f.w)(s.seg_selector[o.dst]), f.w)


@instruction("POP", codes=_segment_push, stack=True, ends=LEAVE, width=_segment_width, name="pop_segment")
@native
def pop_segment(s, o, f):
    selector = u32(peek(s, f, 0, f.w)) & 0xFFFF
    load_segment(s, u32(o.dst), selector)
    drop(s, f, f.w)
    if o.dst == SS:
        s.shadow = SHADOW_MOV_SS
    update_mode(s)


@instruction("LDS", "LES", "LFS", "LGS", "LSS", ends=LEAVE, name="load_far_pointer",
             extra=lambda code: {"LES": 0, "LSS": 2, "LDS": 3, "LFS": 4, "LGS": 5}[code.split("_")[0]])
@native
def load_far_pointer(s, o, f):
    w = f.widths[0]
    lin = address(s, o)
    offset = load(s, lin, uint(w))
    selector = u32(load(s, lin + w, u16))
    load_segment(s, u32(f.extra), selector)
    write(s, o, f, 0, offset)
    update_mode(s)
