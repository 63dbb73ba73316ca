"""Waiting: MONITOR and MWAIT; WAITPKG's UMONITOR, UMWAIT and TPAUSE (SDM vol. 2).

The monitored line is remembered as it was; what differs later has been stored to. The processor waits outside: the
instruction leaves with EXIT_WAIT once, and ends when it is answered. The hypervisor may answer early, as the manual
lets a processor do, and does so for interrupts. EXIT_WAIT's address is that of the monitored line | 1, or 0; its
data the guest's TSC at which the wait ends. That of MWAIT is a write, and has no end: it is answered when an event or a
store has come, and else executed anew.
"""

from pellucid.cpu.faults import general_protection, undefined
from pellucid.cpu.flags import CC_UNKNOWN, set_eflags
from pellucid.cpu.memory import fill, load
from pellucid.cpu.operands import read
from pellucid.cpu.outside import outside
from pellucid.cpu.physical import host_address
from pellucid.cpu.retire import not_done
from pellucid.cpu.code_cache import Op
from pellucid.cpu.state import EXIT_WAIT, MISC_ENABLE_MONITOR, MODE_64, MODE_SIZE, READ
from pellucid.isa.implicit import implicit_address
from pellucid.isa.system import guest_tsc, require_tsc
from pellucid.isa.table import LEAVE, instruction
from pellucid.native import native, ptr, ref, static, u8, u32, u64, volatile_load

SHORT = 100_000
"""TSC ticks that are waited for in native code: leaving takes as long."""


@native(inline=False)
def watch_line(s, lin: u64) -> None:
    """Remember the line around a linear address; the faults are those of a load of one byte."""
    load(s, lin, u8)
    host = fill(s, lin & ~u64(63), u32(READ), s.tlb_index)
    s.monitor_gpa = 0
    if host != 0:
        s.monitor_gpa = s.mmio_gpa | 1
        for n in static(range(8)):
            s.monitor_line[n] = ptr[u64](host)[n]


@instruction("UMONITOR", implicit=True)
@native
def umonitor(s, o, f):
    """The line around DS:register."""
    watch_line(s, implicit_address(s, o, f.widths[0], u64(read(s, o, f, 0)), u64(1), False))


@native
def require_monitor(s):
    """#UD outside level 0, and where IA32_MISC_ENABLE has switched MONITOR and MWAIT off."""
    if s.cpl != 0 or (s.misc_enable & MISC_ENABLE_MONITOR) == 0:
        undefined(s)


@native
def extensions(s):
    """What ECX asks for, RCX in 64-bit mode."""
    value = s.gpr[1]
    if (s.mode & MODE_SIZE) != MODE_64:
        value = value & 0xFFFF_FFFF
    return value


@instruction("MONITOR", asize=True, implicit=True)
@native
def monitor(s, o, f):
    """The line around DS:rAX. EDX has hints; there are no extensions."""
    require_monitor(s)
    if extensions(s) != 0:
        general_protection(s, 0)
    watch_line(s, implicit_address(s, o, f.asize, s.gpr[0], u64(1), False))


@instruction("MWAIT", ends=LEAVE)
@native
def mwait(s, o, f):
    """Bit 0 of ECX: an interrupt ends the wait where RFLAGS.IF masks it, too. EAX has hints."""
    require_monitor(s)
    if extensions(s) > 1:
        general_protection(s, 0)
    if s.replay_count != 0 or line_stands(s):
        outside(s, u32(EXIT_WAIT), s.monitor_gpa, ~u64(0), u64(8), u32(1))
    s.monitor_gpa = 0


@native(inline=False)
def line_stands(s) -> bool:
    """Whether a line is monitored and holds what it did."""
    host: u64 = 0
    if s.monitor_gpa != 0:
        host = host_address(s, s.monitor_gpa - 1)
    if host == 0:
        return False
    changed: u64 = 0
    for n in static(range(8)):
        changed = changed | (ptr[u64](host)[n] ^ s.monitor_line[n])
    return changed == 0


@native(inline=False)
def begin_wait(s, now: u64) -> None:
    """Until when: EDX:EAX, or sooner where IA32_UMWAIT_CONTROL limits the wait."""
    limit = s.umwait_control & 0xFFFF_FFFC
    s.wait_until = (s.gpr[2] << 32) | (s.gpr[0] & 0xFFFF_FFFF)
    s.wait_limited = 0
    if limit != 0 and now + limit < s.wait_until:
        s.wait_until = now + limit
        s.wait_limited = 1


@native(inline=False)
def wait_here(s, o: ptr[Op], on_line: bool) -> bool:
    """Wait for a deadline that is near without leaving; whether it is not."""
    now = guest_tsc(s, not_done(s, o))
    if s.wait_until - now > SHORT:
        return True
    while now < s.wait_until and volatile_load(ref(s, "pending")) == 0:
        if on_line and not line_stands(s):
            break
        now = guest_tsc(s, not_done(s, o))
    return False


@instruction("TPAUSE", "UMWAIT", extra=lambda code: int(code.startswith("UMWAIT")), cc_out=CC_UNKNOWN, ends=LEAVE)
@native
def timed_wait(s, o, f):
    """CF says whether the system's limit ended it. Bit 0 of the operand chooses a state of the hardware: not here.

    By the instruction clock no time passes within an instruction: the wait ends at once.
    """
    require_tsc(s)
    if u32(read(s, o, f, 0)) >> 1 != 0:
        general_protection(s, 0)
    now = guest_tsc(s, not_done(s, o))
    line: u64 = 0
    waits: bool = True
    if s.replay_count == 0:
        begin_wait(s, now)
        waits = now < s.wait_until and s.clock_on == 0
    if f.extra == 1:
        line = s.monitor_gpa
        if s.replay_count == 0:
            waits = waits and line_stands(s)
    if s.replay_count == 0:
        waits = waits and wait_here(s, o, line != 0)
    if waits:
        outside(s, u32(EXIT_WAIT), line, s.wait_until, u64(8), u32(0))
    if f.extra == 1:
        s.monitor_gpa = 0
    set_eflags(s, u64(s.wait_limited != 0 and guest_tsc(s, not_done(s, o)) > s.wait_until))


@instruction("SERIALIZE", ends=LEAVE)
@native
def serialize(s, o, f):
    """Instructions execute one after the other here, and stores to code take effect at once."""
