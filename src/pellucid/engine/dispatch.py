"""Handlers: how an instruction's function becomes one link of the threaded interpreter.

Each wrapper calls the semantics and goes on by tail call. A fault leaves with RIP at the instruction; a block
end adds to RIP, looks at `pending` and follows the chained pointer, which it fills on first use where source
and target share a page (then no mapping can part them).
"""

from pellucid.cpu.breakpoints import on_watched_page
from pellucid.cpu.code_pages import jump_entry
from pellucid.cpu.faults import Stop, general_protection
from pellucid.cpu.lbr import DIRECT, INFO_IN_TX, SELECT_FAR_BRANCH, SELECT_JCC, branch_address, record_branch
from pellucid.cpu.memory import fill, tlb_entry
from pellucid.cpu.paging import canonical
from pellucid.cpu.retire import give_back, pay
from pellucid.cpu.segments import branch_target, check_near, linear_ip
from pellucid.cpu.shadow import shadow_enabled
from pellucid.cpu.code_cache import OP_CALL, OP_STACK, OP_STACK_TOO, Op
from pellucid.cpu.state import (
    CS, EXIT_BUDGET, EXIT_COLD, EXIT_EXCEPTION, EXIT_LOOKUP, EXIT_NONE, EXIT_PENDING, EXIT_SMC, EXIT_STEPPED, FETCH,
    GP, MODE_64, MODE_SIZE, PAGE_MASK, PENDING_STEP, SS_FAULT, CpuState,
)
from pellucid.engine.translate import alone, check_fetch, find_block
from pellucid.native import atomic_and, atomic_or, invoke, likely, native, ptr, ref, tail, u32, u64, unlikely

RSP = 4


@native(inline=False)
def leave(s, o: ptr[Op]) -> None:
    """Stop at this op's instruction. A non-canonical address through SS is #SS(0) (SDM vol. 3, 6.15)."""
    s.rip = s.rip + u64(o.ip)
    give_back(s, o)
    if s.exc_access != 0 and s.exit_reason == EXIT_EXCEPTION and s.exc_vector == GP:
        s.exc_access = 0
        near_stack = s.exc_address - s.gpr[RSP] + 64 < 128
        if (o.flags & OP_STACK) != 0 or ((o.flags & OP_STACK_TOO) != 0 and near_stack):
            s.exc_vector = SS_FAULT


@native(tail=True)
def plain(s: ptr[CpuState], o: ptr[Op], fn, f):
    """An instruction that falls through."""
    try:
        fn(s, o, f)
    except Stop:
        leave(s, o)
        return
    following = ptr[Op](u64(o) + Op.size)
    tail(following.handler, s, following)


@native(tail=True)
def plain_cc(s: ptr[CpuState], o: ptr[Op], fn, f, kind):
    """A conditional instruction that falls through, for a known kind of flags."""
    try:
        fn(s, o, f, kind)
    except Stop:
        leave(s, o)
        return
    following = ptr[Op](u64(o) + Op.size)
    tail(following.handler, s, following)


@native
def quick_lookup(s):
    """The first op of the block at RIP from TLB and block cache, or 0."""
    return lookup_linear(s, linear_ip(s))


@native
def lookup_linear(s, lin):
    e = tlb_entry(s, s.tlb, lin)
    ops: u64 = 0
    if likely(e.xtag == lin & PAGE_MASK):
        host = e.addend + lin
        j = jump_entry(s, host, s.mode, 0)
        if likely(j.host == host and j.mode == u64(s.mode)):
            ops = j.ops
        else:
            j = jump_entry(s, host, s.mode, 1)
            if j.host == host and j.mode == u64(s.mode):
                ops = j.ops
    return ops


@native(tail=True)
def jump(s: ptr[CpuState], o: ptr[Op], fn, f):
    """An instruction that sets RIP itself."""
    try:
        fn(s, o, f)
    except Stop:
        leave(s, o)
        return
    if unlikely(s.pending != 0):
        s.exit_reason = EXIT_PENDING
        return
    ops: u64 = 0
    if f.m64:
        ops = lookup_linear(s, s.rip)
    else:
        ops = quick_lookup(s)
    if unlikely(ops == 0):
        s.exit_reason = EXIT_LOOKUP
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native(tail=True)
def onward(s: ptr[CpuState], o: ptr[Op]):
    """Where a region is left by a jump that has set RIP: look the next block up."""
    ops = quick_lookup(s)
    if unlikely(ops == 0):
        s.exit_reason = EXIT_LOOKUP
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def may_chain(s, source, distance):
    """Whether the block at RIP, `distance` from the one at `source`, may be its successor for good.

    Both lie in one linear page, so that no mapping can part them, and RIP did not wrap round 16 or 32 bits on the way:
    another alias of this code, at another RIP, would not.
    """
    base = s.cs_base
    return s.rip == source + distance and (((source + base) ^ (s.rip + base)) & PAGE_MASK) == 0


