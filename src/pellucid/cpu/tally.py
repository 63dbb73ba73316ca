"""What happens on a processor, for its performance counters: by privilege level, between blocks.

While CpuState.metered is set, `tally` holds how many instructions and branches have retired at CPL 0 and at the other
levels, how many ticks the time-stamp counter took in native code meanwhile, and how often each level was entered.
Totals are always known (`retire`), so nothing is added up until the level changes or native code is left. An
instruction belongs to the level that it began at.
"""

from pellucid.cpu.state import (
    LEVEL_INSIDE, LEVEL_USER, TALLIES, TALLY_BRANCHES, TALLY_ENTRIES, TALLY_INSTRUCTIONS, TALLY_RUNS, TALLY_TICKS)
from pellucid.native import native, u32, u64


@native
def level_of(s):
    """What counters can tell apart (SDM vol. 3, 20.2.1.1 and 20.3.6.5): LEVEL_*, of what is not aborted (yet)."""
    level: u32 = LEVEL_USER
    if s.cpl == 0:
        level = 0
    if s.tx != 0:
        level = level + LEVEL_INSIDE
    return level


@native
def begin_tally(s, tsc):
    """Native code is entered: its ticks count from the guest's TSC `tsc` on."""
    s.tally_from[TALLY_TICKS] = tsc


@native
def add_tally(s, kind, total):
    at = u64(s.level) * TALLIES + kind
    s.tally[at] = s.tally[at] + (total - s.tally_from[kind])
    s.tally_from[kind] = total


@native(inline=False)
def settle(s, tsc: u64) -> None:
    """Outside blocks: what has happened since the last time belongs to the level so far."""
    add_tally(s, TALLY_INSTRUCTIONS, s.retired_end - u64(s.budget))
    add_tally(s, TALLY_BRANCHES, s.branches)
    add_tally(s, TALLY_TICKS, tsc)
    add_tally(s, TALLY_RUNS, s.branch_runs)


@native(inline=False)
def change_level(s, now: u32, tsc: u64) -> None:
    """What comes next is of level `now`. XBEGIN itself counts as inside, whatever becomes of its transaction."""
    settle(s, tsc)
    if now >= LEVEL_INSIDE and s.level < LEVEL_INSIDE:
        outside = u64(s.level) * TALLIES + TALLY_INSTRUCTIONS
        inside = u64(now) * TALLIES + TALLY_INSTRUCTIONS
        s.tally[outside] = s.tally[outside] - 1
        s.tally[inside] = s.tally[inside] + 1
    if ((now ^ s.level) & LEVEL_USER) != 0:
        entries = u64(now) * TALLIES + TALLY_ENTRIES
        s.tally[entries] = s.tally[entries] + 1
        s.in_run = 0
    s.level = now
