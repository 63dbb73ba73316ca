"""Debug registers: instruction, data and I/O breakpoints, and the #DB that they end in (SDM vol. 3, chapter 17.2).

Pages with a breakpoint never enter the TLB, so that every access to them takes the slow path, which compares; code on
them runs one instruction at a time. Everything else runs as if there were no breakpoints.
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.lam import data_address
from pellucid.cpu.state import (
    CR4_DE, DB, DR6_BLD, DR6_BS, DR6_FIXED, DR7_FIXED, DR7_GD, EXIT_EXCEPTION, EXIT_SMC, FEATURE_BUS_LOCK,
    FEATURES_SYSTEM, PAGE_MASK)
from pellucid.native import native, static, u32, u64, unlikely

DR6_WRITABLE = 0xE00F
EXECUTE, WRITES, PORT, READS_AND_WRITES = 0, 1, 2, 3


@native
def breakpoint_kind(s, n):
    """DR7's R/W field of breakpoint n."""
    return u32(s.dr[7] >> (16 + 4 * n)) & 3


@native
def breakpoint_size(s, n):
    """Bytes that breakpoint n covers, by DR7's LEN field: 1, 2, 8 or 4."""
    code = (s.dr[7] >> (18 + 4 * n)) & 3
    size = u64(1) << code
    if code == 2:
        size = 8
    if code == 3:
        size = 4
    return size


@native(inline=False)
def update_breakpoints(s) -> bool:
    """Derive CpuState.watch_* from DR7 and CR4.DE; whether TLB entries made before no longer serve."""
    code: u32 = 0
    data: u32 = 0
    port: u32 = 0
    for n in static(range(4)):
        if (s.dr[7] >> (2 * n)) & 3 != 0:
            kind = breakpoint_kind(s, n)
            if kind == EXECUTE:
                code = code | (1 << n)
            elif kind != PORT:
                data = data | (1 << n)
            elif (s.cr4 & CR4_DE) != 0:
                port = port | (1 << n)
    stale = (code | data | s.watch_code | s.watch_data) != 0
    s.watch_code = code
    s.watch_data = data
    s.watch_port = port
    return stale


@native(inline=False)
def on_watched_page(s, page: u64) -> bool:
    """Whether an instruction or data breakpoint lies on the linear page."""
    found: bool = False
    for n in static(range(4)):
        if ((s.watch_code | s.watch_data) >> n) & 1 != 0 and s.dr[n] & PAGE_MASK == page:
            found = True
    return found


@native
def watch(s, lin, size, write):
    """Called on the slow path of every data access."""
    if unlikely(s.watch_data != 0):
        match_data(s, lin, size, write)


@native(inline=False)
def match_data(s, lin: u64, size: u64, write: bool) -> None:
    """A data access that touches a breakpoint ends in #DB; its instruction is executed alone to that end."""
    hits: u64 = 0
    lin = data_address(s, lin)
    for n in static(range(4)):
        if (s.watch_data >> n) & 1 != 0 and (write or breakpoint_kind(s, n) == READS_AND_WRITES):
            if overlaps(s.dr[n], breakpoint_size(s, n), lin, size):
                hits = hits | (1 << n)
    note_hits(s, hits)


@native
def overlaps(first, size, other, length):
    start = first & ~(size - 1)
    return other - start < size or start - other < length


@native
def note_hits(s, hits):
    """Keep hits for the end of the instruction. Where a block is running: stop, to execute it again alone."""
    if hits != 0:
        if s.alone == 0:
            s.exit_reason = EXIT_SMC
            raise Stop
        s.db_pending = s.db_pending | hits


@native(inline=False)
def match_port(s, port: u64, size: u64) -> None:
    """Likewise for an I/O breakpoint (CR4.DE)."""
    hits: u64 = 0
    for n in static(range(4)):
        if (s.watch_port >> n) & 1 != 0 and overlaps(s.dr[n], breakpoint_size(s, n), port, size):
            hits = hits | (1 << n)
    note_hits(s, hits)


@native
def match_code(s, lin):
    """DR6 bits of the instruction breakpoints at a linear address."""
    hits: u64 = 0
    for n in static(range(4)):
        if (s.watch_code >> n) & 1 != 0 and s.dr[n] == lin:
            hits = hits | (1 << n)
    return hits


@native
def valid_dr6(s, value):
    """What DR6 holds of a value that is written to it."""
    fixed: u64 = DR6_FIXED
    if (s.features[FEATURES_SYSTEM] & FEATURE_BUS_LOCK) != 0:
        fixed = DR6_FIXED & ~DR6_BLD
    return (value & (DR6_WRITABLE | DR6_BLD)) | fixed


@native(inline=False)
def debug_exception(s, cause: u64, kind: u32) -> None:
    """Make #DB the exception to deliver. DR6 says why: its breakpoint bits afresh, the others in addition; BLD is
    cleared for a bus lock, and stays as it is else (SDM vol. 3, 17.2.3).
    """
    s.dr[6] = ((s.dr[6] & ~u64(15)) | cause | (DR6_FIXED & ~DR6_BLD)) & ~(cause & DR6_BLD)
    s.dr[7] = s.dr[7] & ~u64(DR7_GD)
    s.db_pending = 0
    s.exit_reason = EXIT_EXCEPTION
    s.exc_vector = DB
    s.exc_error = 0
    s.exc_has_error = 0
    s.exc_soft = kind


__all__ = ["DR6_BS", "DR7_FIXED", "debug_exception", "match_code", "match_port", "on_watched_page",
           "update_breakpoints", "valid_dr6", "watch"]