@native(inline=False)
def chain_target(s, o: ptr[Op], source: u64) -> u64:
    """The block at RIP for a branch taken at `source`; 0, with the exit reason set, when the run loop must look."""
    ops = quick_lookup(s)
    if ops != 0:
        if may_chain(s, source, o.imm):
            o.target = ops
    else:
        s.exit_reason = EXIT_LOOKUP
        if (s.mode & MODE_SIZE) == MODE_64 and not canonical(s, s.rip):
            take_back(s, o, source)
    return ops


@native(inline=False)
def take_back(s, o: ptr[Op], source: u64) -> None:
    """A branch to a non-canonical address raises #GP(0) itself: undo what it did."""
    s.rip = source + u64(o.ip)
    if (o.flags & OP_CALL) != 0:
        s.gpr[RSP] = s.gpr[RSP] + 8
        if shadow_enabled(s) and o.imm != u64(o.next_ip):
            s.ssp = s.ssp + 8
    try:
        general_protection(s, 0)
    except Stop:
        give_back(s, o)


@native(inline=False)
def chain_fall(s, o: ptr[Op], source: u64) -> u64:
    """Likewise for the way past a branch, or the end of a block that has none."""
    ops = quick_lookup(s)
    if ops == 0:
        s.exit_reason = EXIT_LOOKUP
    elif may_chain(s, source, u64(o.next_ip)):
        o.fall = ops
    return ops


@native
def decide(s, o, fn, f, kind):
    """Whether a direct branch is taken; raises #GP(0) for a target beyond the code segment."""
    taken = fn(s, o, f, kind)
    if not f.m64:
        if taken:
            check_near(s, f, branch_target(s.rip, o.imm, f))
    return taken


@native(tail=True)
def branch(s: ptr[CpuState], o: ptr[Op], fn, f, kind):
    """A direct branch: the function says whether it is taken (and may push a return address)."""
    source = s.rip
    try:
        taken = decide(s, o, fn, f, kind)
    except Stop:
        leave(s, o)
        return
    ops = follow(s, o, f, source, taken)
    if unlikely(ops == 0):
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def follow(s, o, f, source, taken):
    """Move RIP past a branch and find the next block; 0, with the exit reason set, when the run loop must. Where that
    is because someone wants the processor, a branch that is taken leaves with EXIT_PENDING, and one that is not with
    EXIT_LOOKUP.
    """
    ops: u64 = 0
    if taken:
        s.rip = branch_target(source, o.imm, f)
        if unlikely(s.pending != 0):
            s.exit_reason = EXIT_PENDING
        else:
            ops = o.target
            if unlikely(ops == 0):
                ops = chain_target(s, o, source)
    else:
        s.rip = next_rip(source, u64(o.next_ip), f)
        if unlikely(s.pending != 0):
            s.exit_reason = EXIT_LOOKUP
        else:
            ops = o.fall
            if unlikely(ops == 0):
                ops = chain_fall(s, o, source)
    return ops


@native(tail=True)
def fused(s: ptr[CpuState], o: ptr[Op], fn, f, condition_fn, condition_f, kind):
    """A flag-setting instruction and the conditional jump behind it, as one handler."""
    try:
        fn(s, o, f)
    except Stop:
        leave(s, o)
        return
    jump_op = ptr[Op](u64(o) + Op.size)
    ops = follow(s, jump_op, condition_f, s.rip, condition_fn(s, jump_op, condition_f, kind))
    if unlikely(ops == 0):
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def next_rip(source, offset, f):
    """RIP after an instruction that falls through; a 16-bit operand size truncates only jumps."""
    to = source + offset
    if f.m64:
        return to
    return to & 0xFFFF_FFFF


@native
def within_mode(s, rip):
    """Likewise for an instruction that is not specialized on the mode."""
    if (s.mode & MODE_SIZE) == MODE_64:
        return rip
    return rip & 0xFFFF_FFFF


@native(tail=True)
def next_block(s: ptr[CpuState], o: ptr[Op], m64):
    """The end of a block that no branch ends."""
    source = s.rip
    to = source + u64(o.ip)
    if not m64:
        to = to & 0xFFFF_FFFF
    s.rip = to
    ops = o.fall
    if unlikely(s.pending != 0):
        s.exit_reason = EXIT_PENDING
        return
    if unlikely(ops == 0):
        ops = chain_fall(s, o, source)
    if unlikely(ops == 0):
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def beyond_limit(s, o):
    """Whether the block at RIP reaches beyond its code segment."""
    return s.rip + o.imm > u64(s.seg_limit[CS])


@native(tail=True)
def within_limit(s: ptr[CpuState], o: ptr[Op]):
    """First op of a block in a code segment that is not flat. A block that reaches beyond its limit (imm is its last
    byte) goes on one instruction at a time: those before the limit execute, and the one that passes it faults.
    """
    if unlikely(beyond_limit(s, o)):
        s.exit_reason = EXIT_SMC
        return
    following = ptr[Op](u64(o) + Op.size)
    tail(following.handler, s, following)


