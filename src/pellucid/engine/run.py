"""The native run loop: from one block to the next, with exceptions delivered on the way."""

from pellucid.cpu.apic_access import (
    EXIT_FASTPATH_EXIT_HANDLED, EXIT_FASTPATH_NONE, EXIT_FASTPATH_REENTER_GUEST, access_apic)
from pellucid.cpu.breakpoints import debug_exception, match_code
from pellucid.cpu.clock_registers import answer_from_clock
from pellucid.cpu.code_pages import read_mail
from pellucid.cpu.exceptions import DELIVERED, INTERRUPTED, WAITS, deliver_exception, deliver_external
from pellucid.cpu.faults import Stop
from pellucid.cpu.host import enter_guest_float, leave_guest_float
from pellucid.cpu.nmi import may_take_nmi, nmi_is_due, take_nmi
from pellucid.cpu.posted import collect_events, events_were_posted, leave_for_event, wait_halted
from pellucid.cpu.retire import pay_one
from pellucid.cpu.segments import linear_ip
from pellucid.cpu.tally import begin_tally, change_level, level_of, settle
from pellucid.cpu.code_cache import IS_BRANCH, IS_CONDITIONAL, OP_OUTSIDE, Block, CodeCache, Op
from pellucid.cpu.state import (
    BP, DB, DEBUGCTL_BTF, DR6_BS, EXIT_BLOCK, EXIT_BUDGET, EXIT_EXCEPTION, EXIT_HLT, EXIT_HYPERCALL, EXIT_LOOKUP,
    EXIT_NONE, EXIT_PAGER, EXIT_PAUSE, EXIT_PENDING, EXIT_SHUTDOWN, EXIT_SMC, EXIT_STEPPED, EXIT_TRANSACTION,
    EXIT_TRANSLATE, PENDING_STEP, PENDING_TRACE, RFLAGS_IF, RFLAGS_RF, RFLAGS_TF, SHADOW_MOV_SS, SOFT_ICEBP,
    SOFT_NONE, TRACE_BLOCKS, TRACE_EVENTS, TRACE_NEW, CpuState, Mailbox)
from pellucid.cpu.transaction import abort_transaction
from pellucid.cpu.undo_log import ABORT_DEBUG, Transaction
from pellucid.cpu.vectors import acknowledge, may_take_vector, vector_is_due
from pellucid.engine.dispatch import lookup
from pellucid.engine.translate import step_block
from pellucid.isa.system import guest_tsc
from pellucid.native import atomic_and, atomic_load, atomic_or, invoke, native, ptr, ref, u32, u64, unlikely


@native(inline=False)
def step(s) -> u32:
    """Execute one instruction alone; the exit reason, EXIT_STEPPED when it is done."""
    s.replay_at = 0
    resume = s.flags & RFLAGS_RF
    if unlikely(s.watch_code != 0) and resume == 0 and s.replay_count == 0 and s.shadow != SHADOW_MOV_SS:
        hits = match_code(s, linear_ip(s))
        if hits != 0:
            s.step_once = 0
            debug_exception(s, hits, u32(SOFT_NONE))
            return u32(EXIT_EXCEPTION)
    try:
        ops = step_block(s, linear_ip(s))
    except Stop:
        if s.exit_reason == EXIT_EXCEPTION:
            end_step(s)
        return s.exit_reason
    if ops == 0:
        return u32(EXIT_TRANSLATE)
    if unlikely(s.tx != 0) and not may_be_inside(s):
        return u32(EXIT_TRANSACTION)
    shadow = s.shadow
    s.step_trap = u32((s.flags & RFLAGS_TF) != 0)
    s.flags = s.flags & ~u64(RFLAGS_RF)
    s.shadow = 0
    atomic_or(ref(s, "pending"), u64(PENDING_STEP))
    s.exit_reason = EXIT_NONE
    block = ptr[Block](ops - Block.size)
    pay_one(s, block.branch & IS_BRANCH)
    s.alone = 1
    invoke(ptr[u64](ops)[0], s, ptr[Op](ops))
    s.alone = 0
    atomic_and(ref(s, "pending"), ~u64(PENDING_STEP))
    reason = s.exit_reason
    if reason == EXIT_EXCEPTION:
        end_step(s)
        if s.exc_soft == SOFT_NONE or s.exc_soft == SOFT_ICEBP:  # INT1 is the #DB that waited, too
            s.db_pending = 0
    elif ends_instruction(reason):
        end_step(s)
        if s.step_trap != 0 and s.shadow != SHADOW_MOV_SS and stops_here(s, block, reason):
            s.db_pending = s.db_pending | DR6_BS
        if reason != EXIT_HYPERCALL and (reason != EXIT_HLT or s.db_pending != 0):
            reason = u32(EXIT_STEPPED)
    else:
        # Half done: it is executed again when a device has answered, or its code has been thrown away.
        s.flags = s.flags | resume
        s.shadow = shadow
    return reason


