"""Accesses that something outside the processor answers: a device in memory, a port, an MSR kept by the hypervisor.

The instruction leaves for each access, and starts again when it is done. What earlier executions got stands in
CpuState.replay in order, so a later one finds its answers there; an instruction that had any begins from its first
access each time, and nothing is done twice. A chunk that an instruction completes for good (an element of REP MOVS)
ends with the log emptied.
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.state import EXIT_IO, REPLAY_SLOTS
from pellucid.native import native, u32, u64


@native(inline=False)
def outside(s, reason: u32, address: u64, value: u64, size: u64, write: u32) -> u64:
    """One access: the logged answer (of a write: nothing of use), or leave with exit `reason` for it.

    More accesses than the log holds read as all ones and write nothing: no instruction makes so many.
    """
    if s.replay_at < s.replay_count:
        answer = s.replay[s.replay_at]
        s.replay_at += 1
        return answer
    if s.replay_count >= REPLAY_SLOTS:
        return ~u64(0)
    s.exit_reason = reason
    s.io_address = address
    s.io_data = value
    s.io_size = u32(size)
    s.io_write = write
    s.io_count = 0
    raise Stop


@native(inline=False)
def outside_string(s, port: u64, size: u64, count: u64, host: u64) -> None:
    """INS of up to `count` elements to memory at `host`: leave; the answer is how many were read, at least one."""
    s.exit_reason = EXIT_IO
    s.io_address = port
    s.io_data = host
    s.io_size = u32(size)
    s.io_write = 0
    s.io_count = u32(count)
    raise Stop
