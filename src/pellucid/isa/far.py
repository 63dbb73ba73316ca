"""Far transfers: JMP, CALL and RET far, through segments, call gates, task gates and TSSs (SDM vol. 3, 5.8 and 7.3)."""

from pellucid.cpu.descriptors import (
    DESC_P, DESC_S, check_code_offset, desc_dpl, desc_type, descriptor_address, in_64bit, in_long_mode, in_real_mode,
    in_v86, is_wide_code, mark_accessed, read_descriptor, set_null, set_real_code, set_segment)
from pellucid.cpu.faults import fault, general_protection
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.memory import load, load_sys
from pellucid.cpu.operands import address
from pellucid.cpu.returns import (
    check_return, return_code, return_stack, returns_to_64bit, set_return_code, set_return_stack)
from pellucid.cpu.segments import check_stack, update_mode
from pellucid.cpu.shadow import check_reach, enter_shadow, shadow_enabled, track_far
from pellucid.cpu.stack import drop, peek
from pellucid.cpu.stacks import (
    Stack, current_stack, push_onto, stack_pointer, task_stack, task_stack64, wide_stack)
from pellucid.cpu.state import ATTR_DPL_SHIFT, CR4_CET, CS, GP, NP, SS
from pellucid.cpu.tasks import JUMP, NEST, TASK_GATE, switch_task, task_descriptor
from pellucid.isa.table import LEAVE_JUMP, instruction
from pellucid.native import local, native, u16, u32, u64, uint

RSP = 4
CALL_GATE_16, CALL_GATE = 4, 12


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


@native
def check_real_offset(s, offset):
    """#GP(0) for an instruction pointer beyond the limit of CS, which stays the same in real mode."""
    if offset > u64(s.seg_limit[CS]):
        general_protection(s, 0)


@native
def outgoing_stack(s, k):
    """The current stack, to push on."""
    if in_64bit(s):
        wide_stack(s, k, s.gpr[RSP], s.cpl, u32(0))
    else:
        current_stack(s, k, s.cpl, u32(0))


@native
def push_return(s, o, k, w):
    push_onto(s, k, u64(s.seg_selector[CS]), w)
    push_onto(s, k, s.rip + u64(o.next_ip), w)


@instruction("JMP", codes=_far, ends=LEAVE_JUMP, stack=True, width=_pointer_width, name="jmp_far")
@native
def jmp_far(s, o, f):
    selector, offset = far_pointer(s, o, f)
    if in_real_mode(s) or in_v86(s):
        check_real_offset(s, offset)
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
        check_real_offset(s, offset)
        k = local(Stack)
        current_stack(s, k, s.cpl, u32(0))
        push_return(s, o, k, f.w)
        s.gpr[RSP] = stack_pointer(s, k)
        s.rip = offset
        set_real_code(s, selector)
    else:
        transfer(s, o, f, selector, offset, True)
    update_mode(s)


@native
def transfer(s, o, f, selector, offset, call):
    """A protected-mode far JMP or CALL (SDM vol. 2, JMP and CALL)."""
    error = selector & 0xFFFC
    if error == 0:
        general_protection(s, 0)
    d = read_descriptor(s, selector, error, u32(GP))
    kind = desc_type(d)
    if (d & DESC_S) == 0:
        through_gate(s, o, selector, d, kind, call)
        return
    dpl = desc_dpl(d)
    if (kind & 8) == 0:
        general_protection(s, error)
    if (kind & 4) != 0:
        if dpl > s.cpl:
            general_protection(s, error)
    elif (selector & 3) > s.cpl or dpl != s.cpl:
        general_protection(s, error)
    if in_long_mode(s) and (d >> 53) & 3 == 3:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    if not returns_to_64bit(s, d):
        offset = offset & 0xFFFF_FFFF
    k = local(Stack)
    if call:
        outgoing_stack(s, k)
        push_return(s, o, k, f.w)
    check_code_offset(s, offset, d, u32(0))
    mark_accessed(s, selector, d)
    if shadow_enabled(s):
        check_reach(s, s.ssp, returns_to_64bit(s, d))
    if call:
        call_shadow(s, o, s.cpl, returns_to_64bit(s, d))
        s.gpr[RSP] = stack_pointer(s, k)
    set_segment(s, CS, (selector & 0xFFFC) | s.cpl, d)
    s.rip = offset
    track_far(s)


@native
def call_shadow(s, o, cpl, wide):
    """The shadow stack's part of a far CALL to level `cpl`."""
    if (s.cr4 & CR4_CET) != 0:
        enter_shadow(s, cpl, s.rip + u64(o.next_ip), u64(0), wide)


# --- gates ---------------------------------------------------------------------------------------------


@native(inline=False)
def through_gate(s, o, selector: u32, gate: u64, kind: u32, call) -> None:
    """A far transfer to a system descriptor: call gate, task gate or TSS."""
    error = selector & 0xFFFC
    long_mode = in_long_mode(s)
    legacy = kind == CALL_GATE_16 or kind == TASK_GATE or kind == 1 or kind == 9
    if kind != CALL_GATE and (long_mode or not legacy):
        general_protection(s, error)
    if desc_dpl(gate) < s.cpl or desc_dpl(gate) < (selector & 3):
        general_protection(s, error)
    if kind == 1 or kind == 9:
        enter_task(s, o, selector, call)
        return
    if (gate & DESC_P) == 0:
        fault(s, u32(NP), error)
    target = u32(gate >> 16) & 0xFFFF
    if kind == TASK_GATE:
        enter_task(s, o, target, call)
        return
    offset = (gate & 0xFFFF) | ((gate >> 32) & 0xFFFF_0000)
    if long_mode:
        high = load_sys(s, descriptor_address(s, selector + 8, error, u32(GP)), u64)
        if (high >> 40) & 0x1F != 0:
            general_protection(s, error)
        offset = offset | (high << 32)
    d = gate_code(s, target, long_mode, call)
    if long_mode:
        gate_call(s, o, gate, target, d, offset, call, 8)
    elif kind == CALL_GATE:
        gate_call(s, o, gate, target, d, offset, call, 4)
    else:
        gate_call(s, o, gate, target, d, offset & 0xFFFF, call, 2)


