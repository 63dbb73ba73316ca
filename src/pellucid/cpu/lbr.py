"""Last-branch records (SDM vol. 3, 17.4 to 17.10): where the latest branches that were taken came from and went.

While IA32_DEBUGCTL.LBR is set on a processor that has them (CpuState.lbr_depth), translated code is of MODE_LBR:
before each branch instruction stands an op that executes it and then records it (`dispatch.recorded`). Interrupts and
exceptions are recorded where they are delivered, aborts of transactions where they happen. SMI and RSM are not;
code in system-management mode is recorded as any other (IA32_DEBUGCTL.FREEZE_WHILE_SMM is not offered). Code of other
modes knows nothing of all this.

The entries hold what there is to know of a branch; the formats in which guests see them are `pellucid.kvm.lbr`'s. No
branch is ever mispredicted here. A cycle is an instruction, as it is to the performance counters, and cycles are known
only where instructions are counted.
"""

from pellucid.cpu.state import DEBUGCTL_LBR, MODE_64, MODE_LBR, MODE_SIZE
from pellucid.native import minimum, native, u64

# Bits of MSR_LBR_SELECT (SDM vol. 3, 17.9): what is not recorded, by where it leads and by kind; call-stack mode.
SELECT_CPL_EQ_0, SELECT_CPL_NEQ_0, SELECT_JCC, SELECT_NEAR_REL_CALL, SELECT_NEAR_IND_CALL, SELECT_NEAR_RET, \
    SELECT_NEAR_IND_JMP, SELECT_NEAR_REL_JMP, SELECT_FAR_BRANCH, SELECT_EN_CALLSTACK = (1 << n for n in range(10))
ZERO_LENGTH = 1 << 15
"""Besides SELECT_NEAR_REL_CALL: a call to the next instruction, which call-stack mode leaves out."""
DIRECT = SELECT_JCC | SELECT_NEAR_REL_CALL | SELECT_NEAR_REL_JMP

INFO_CYCLES, INFO_ABORT, INFO_IN_TX, INFO_MISPRED = 0xFFFF, 1 << 61, 1 << 62, 1 << 63


@native
def records_branches(s):
    """Whether branches are to be recorded, by the registers; translated code knows it by its mode."""
    return (s.debugctl & DEBUGCTL_LBR) != 0 and s.lbr_depth != 0


@native
def branch_address(s, ip):
    """How RIP `ip` is recorded: in full in 64-bit mode, else with 32 bits (SDM vol. 3, 17.4.8.1)."""
    at = ip
    if s.lbr_linear != 0:
        at = at + s.cs_base
    if (s.mode & MODE_SIZE) != MODE_64:
        at = at & 0xFFFF_FFFF
    return at


@native
def elapsed(s):
    """Cycles since the stack changed, at most 0xFFFF; it changes now."""
    cycles: u64 = 0
    if s.counted != 0:
        now = s.retired_end - u64(s.budget)
        cycles = minimum(now - s.lbr_clock, u64(INFO_CYCLES))
        s.lbr_clock = now
    return cycles


@native
def forget_call(s):
    """A return in call-stack mode: the call that was recorded last is gone."""
    tos = s.lbr_tos
    if (s.lbr_from[tos] | s.lbr_to[tos]) != 0:
        s.lbr_from[tos] = 0
        s.lbr_to[tos] = 0
        s.lbr_info[tos] = 0
        s.lbr_tos = (tos - 1) & u64(s.lbr_depth - 1)
        elapsed(s)


@native(inline=False)
def record_branch(s, kind: u64, source: u64, info: u64) -> None:
    """The branch of this kind (SELECT_*, ZERO_LENGTH) from `source`, of `branch_address`, to RIP has been taken."""
    level: u64 = SELECT_CPL_NEQ_0
    if s.cpl == 0:
        level = SELECT_CPL_EQ_0
    select = s.lbr_select
    if (select & (kind | level)) != 0:
        return
    if (select & SELECT_EN_CALLSTACK) != 0:
        if kind == SELECT_NEAR_RET:
            forget_call(s)
            return
        if (kind & ZERO_LENGTH) != 0:
            return
    tos = (s.lbr_tos + 1) & u64(s.lbr_depth - 1)
    s.lbr_tos = tos
    s.lbr_from[tos] = source
    s.lbr_to[tos] = branch_address(s, s.rip)
    s.lbr_info[tos] = info | elapsed(s)


@native
def record_event(s, source):
    """An interrupt or exception, but no #DB, was delivered. The last branch before it stands in the last-exception
    record (SDM vol. 3, 17.11.3).
    """
    s.ler_from = s.lbr_from[s.lbr_tos]
    s.ler_to = s.lbr_to[s.lbr_tos]
    record_branch(s, u64(SELECT_FAR_BRANCH), source, u64(0))


@native
def record_abort(s, source):
    """A transaction that was aborted at `source` goes on at its fallback."""
    if (s.mode & MODE_LBR) != 0:
        record_branch(s, u64(0), source, u64(INFO_ABORT | INFO_IN_TX))
