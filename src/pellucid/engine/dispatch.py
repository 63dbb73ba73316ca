"""Handlers: how an instruction's function becomes one link of the threaded interpreter.

Each wrapper calls the semantics and goes on by tail call. A fault leaves with RIP at the instruction; a block
end adds to RIP, looks at `pending` and follows the chained pointer, which it fills on first use where source
and target share a page (then no mapping can part them).
"""

from pellucid.cpu.code_pages import jump_entry
from pellucid.cpu.faults import Stop
from pellucid.cpu.memory import fill, tlb_entry
from pellucid.cpu.state import (
    EXIT_COLD, EXIT_EXCEPTION, EXIT_LOOKUP, EXIT_PENDING, EXIT_STEPPED, FETCH, GP, OP_STACK, OP_STACK_TOO, PAGE_MASK,
    SS_FAULT, CpuState, Op)
from pellucid.engine.translate import find_block
from pellucid.native import likely, native, ptr, tail, u32, u64, unlikely


@native(inline=False)
def leave(s, o: ptr[Op]) -> None:
    """Stop at this op's instruction. A non-canonical address through SS is #SS(0) (SDM vol. 3, 6.15)."""
    s.rip = s.rip + u64(o.ip)
    if s.exc_access != 0 and s.exit_reason == EXIT_EXCEPTION and s.exc_vector == GP:
        s.exc_access = 0
        near_stack = s.exc_address - s.gpr[4] + 64 < 128
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
    lin = s.rip + s.cs_base
    e = tlb_entry(s, s.tlb, lin)
    ops: u64 = 0
    if likely(e.xtag == lin & PAGE_MASK):
        host = e.addend + lin
        j = jump_entry(s, host, s.mode)
        if likely(j.host == host and j.mode == u64(s.mode)):
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
    ops = quick_lookup(s)
    if unlikely(ops == 0):
        s.exit_reason = EXIT_LOOKUP
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def chain(s, source, target):
    """The block at RIP for a direct transfer; 0 when it must be looked up outside. Fills the chain if it may."""
    ops = quick_lookup(s)
    if ops != 0 and ((source ^ s.rip) & PAGE_MASK) == 0:
        target[0] = ops
    return ops


@native(inline=False)
def chain_target(s, o: ptr[Op], source: u64) -> u64:
    ops = quick_lookup(s)
    if ops != 0 and ((source ^ s.rip) & PAGE_MASK) == 0:
        o.target = ops
    return ops


@native(inline=False)
def chain_fall(s, o: ptr[Op], source: u64) -> u64:
    ops = quick_lookup(s)
    if ops != 0 and ((source ^ s.rip) & PAGE_MASK) == 0:
        o.fall = ops
    return ops


@native(tail=True)
def branch(s: ptr[CpuState], o: ptr[Op], fn, f, kind):
    """A direct branch: the function says whether it is taken (and may push a return address)."""
    source = s.rip
    try:
        taken = fn(s, o, f, kind)
    except Stop:
        leave(s, o)
        return
    ops = follow(s, o, f, source, taken)
    if unlikely(ops == 0):
        return
    tail(ptr[u64](ops)[0], s, ptr[Op](ops))


@native
def follow(s, o, f, source, taken):
    """Move RIP past a branch and find the next block; 0, with the exit reason set, when the run loop must."""
    ops: u64 = 0
    if taken:
        s.rip = branch_target(s, source, o.imm, f)
        if likely(s.pending == 0):
            ops = o.target
            if unlikely(ops == 0):
                ops = chain_target(s, o, source)
    else:
        s.rip = next_rip(source, u64(o.next_ip), f)
        if likely(s.pending == 0):
            ops = o.fall
            if unlikely(ops == 0):
                ops = chain_fall(s, o, source)
    if unlikely(ops == 0):
        s.exit_reason = EXIT_LOOKUP
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
def branch_target(s, source, offset, f):
    """RIP after a near transfer, truncated to the operand size outside 64-bit mode."""
    to = source + offset
    if f.m64:
        return to
    if f.w == 2:
        return to & 0xFFFF
    return to & 0xFFFF_FFFF


@native
def next_rip(source, offset, f):
    """RIP after an instruction that falls through; a 16-bit operand size truncates only jumps."""
    to = source + offset
    if f.m64:
        return to
    return to & 0xFFFF_FFFF


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
    s.rip = next_rip(s.rip, u64(o.next_ip), f)


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
    s.rip = s.rip + u64(o.ip)
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
    lin = s.rip + s.cs_base
    e = tlb_entry(s, s.tlb, lin)
    if e.xtag != lin & PAGE_MASK:
        fill(s, lin, u32(FETCH), s.tlb_index)
    return find_block(s, lin)
