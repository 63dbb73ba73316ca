"""Stack frames: ENTER, LEAVE, PUSHA, POPA; and BOUND (SDM vol. 2)."""

from pellucid.cpu.faults import fault_plain
from pellucid.cpu.memory import load, probe_write, store
from pellucid.cpu.operands import address, read, set_gpr
from pellucid.cpu.segments import check_stack
from pellucid.cpu.state import BR
from pellucid.isa.table import instruction
from pellucid.native import array, local, native, sint, static, u32, u64, uint

RSP, RBP = 4, 5


def _frame_width(code):
    """Operand size: ENTERW and PUSHAW 2, ENTERD 4, LEAVEQ 8."""
    return {"W": 2, "D": 4, "Q": 8}[code.split("_")[0][-1]]


@native
def stack_linear(s, f, sp, w):
    """The linear address of `w` bytes at a stack pointer, checked against the segment."""
    if f.m64:
        return sp
    else:
        check_stack(s, sp & s.sp_mask, w)
        return (s.ss_base + (sp & s.sp_mask)) & 0xFFFF_FFFF


@native
def set_stack_pointer(s, f, number, value):
    """Write RSP or RBP as far as the stack's address size goes."""
    if f.m64:
        s.gpr[number] = value
    else:
        s.gpr[number] = (s.gpr[number] & ~s.sp_mask) | (value & s.sp_mask)


@native
def put(s, f, sp, value, w):
    store(s, stack_linear(s, f, sp, w), uint(w)(value), uint(w))


@native
def get(s, f, sp, w):
    return u64(load(s, stack_linear(s, f, sp, w), uint(w)))


@instruction("ENTER", stack=True, width=_frame_width)
@native
def enter(s, o, f):
    """RSP and RBP change at the end, so that a fault on any of the pushes leaves them."""
    size = o.imm & 0xFFFF
    level = (o.imm >> 16) & 31
    sp = s.gpr[RSP] - f.w
    put(s, f, sp, s.gpr[RBP], f.w)
    frame = sp
    if level != 0:
        bp = s.gpr[RBP]
        for _ in range(level - 1):
            bp = bp - f.w
            sp = sp - f.w
            put(s, f, sp, get(s, f, bp, f.w), f.w)
        sp = sp - f.w
        put(s, f, sp, frame, f.w)
    sp = sp - size
    probe_write(s, stack_linear(s, f, sp, f.w), u64(f.w))
    set_stack_pointer(s, f, RSP, sp)
    set_gpr(s, RBP, f.w, u64(uint(f.w)(frame)))


@instruction("LEAVE", stack=True, width=_frame_width)
@native
def leave(s, o, f):
    value = get(s, f, s.gpr[RBP], f.w)
    set_stack_pointer(s, f, RSP, s.gpr[RBP] + f.w)
    set_gpr(s, RBP, f.w, value)


@instruction("PUSHA", "PUSHAD", stack=True, width=_frame_width)
@native
def pusha(s, o, f):
    sp = s.gpr[RSP]
    for number in static(range(8)):
        put(s, f, sp - (number + 1) * f.w, s.gpr[number], f.w)
    set_stack_pointer(s, f, RSP, sp - 8 * f.w)


@instruction("POPA", "POPAD", stack=True, width=_frame_width)
@native
def popa(s, o, f):
    values = local(array[u64, 8])
    sp = s.gpr[RSP]
    for number in static(range(7, -1, -1)):
        values[number] = get(s, f, sp + (7 - number) * f.w, f.w)
    for number in static(range(8)):
        if number != RSP:
            set_gpr(s, number, f.w, values[number])
    set_stack_pointer(s, f, RSP, sp + 8 * f.w)


@native
def bound_address(s, o, f, which):
    """The lower (0) or the upper (1) of two bounds, which lie side by side."""
    return (address(s, o) + which * f.widths[0]) & 0xFFFF_FFFF


@instruction("BOUND")
@native
def bound(s, o, f):
    S = sint(f.widths[0])
    T = uint(f.widths[0])
    lower = S(load(s, bound_address(s, o, f, 0), T))
    upper = S(load(s, bound_address(s, o, f, 1), T))
    index = S(read(s, o, f, 0))
    if index < lower or index > upper:
        fault_plain(s, u32(BR))