@native
def stops_here(s, block, reason):
    """Whether a single-step trap is due behind the instruction that left for this reason: with BTF only behind a branch
    that was taken (SDM vol. 3, 17.4.3), of which the reason tells (see `dispatch.follow`).
    """
    stops: bool = True
    if (s.debugctl & DEBUGCTL_BTF) != 0:
        stops = (block.branch & IS_BRANCH) != 0
        if (block.branch & IS_CONDITIONAL) != 0:
            stops = reason == EXIT_PENDING
    return stops


@native
def ends_instruction(reason: u32):
    """Whether an instruction that left for this reason is done."""
    left = reason == EXIT_PENDING or reason == EXIT_LOOKUP or reason == EXIT_STEPPED
    return left or reason == EXIT_HLT or reason == EXIT_HYPERCALL or reason == EXIT_PAUSE


@native
def end_step(s):
    s.step_once = 0
    s.replay_count = 0


@native
def may_be_inside(s):
    """Whether a transaction may hold the instruction that `step_block` has just translated."""
    block = ptr[Block](ptr[CodeCache](s.code).scratch)
    allowed: bool = True
    for i in range(u64(block.count)):
        allowed = allowed and (ptr[Op](block.ops)[i].flags & OP_OUTSIDE) == 0
    return allowed


@native
def transact(s, traced) -> u32:
    """The next instruction of a transaction, or its abort; EXIT_STEPPED behind both. Leaves only to translate or tell,
    and behind an abort for a page that is out, which would abort it again. A #DB is not delivered (SDM vol. 1, 16.3.7).
    """
    t = ptr[Transaction](s.transaction)
    if s.db_pending != 0:
        abort_transaction(s, u32(ABORT_DEBUG))
        return u32(EXIT_STEPPED)
    if t.left == 0 or used_up(s):
        abort_transaction(s, u32(0))
        return u32(EXIT_STEPPED)
    reason = step_traced(s) if traced else step(s)
    if reason == EXIT_TRANSLATE or reason == EXIT_BLOCK:
        return reason
    t.left -= 1
    if reason == EXIT_EXCEPTION:
        abort_transaction(s, u32(ABORT_DEBUG) if s.exc_vector == DB or s.exc_vector == BP else u32(0))
    elif reason != EXIT_STEPPED:
        abort_transaction(s, t.status)
        if reason == EXIT_PAGER:
            return reason
    return u32(EXIT_STEPPED)


@native(inline=False)
def run_blocks(s) -> u32:
    """Execute chained blocks until one leaves; the exit reason. RFLAGS.RF, which only instruction breakpoints ask for
    (`held_back`), is clear behind the first instruction; one that faults pushes it set by itself.
    """
    try:
        ops = lookup(s)
    except Stop:
        return s.exit_reason
    if ops == 0:
        return u32(EXIT_TRANSLATE)
    shadow = s.shadow
    resume = s.flags & RFLAGS_RF
    first = s.rip
    s.exit_reason = EXIT_NONE
    s.shadow = 0
    s.flags = s.flags & ~u64(RFLAGS_RF)
    invoke(ptr[u64](ops)[0], s, ptr[Op](ops))
    if unlikely(s.exit_reason == EXIT_PAGER) and s.rip == first:
        s.shadow = shadow  # the first instruction is executed again
        s.flags = s.flags | resume
    return s.exit_reason


