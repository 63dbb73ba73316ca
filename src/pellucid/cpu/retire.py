"""Counting of retired instructions, and the budget that stops a processor behind exactly so many.

In counted execution (CpuState.counted, which makes MODE_COUNTED) a block pays for all its instructions at its start.
Where an instruction leaves before it is done (a fault, an access of a device), what was paid for it and for those
behind it is given back. So outside a block `budget` is exact, and within one `before` says what has retired.
A block that the budget does not cover is executed one instruction at a time, until the budget is used up.

What counts as one: an instruction with all its repetitions, when it is done; INT n, INT3, INTO and INT1 that raise
their exception. An instruction that faults does not count, and neither does the delivery of an event.

Branch instructions, taken or not, are counted alike: a block has at most one, its last. So are their runs: branches
that follow each other with nothing in between.
"""

from pellucid.cpu.code_cache import OP_BEFORE
from pellucid.cpu.state import EXIT_EXCEPTION, SOFT_ICEBP, SOFT_INT
from pellucid.native import i64, native, u32, u64


@native
def begin_run(s, count, branch):
    """`count` instructions were paid for, the last of them a branch or not."""
    s.in_run_before = s.in_run
    s.run_ahead = branch
    if count == 1 and s.in_run != 0:
        s.run_ahead = 0
    s.branch_runs = s.branch_runs + s.run_ahead
    s.in_run = branch


@native
def pay(s, count, branch):
    """At the start of a block of `count` instructions, the last of them a branch or not (1 or 0): whether the budget
    covers them; they are paid for then.
    """
    enough = s.budget >= i64(count)
    if enough:
        s.budget = s.budget - i64(count)
        s.spent_ahead = count
        s.branches = s.branches + branch
        s.branch_ahead = u32(branch)
        begin_run(s, count, branch)
    return enough


@native
def pay_one(s, branch):
    """Before an instruction that runs alone, whatever the budget: it may become negative by one."""
    ahead = branch & s.counted
    s.budget = s.budget - i64(s.counted)
    s.spent_ahead = s.counted
    s.branches = s.branches + ahead
    s.branch_ahead = u32(ahead)
    begin_run(s, u64(1), ahead)


@native
def not_done(s, o):
    """Instructions that were paid for but have not retired, when that of op `o` is about to."""
    return s.spent_ahead - u64(o.flags >> OP_BEFORE)


@native
def give_back(s, o):
    """The instruction of op `o` has left before it was done."""
    unused = not_done(s, o)
    if s.exit_reason == EXIT_EXCEPTION and (s.exc_soft == SOFT_INT or s.exc_soft == SOFT_ICEBP):
        unused = unused - s.counted
    else:
        s.branches = s.branches - u64(s.branch_ahead)
        s.branch_runs = s.branch_runs - s.run_ahead
        s.in_run = 0
        if unused == s.spent_ahead:
            s.in_run = s.in_run_before
    s.budget = s.budget + i64(unused)


@native
def instruction_time(s, ahead):
    """The instruction clock in nanoseconds, `ahead` instructions that were paid for having not retired."""
    return s.clock_end - (u64(s.budget + i64(ahead)) << s.clock_shift)