@native
def beyond_budget(s, o):
    """Whether the block at RIP has more instructions (imm) than may still retire; else they are paid for. `disp` says
    whether the last is a branch.
    """
    return not pay(s, o.imm, u64(o.disp))


@native(tail=True)
def counted(s: ptr[CpuState], o: ptr[Op]):
    """First op of a block whose instructions are counted."""
    if unlikely(beyond_budget(s, o)):
        s.exit_reason = EXIT_BUDGET
        return
    following = ptr[Op](u64(o) + Op.size)
    tail(following.handler, s, following)


@native
def left_behind_branch(s, kind):
    """Whether the branch instruction that has just left was taken; with PENDING_STEP set (see `follow`)."""
    return s.exit_reason == EXIT_PENDING or (s.exit_reason == EXIT_LOOKUP and kind != SELECT_JCC)


@native(inline=False)
def execute_branch(s, o: ptr[Op]) -> None:
    """Execute the branch instruction that follows op `o`, which says its kind, and record it if it is taken."""
    following = ptr[Op](u64(o) + Op.size)
    start = s.rip
    source = branch_address(s, within_mode(s, start + u64(o.ip)))
    info: u64 = 0
    if s.tx != 0:
        info = INFO_IN_TX
    if s.alone == 0:
        atomic_or(ref(s, "pending"), u64(PENDING_STEP))
    s.exit_reason = EXIT_NONE
    invoke(following.handler, s, following)
    if s.alone == 0:
        atomic_and(ref(s, "pending"), ~u64(PENDING_STEP))
    if left_behind_branch(s, o.imm):
        if (o.imm & DIRECT) != 0 and (s.mode & MODE_SIZE) == MODE_64 and not canonical(s, s.rip):
            take_back(s, following, start)
        else:
            record_branch(s, o.imm, source, info)


@native(tail=True)
def recorded(s: ptr[CpuState], o: ptr[Op]):
    """Before a branch instruction whose branch is recorded (MODE_LBR); goes on behind it."""
    execute_branch(s, o)
    left = s.exit_reason != EXIT_PENDING and s.exit_reason != EXIT_LOOKUP
    if left or s.alone != 0 or (o.imm & SELECT_FAR_BRANCH) != 0:
        return
    if unlikely(s.pending != 0):
        s.exit_reason = EXIT_PENDING
        return
    ops = quick_lookup(s)
    if unlikely(ops == 0):
        s.exit_reason = EXIT_LOOKUP
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native(tail=True)
def leaving(s: ptr[CpuState], o: ptr[Op], fn, f):
    """An instruction after which the run loop looks again: it changed what translated code depends on."""
    try:
        s.exit_reason = EXIT_LOOKUP
        fn(s, o, f)
    except Stop:
        leave(s, o)
        return
    s.rip = within_mode(s, s.rip + u64(o.next_ip))


@native(tail=True)
def leaving_jump(s: ptr[CpuState], o: ptr[Op], fn, f):
    """Likewise, for an instruction that sets RIP itself (far transfers, IRET, SYSCALL)."""
    try:
        s.exit_reason = EXIT_LOOKUP
        fn(s, o, f)
    except Stop:
        leave(s, o)


@native(tail=True)
def cold(s: ptr[CpuState], o: ptr[Op]):
    """An instruction that ordinary Python executes."""
    leave(s, o)
    s.cold_row = u32(o.row)
    s.cold_op = u64(o)
    s.exit_reason = EXIT_COLD


@native(tail=True)
def stepped(s: ptr[CpuState], o: ptr[Op]):
    """Behind a single instruction."""
    s.rip = within_mode(s, s.rip + u64(o.ip))
    s.exit_reason = EXIT_STEPPED


@native(tail=True)
def dead(s: ptr[CpuState], o: ptr[Op]):
    """First op of an invalidated block: RIP is at its start."""
    s.exit_reason = EXIT_LOOKUP


@native(inline=False)
def lookup(s) -> u64:
    """The first op of the block at RIP; 0 when Python must help. Raises the fetch's fault."""
    ops = quick_lookup(s)
    if ops != 0:
        return ops
    lin = linear_ip(s)
    if s.watch_code != 0 and on_watched_page(s, lin & PAGE_MASK):
        alone(s)  # a breakpoint comes before the faults of its fetch (SDM vol. 3, table 6-2)
    check_fetch(s, u64(1))
    lost = tlb_entry(s, s.tlb, lin).xtag != lin & PAGE_MASK
    host = fill(s, lin, u32(FETCH), s.tlb_index)
    if lost:
        ops = lookup_linear(s, lin)
        if ops != 0:
            return ops  # only the TLB had lost it
    return find_block(s, lin, host)