@native
def debug_trap_due(s):
    """A #DB waits behind the last instruction; MOV SS and POP SS hold it for one more, and an SMI comes before it."""
    return s.db_pending != 0 and s.shadow != SHADOW_MOV_SS and s.smi_due == 0


@native
def run(s: ptr[CpuState]) -> u32:
    """Run the guest until Python is needed; the exit reason."""
    return loop(s, False)


@native
def run_traced(s: ptr[CpuState]) -> u32:
    """`run` for whoever looks on: also leaves for what CpuState.trace says, before it happens.

    EXIT_BLOCK: the block at RIP has just been translated (TRACE_NEW), or it or an instruction comes next
    (TRACE_BLOCKS); the next call executes it. EXIT_EXCEPTION: `deliver` comes next (TRACE_EVENTS).
    """
    return loop(s, True)


@native(inline=False)
def announce(s) -> bool:
    """Whether to leave with EXIT_BLOCK before what comes next: where each of them is asked for, every second time."""
    s.announced = u32((s.trace & TRACE_BLOCKS) != 0 and s.announced == 0)
    return s.announced != 0


@native(inline=False)
def run_next_block(s) -> u32:
    """`run_blocks` with TRACE_*: a new block is told of before it runs, and with TRACE_BLOCKS only one runs."""
    translated = s.count_translated
    try:
        ops = lookup(s)
    except Stop:
        return s.exit_reason
    if ops == 0:
        return u32(EXIT_TRANSLATE)
    fresh = (s.trace & TRACE_NEW) != 0 and s.count_translated != translated
    if announce(s) or (fresh and (s.trace & TRACE_BLOCKS) == 0):
        return u32(EXIT_BLOCK)
    alone = (s.trace & TRACE_BLOCKS) != 0
    if alone:
        atomic_or(ref(s, "pending"), u64(PENDING_TRACE))
    reason = run_blocks(s)
    if alone:
        atomic_and(ref(s, "pending"), ~u64(PENDING_TRACE))
    return reason


@native
def step_traced(s) -> u32:
    """`step` with TRACE_*; what is executed again after a device's answer was told of before."""
    if s.replay_count == 0 and announce(s):
        return u32(EXIT_BLOCK)
    reason = step(s)
    if reason == EXIT_TRANSLATE:
        s.announced = u32((s.trace & TRACE_BLOCKS) != 0)
    return reason


@native
def window_open(s):
    """Whether the 8259 waits for IF, and IF is set; behind STI one instruction still comes before it."""
    return s.irq_window != 0 and (s.flags & RFLAGS_IF) != 0


@native
def interrupt_held(s):
    """Whether a shadow alone holds an interrupt back."""
    return (s.irq_window != 0 or s.vector_due != 0) and (s.flags & RFLAGS_IF) != 0


@native
def held_back(s):
    """Whether instructions are executed one by one: for what comes behind the next, or for the one RF is set for."""
    alone = (s.flags & RFLAGS_TF) != 0 or s.db_pending != 0 or s.short != 0 or interrupt_held(s)
    return alone or ((s.flags & RFLAGS_RF) != 0 and s.watch_code != 0)


@native
def asked_to_leave(s, traced):
    """Whether someone wants the processor. What has been announced is executed before."""
    asked = s.pending != 0 or (window_open(s) and s.shadow == 0)
    if traced:
        asked = asked and s.announced == 0
    return asked


@native(inline=False)
def handle_exit(s, reason: u32) -> u32:
    """What can be done here about an exit: EXIT_FASTPATH_*; EXIT_HANDLED with another exit reason in the state."""
    if answer_from_clock(s, reason):
        return u32(EXIT_FASTPATH_REENTER_GUEST)
    if reason == EXIT_HLT:
        # Performance counters stand still in a halt, and may count its end: the hypervisor's loop sees to that.
        over = s.metered == 0 and wait_halted(s)
        return u32(EXIT_FASTPATH_REENTER_GUEST) if over else u32(EXIT_FASTPATH_NONE)
    return access_apic(s, reason)


@native
def used_up(s):
    """Whether instructions are counted, and none may retire any more."""
    return s.counted != 0 and s.budget <= 0


