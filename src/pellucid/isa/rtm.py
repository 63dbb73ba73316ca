"""XBEGIN, XEND, XABORT and XTEST (SDM vol. 2; vol. 1, 16.3).

The HLE prefixes, XACQUIRE and XRELEASE, mean nothing: a processor may always execute what they stand before as it is.
"""

from pellucid.cpu.faults import general_protection
from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.memory import exclude_others
from pellucid.cpu.segments import branch_target
from pellucid.cpu.state import RFLAGS_ZF, TSX_RTM_DISABLE
from pellucid.cpu.transaction import begin_transaction
from pellucid.cpu.undo_log import ABORT_XABORT, stop_transaction
from pellucid.isa.control import check_target
from pellucid.isa.table import BRANCH, JUMP, LEAVE, LEAVE_JUMP, PLAIN, Row, instruction
from pellucid.native import native, u32, u64

DEEPEST = 7
"""How deep transactions nest."""

_INSIDE = frozenset(("xbegin", "xend", "ldmxcsr"))
_OUTSIDE = frozenset(("cpuid", "wbinvd", "clflush", "cli", "swapgs", "wrbase", "monitor", "umonitor"))


def runs_inside(row: Row) -> bool:
    """Whether a transaction may hold the instruction (SDM vol. 1, 16.3.8.1): one that changes nothing but what an
    abort restores. CPUID and PAUSE must abort, as must what empties a cache, were there one.
    """
    return row.name in _INSIDE or row.ends in (PLAIN, BRANCH, JUMP) and row.name not in _OUTSIDE


@instruction("XBEGIN", ends=LEAVE_JUMP, stack=True, width=lambda code: 2 if code.endswith("16") else 4)
@native
def xbegin(s, o, f):
    behind = s.rip + u64(o.next_ip)
    if not f.m64:
        behind = behind & 0xFFFF_FFFF
    fallback = branch_target(behind, o.imm, f)
    check_target(s, f, fallback)
    if s.tx == DEEPEST:
        stop_transaction(s, u32(0))
    if s.tx == 0 and (s.tsx_ctrl & TSX_RTM_DISABLE) != 0:
        s.gpr[0] = 0
        s.rip = fallback
    else:
        if s.tx == 0:
            exclude_others(s)
            begin_transaction(s, fallback)
        else:
            s.tx += 1
        s.rip = behind


@instruction("XEND", ends=LEAVE)
@native
def xend(s, o, f):
    if s.tx == 0:
        general_protection(s, 0)
    s.tx -= 1


@instruction("XABORT")
@native
def xabort(s, o, f):
    if s.tx != 0:
        stop_transaction(s, u32(ABORT_XABORT) | (u32(o.imm) & 0xFF) << 24)


@instruction("XTEST", cc_out=CC_UNKNOWN)
@native
def xtest(s, o, f):
    set_eflags(s, u64(RFLAGS_ZF) if s.tx == 0 else u64(0))