@native
def enter_task(s, o, selector, call):
    """JMP or CALL to a task."""
    d = task_descriptor(s, selector, u32(GP), u32(0), False)
    way: u32 = JUMP
    if call:
        way = NEST
    switch_task(s, selector, d, way, s.rip + u64(o.next_ip), get_rflags(s), u32(0), u64(o.ip))


@native
def gate_code(s, target, long_mode, call):
    """Check the code segment that a call gate names."""
    error = target & 0xFFFC
    if error == 0:
        general_protection(s, 0)
    d = read_descriptor(s, target, error, u32(GP))
    kind = desc_type(d)
    if (d & DESC_S) == 0 or (kind & 8) == 0 or desc_dpl(d) > s.cpl:
        general_protection(s, error)
    if long_mode and not is_wide_code(d):
        general_protection(s, error)
    if not call and (kind & 4) == 0 and desc_dpl(d) != s.cpl:
        general_protection(s, error)
    if (d & DESC_P) == 0:
        fault(s, u32(NP), error)
    return d


@native
def gate_call(s, o, gate, target, d, offset, call, w):
    """Enter the code of a gate whose pushes are w bytes; CALL to an inner level changes the stack."""
    cpl = s.cpl
    inner: bool = False
    k = local(Stack)
    if call:
        inner = (desc_type(d) & 4) == 0 and desc_dpl(d) < s.cpl
        if inner:
            cpl = desc_dpl(d)
            inner_stack(s, k, gate, cpl, w)
        else:
            outgoing_stack(s, k)
        push_return(s, o, k, w)
    check_code_offset(s, offset, d, u32(0))
    mark_accessed(s, target, d)
    if inner and k.wide == 0:
        mark_accessed(s, k.selector, k.descriptor)
    if call:
        call_shadow(s, o, cpl, w == 8)
    if inner:
        set_inner_stack(s, k, cpl)
    if call:
        s.gpr[RSP] = stack_pointer(s, k)
    s.cpl = cpl
    set_segment(s, CS, (target & 0xFFFC) | cpl, d)
    s.rip = offset
    track_far(s)


@native
def inner_stack(s, k, gate, cpl, w):
    """The stack of level `cpl` with the old stack pointer and, outside IA-32e mode, the gate's count of parameters."""
    if w == 8:
        wide_stack(s, k, task_stack64(s, 4 + cpl * 8, u32(0)), cpl, u32(0))
    else:
        task_stack(s, k, cpl, u32(0))
    push_onto(s, k, u64(s.seg_selector[SS]), w)
    push_onto(s, k, s.gpr[RSP], w)
    if w != 8:
        count = (gate >> 32) & 31
        for i in range(count):
            push_onto(s, k, u64(peek_parameter(s, (count - 1 - i) * w, w)), w)


@native
def peek_parameter(s, depth, w):
    sp = (s.gpr[RSP] + depth) & s.sp_mask
    check_stack(s, sp, w)
    return load(s, (s.ss_base + sp) & 0xFFFF_FFFF, uint(w))


@native
def set_inner_stack(s, k, cpl):
    """Load SS: null in IA-32e mode."""
    if k.wide != 0:
        set_null(s, SS, cpl)
        s.seg_attr[SS] = s.seg_attr[SS] | (cpl << ATTR_DPL_SHIFT)
    else:
        set_segment(s, SS, k.selector, k.descriptor)


# --- RET far -------------------------------------------------------------------------------------------


@instruction("RETF", ends=LEAVE_JUMP, stack=True, width=_pointer_width)
@native
def retf(s, o, f):
    extra = o.imm & 0xFFFF
    offset = u64(peek(s, f, 0, f.w))
    selector = u32(peek(s, f, f.w, f.w)) & 0xFFFF
    if in_real_mode(s) or in_v86(s):
        check_real_offset(s, offset)
        drop(s, f, f.w * 2 + extra)
        s.rip = offset
        set_real_code(s, selector)
    else:
        return_far(s, f, selector, offset, extra)
    update_mode(s)


@native
def return_far(s, f, selector, offset, extra):
    d = return_code(s, selector)
    wide = returns_to_64bit(s, d)
    if not wide:
        offset = offset & 0xFFFF_FFFF
    rpl = selector & 3
    if rpl > s.cpl:
        sp = u64(peek(s, f, u64(f.w * 2) + extra, f.w))
        ss = u32(peek(s, f, u64(f.w * 3) + extra, f.w)) & 0xFFFF
        ssd = return_stack(s, ss, rpl, wide)
        check_code_offset(s, offset, d, u32(0))
        mark_accessed(s, selector, d)
        check_return(s, selector, d, offset, wide, False)
        set_return_stack(s, ss, ssd, rpl, sp + extra, wide)
    else:
        check_code_offset(s, offset, d, u32(0))
        mark_accessed(s, selector, d)
        check_return(s, selector, d, offset, wide, False)
        drop(s, f, f.w * 2 + extra)
    set_return_code(s, selector, d, offset)