@native
def changes_level(s):
    """Whether the level at which things are counted has changed; what happened before is settled then."""
    now = level_of(s)
    changed = now != s.level
    if changed:
        change_level(s, now, guest_tsc(s, u64(0)))
    return changed


@native
def loop(s, traced) -> u32:
    enter_guest_float(s)
    reason: u32 = EXIT_NONE
    box = ptr[Mailbox](s.mail)
    if s.metered != 0:
        begin_tally(s, guest_tsc(s, u64(0)))
    while True:
        if unlikely(s.metered != 0):
            if changes_level(s) and s.level_exit != 0 and s.tx == 0:
                reason = EXIT_BUDGET
                break
        if unlikely(atomic_load(ref(box, "posted")) != 0):
            if read_mail(s):
                ptr[CodeCache](s.code).flush_wanted = 1
                reason = EXIT_TRANSLATE
                break
        if unlikely(events_were_posted(s)):
            collect_events(s)
        if unlikely(s.delivering != 0):
            reason = EXIT_EXCEPTION
        elif unlikely(s.tx != 0):
            reason = transact(s, traced)
        elif s.step_once != 0 or s.replay_count != 0:
            reason = step_traced(s) if traced else step(s)
        elif unlikely(debug_trap_due(s)):
            debug_exception(s, s.db_pending, u32(SOFT_NONE))
            reason = EXIT_EXCEPTION
        elif unlikely(nmi_is_due(s)) and (not traced or s.announced == 0):
            if traced or not may_take_nmi(s):
                leave_for_event(s)
                reason = EXIT_PENDING
                break
            taken = take_nmi(s)
            reason = EXIT_STEPPED
            if taken != DELIVERED:
                reason = undelivered(s, taken)
                break
        elif unlikely(vector_is_due(s)) and (not traced or s.announced == 0):
            if traced or not may_take_vector(s):
                leave_for_event(s)
                reason = EXIT_PENDING
                break
            taken = deliver_external(s, acknowledge(s))
            reason = EXIT_STEPPED
            if taken != DELIVERED:
                reason = undelivered(s, taken)
                break
        elif asked_to_leave(s, traced):
            reason = EXIT_PENDING
            break
        elif held_back(s):
            if used_up(s):
                reason = EXIT_BUDGET
                break
            reason = step_traced(s) if traced else step(s)
        elif traced:
            reason = run_next_block(s)
        else:
            reason = run_blocks(s)
        if reason == EXIT_EXCEPTION:
            if s.trap_exceptions != 0:
                break
            if traced:
                if (s.trace & TRACE_EVENTS) != 0 and s.delivering == 0:
                    break
            outcome = deliver_exception(s)
            if outcome != DELIVERED:
                reason = undelivered(s, outcome)
                break
        elif reason == EXIT_SMC:
            s.step_once = 1
        elif reason == EXIT_BUDGET and not used_up(s):
            s.short = 1
        elif reason != EXIT_PENDING and reason != EXIT_LOOKUP and reason != EXIT_STEPPED:
            if traced:  # who looks on sees every access
                break
            outcome = handle_exit(s, reason)
            if outcome != EXIT_FASTPATH_REENTER_GUEST:
                if outcome == EXIT_FASTPATH_EXIT_HANDLED:
                    reason = s.exit_reason
                break
    if s.metered != 0:
        settle(s, guest_tsc(s, u64(0)))
    leave_guest_float(s)
    s.exit_reason = reason
    return reason


@native
def deliver(s: ptr[CpuState]) -> u32:
    """Deliver the exception that `run_traced` left with; the exit reason, EXIT_NONE when `run_traced` comes next."""
    outcome = deliver_exception(s)
    if outcome == DELIVERED:
        return u32(EXIT_NONE)
    return undelivered(s, outcome)


@native
def undelivered(s, outcome):
    """The exit reason for an event that has not been delivered."""
    reason: u32 = EXIT_SHUTDOWN
    if outcome == WAITS:
        reason = s.exit_reason
    if outcome == INTERRUPTED:
        reason = EXIT_PENDING
    return reason
