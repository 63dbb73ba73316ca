"""The undo log of a transaction (RTM; SDM vol. 1, 16.3): what its stores overwrote, by lines of 64 bytes.

While CpuState.tx is not 0 no TLB allows fast stores, and every slow one comes by here before it changes a byte. Only
bytes that the transaction itself stored to are put back: what a device wrote beside them meanwhile stays.
"""

from pellucid.cpu.faults import Stop
from pellucid.cpu.state import EXIT_TRANSACTION
from pellucid.native import array, ctz, memcpy, minimum, native, ptr, ref, struct, u8, u32, u64
from pellucid.native.layout import Struct

LINE, LINES, SAVED_BYTES = 64, 256, 1536
LONGEST = 4096  # instructions: some hundred microseconds
# EAX of an abort (SDM vol. 1, 16.3.5). Bits 1 and 2, "may succeed" and "conflict", are never set.
ABORT_XABORT, ABORT_CAPACITY, ABORT_DEBUG, ABORT_NESTED = 1, 8, 16, 32


@struct
class Transaction(Struct):
    """What an abort needs."""

    fallback: u64                # where the program goes on
    mxcsr: u64
    longest: u32                 # instructions that a transaction may execute: LONGEST
    left: u32                    # how many it still may
    status: u32                  # EAX, where an instruction asks for the abort
    saved: array[u8, 1536]       # registers: see `transaction.SAVED`
    lines: u64                   # how many lines the log has
    hosts: array[u64, 256]       # their host addresses
    stored: array[u64, 256]      # bit n of a line: its byte n has been stored to
    old: array[u8, 16384]        # what they held


@native(inline=False)
def stop_transaction(s, status: u32) -> None:
    """Leave this instruction, and abort the transaction with ABORT_* in EAX."""
    ptr[Transaction](s.transaction).status = status
    s.exit_reason = EXIT_TRANSACTION
    raise Stop


@native
def line_at(s, n):
    """The host address of what line `n` of the log held."""
    return u64(ref(ptr[Transaction](s.transaction), "old")) + n * LINE


@native(inline=False)
def find_line(s, line: u64) -> u64:
    """The number of the line at host address `line`, the log's newest where it had none; aborts where that is full."""
    t = ptr[Transaction](s.transaction)
    hosts = t.hosts
    n = t.lines
    while n != 0:
        n -= 1
        if hosts[n] == line:
            return n
    if t.lines == LINES:
        stop_transaction(s, u32(ABORT_CAPACITY))
    n = t.lines
    hosts[n] = line
    stored = t.stored
    stored[n] = 0
    memcpy(ptr[u8](line_at(s, n)), ptr[u8](line), u64(LINE))
    t.lines = n + 1
    return n


@native(inline=False)
def log_store(s, host: u64, size: u64) -> None:
    """Before a store of `size` bytes at host address `host`: keep what is there."""
    stored = ptr[Transaction](s.transaction).stored
    end = host + size
    while host < end:
        line = host & ~u64(LINE - 1)
        count = minimum(line + LINE, end) - host
        n = find_line(s, line)
        stored[n] = stored[n] | (~u64(0) >> (LINE - count)) << (host - line)
        host += count


@native(inline=False)
def undo_stores(s) -> None:
    """Every byte that was stored to holds again what it held."""
    t = ptr[Transaction](s.transaction)
    hosts = t.hosts
    stored = t.stored
    for n in range(t.lines):
        left = stored[n]
        while left != 0:
            at = ctz(left)
            ptr[u8](hosts[n])[at] = ptr[u8](line_at(s, n))[at]
            left = left & (left - 1)
