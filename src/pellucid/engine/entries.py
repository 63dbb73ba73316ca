"""What Python calls in the handler image: the run loop, and services on a processor that stands still or on any."""

from pellucid.cpu.breakpoints import update_breakpoints
from pellucid.cpu.code_pages import read_mail, written_outside
from pellucid.cpu.exceptions import deliver_interrupt
from pellucid.cpu.faults import Stop
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.memory import flush_page, flush_tlb, probe_read
from pellucid.cpu.nmi import post_nmi
from pellucid.cpu.physical import host_address
from pellucid.cpu.posted import collect_events, fall_asleep, posted_kinds, wake_dozing
from pellucid.cpu.segments import update_mode
from pellucid.cpu.code_cache import CodeCache, Op
from pellucid.cpu.state import PAGE_MASK, PENDING_REQUEST, CpuState
from pellucid.engine.dispatch import chain_fall, chain_target, quick_lookup
from pellucid.engine.run import deliver, run, run_traced
from pellucid.isa.system import guest_tsc
from pellucid.native import atomic_and, atomic_or, atomic_xchg, minimum, native, ptr, rdtsc, ref, u8, u32, u64


@native
def flush_all(s: ptr[CpuState]):
    flush_tlb(s, True)


@native
def flush_non_global(s: ptr[CpuState]):
    flush_tlb(s, False)


@native
def flush_one(s: ptr[CpuState], address: u64):
    flush_page(s, address)


@native
def refresh_mode(s: ptr[CpuState]):
    update_mode(s)
    if update_breakpoints(s):
        flush_tlb(s, True)


@native
def forget_code(s: ptr[CpuState], gpa: u64, size: u64):
    """Memory changed from outside: `memory_written`, on the thread of `s`, which drops its translations at once.

    The bytes are those that `s` sees at guest-physical `gpa` now.
    """
    end = gpa + size
    while gpa < end:
        here = minimum((gpa & PAGE_MASK) + 4096 - gpa, end - gpa)
        host = host_address(s, gpa)
        if host != 0:
            written_outside(s, host, here)
        gpa += here
    if read_mail(s):
        ptr[CodeCache](s.code).flush_wanted = 1


@native
def memory_written(s: ptr[CpuState], host: u64, size: u64):
    """Memory changed from outside: no processor of the VM executes translations of these bytes any more.

    `host` is their host address, `s` any of the processors; from any thread. Each drops them before it executes on.
    """
    written_outside(s, host, size)


@native
def pieces_written(s: ptr[CpuState], pieces: ptr[u64], count: u64):
    """`memory_written` for `count` pieces: a host address and a size each."""
    for i in range(count):
        written_outside(s, pieces[i * 2], pieces[i * 2 + 1])


@native
def translate_address(s: ptr[CpuState], address: u64, size: u64) -> u64:
    """1 when a read of `address` with the current privilege would succeed; s.mmio_gpa is then its place."""
    found: u64 = 1
    s.bring_in = 1
    try:
        probe_read(s, address, size)
    except Stop:
        found = 0
    s.bring_in = 0
    return found


@native
def interrupt(s: ptr[CpuState], vector: u32) -> u32:
    """Deliver an external interrupt; 0 is a triple fault."""
    return u32(deliver_interrupt(s, vector))


@native
def send_nmi_to(s: ptr[CpuState]):
    """Send the processor an NMI; from any thread."""
    post_nmi(s)


@native
def take_posted(s: ptr[CpuState]):
    """What was posted to the processor waits now; on its own thread."""
    collect_events(s)


@native
def go_to_sleep(s: ptr[CpuState]) -> u64:
    """Before the processor's thread sleeps: POSTED_* of what was posted to it."""
    return fall_asleep(s)


@native
def posted(s: ptr[CpuState]) -> u64:
    """POSTED_* of what the processor has not looked at; from any thread."""
    return posted_kinds(s)


@native
def read_tsc() -> u64:
    return rdtsc()


@native
def read_guest_tsc(s: ptr[CpuState]) -> u64:
    """The guest's TSC now, outside blocks."""
    return guest_tsc(s, u64(0))


@native
def read_rflags(s: ptr[CpuState]) -> u64:
    return get_rflags(s)


@native
def raise_pending(s: ptr[CpuState], bits: u64):
    """Make the processor leave at its next block end; from any thread."""
    atomic_or(ref(s, "pending"), bits)
    if (bits & PENDING_REQUEST) != 0:
        wake_dozing(s)


@native
def drop_pending(s: ptr[CpuState], bits: u64) -> u64:
    """Clear bits of `pending`; what remains."""
    return atomic_and(ref(s, "pending"), ~bits) & ~bits


@native
def exchange_byte(address: u64, value: u64) -> u64:
    """Store a byte at a host address in one step; what was there."""
    return u64(atomic_xchg(ptr[u8](address), u8(value)))


@native
def current_block(s: ptr[CpuState]) -> u64:
    """The first op of the block at RIP where it is translated and at hand, else 0."""
    return quick_lookup(s)


_S = (ptr[CpuState],)
ROOTS = {
    "run": (run, _S), "run_traced": (run_traced, _S), "deliver": (deliver, _S),
    "flush_all": (flush_all, _S), "flush_non_global": (flush_non_global, _S),
    "flush_one": (flush_one, (ptr[CpuState], u64)), "refresh_mode": (refresh_mode, _S),
    "forget_code": (forget_code, (ptr[CpuState], u64, u64)),
    "memory_written": (memory_written, (ptr[CpuState], u64, u64)),
    "pieces_written": (pieces_written, (ptr[CpuState], ptr[u64], u64)),
    "raise_pending": (raise_pending, (ptr[CpuState], u64)), "drop_pending": (drop_pending, (ptr[CpuState], u64)),
    "exchange_byte": (exchange_byte, (u64, u64)), "current_block": (current_block, _S),
    "chain_target": (chain_target, (ptr[CpuState], ptr[Op], u64)),
    "chain_fall": (chain_fall, (ptr[CpuState], ptr[Op], u64)),
    "send_nmi_to": (send_nmi_to, _S), "take_posted": (take_posted, _S), "go_to_sleep": (go_to_sleep, _S),
    "posted": (posted, _S),
    "interrupt": (interrupt, (ptr[CpuState], u32)), "read_tsc": (read_tsc, ()),
    "read_guest_tsc": (read_guest_tsc, _S), "read_rflags": (read_rflags, _S),
    "translate_address": (translate_address, (ptr[CpuState], u64, u64))}
