"""Near control transfer: Jcc, JMP, CALL, RET, LOOP, JCXZ."""

from pellucid.cpu.flags import CC_UNKNOWN, condition
from pellucid.cpu.faults import Stop, control_protection, general_protection
from pellucid.cpu.memory import check_canonical, probe_write
from pellucid.cpu.operands import gpr, read, set_gpr
from pellucid.cpu.paging import canonical
from pellucid.cpu.segments import branch_target, check_near
from pellucid.cpu.shadow import shadow_drop, shadow_enabled, shadow_push, shadow_top, track
from pellucid.cpu.stack import drop, peek, push
from pellucid.cpu.code_cache import OP_CALL
from pellucid.cpu.state import CP_NEAR_RET
from pellucid.isa.move import CONDITIONS, condition_number
from pellucid.isa.table import BRANCH, JUMP, instruction
from pellucid.native import native, u64, uint, unlikely


def _transfer_width(code):
    """Operand size of a near transfer: JE_REL8_64, LOOP_REL8_64_ECX, CALL_RM64 8; _32 4, _16 2; RETNQ, RETND, RETNW."""
    head = code.split("_")[0]
    if head in ("RETNQ", "RETND", "RETNW"):
        return {"Q": 8, "D": 4, "W": 2}[head[-1]]
    size = code.removesuffix("_CX").removesuffix("_ECX").removesuffix("_RCX")
    return 8 if size.endswith("64") else 4 if size.endswith("32") else 2


@instruction(*("J" + c for c in CONDITIONS), ends=BRANCH, cc=True, cc_families=(2, 3, 4, 5),
             extra=condition_number("J"), width=_transfer_width)
@native
def jcc(s, o, f, kind):
    return condition(s, f.extra, kind)


def _relative(code):
    return "_REL" in code


def _through(code):
    return "_RM" in code


@instruction("JMP", ends=BRANCH, codes=_relative, width=_transfer_width, name="jmp_relative")
@native
def jmp_relative(s, o, f, kind):
    return True


@instruction("CALL", ends=BRANCH, codes=_relative, op_flags=OP_CALL, width=_transfer_width, name="call_relative")
@native
def call_relative(s, o, f, kind):
    check_near(s, f, branch_target(s.rip, o.imm, f))
    push(s, f, uint(f.w)(s.rip + u64(o.next_ip)), f.w)
    return True


@instruction("CALL", ends=BRANCH, codes=_relative, op_flags=OP_CALL, width=_transfer_width, cet=True,
             name="call_relative_cet")
@native
def call_relative_cet(s, o, f, kind):
    """With a shadow stack, which does not get the address of a call to the next instruction (SDM vol. 2, CALL)."""
    check_near(s, f, branch_target(s.rip, o.imm, f))
    push_both(s, o, f, o.imm != u64(o.next_ip))
    return True


@native
def push_both(s, o, f, shadowed):
    """Push the return address; a fault of the shadow stack leaves RSP."""
    sp = s.gpr[4]
    back = uint(f.w)(s.rip + u64(o.next_ip))
    push(s, f, back, f.w)
    if shadow_enabled(s) and shadowed:
        try:
            shadow_push(s, back, f.w)
        except Stop:
            s.gpr[4] = sp
            raise Stop


@native
def check_target(s, f, to):
    """#GP(0) for a near transfer out of the code segment or to a non-canonical address."""
    if f.m64:
        check_canonical(s, to)
    else:
        check_near(s, f, to)


@instruction("JMP", ends=JUMP, codes=_through, stack=True, width=_transfer_width, name="jmp_through")
@native
def jmp_through(s, o, f):
    to = u64(read(s, o, f, 0))
    check_target(s, f, to)
    s.rip = to


@instruction("JMP", ends=JUMP, codes=_through, stack=True, width=_transfer_width, cet=True, name="jmp_through_cet")
@native
def jmp_through_cet(s, o, f):
    jmp_through(s, o, f)
    track(s, o.flags)


@native
def call_target(s, o, f):
    """Where an indirect CALL goes."""
    to = u64(read(s, o, f, 0))
    if f.m64:
        if unlikely(not canonical(s, to)):
            # The stack's fault comes first.
            probe_write(s, s.gpr[4] - f.w, u64(f.w))
            general_protection(s, 0)
    else:
        check_near(s, f, to)
    return to


@instruction("CALL", ends=JUMP, codes=_through, stack=True, width=_transfer_width, name="call_through")
@native
def call_through(s, o, f):
    to = call_target(s, o, f)
    push(s, f, uint(f.w)(s.rip + u64(o.next_ip)), f.w)
    s.rip = to


@instruction("CALL", ends=JUMP, codes=_through, stack=True, width=_transfer_width, cet=True, name="call_through_cet")
@native
def call_through_cet(s, o, f):
    to = call_target(s, o, f)
    push_both(s, o, f, True)
    s.rip = to
    track(s, o.flags)


@instruction("RET", ends=JUMP, stack=True, width=_transfer_width)
@native
def ret(s, o, f):
    to = u64(peek(s, f, 0, f.w))
    check_target(s, f, to)
    drop(s, f, f.w + (o.imm & 0xFFFF))
    s.rip = to


@instruction("RET", ends=JUMP, stack=True, width=_transfer_width, cet=True, name="ret_cet")
@native
def ret_cet(s, o, f):
    """Both stacks must name the same address: else #CP(NEAR-RET)."""
    to = u64(peek(s, f, 0, f.w))
    if shadow_enabled(s):
        if shadow_top(s, f.w) != to:
            control_protection(s, CP_NEAR_RET)
        check_target(s, f, to)
        shadow_drop(s, f.w)
    else:
        check_target(s, f, to)
    drop(s, f, f.w + (o.imm & 0xFFFF))
    s.rip = to


@instruction("LOOP", "LOOPE", "LOOPNE", ends=BRANCH, asize=True, width=_transfer_width,
             extra=lambda code: ("LOOP", "LOOPE", "LOOPNE").index(code.split("_")[0]))
@native
def loop(s, o, f, kind):
    count = gpr(s, 1, f.asize) - 1
    taken = count != 0
    if f.extra == 1:
        taken = taken and condition(s, 4, CC_UNKNOWN)
    if f.extra == 2:
        taken = taken and condition(s, 5, CC_UNKNOWN)
    if taken:
        check_target(s, f, branch_target(s.rip, o.imm, f))
    set_gpr(s, 1, f.asize, count)
    return taken


@instruction("JCXZ", "JECXZ", "JRCXZ", ends=BRANCH, asize=True, width=_transfer_width, name="jcxz")
@native
def jcxz(s, o, f, kind):
    return gpr(s, 1, f.asize) == 0
