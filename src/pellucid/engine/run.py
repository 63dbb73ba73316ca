"""The native run loop: from one block to the next, with exceptions delivered on the way."""

from pellucid.cpu.code_pages import read_mail, written_outside
from pellucid.cpu.exceptions import deliver_exception, deliver_interrupt, single_step_trap
from pellucid.cpu.faults import Stop
from pellucid.cpu.flags import get_rflags
from pellucid.cpu.host import enter_guest_float, leave_guest_float
from pellucid.cpu.memory import flush_page, flush_tlb, probe_read, select_tlb
from pellucid.cpu.segments import update_mode
from pellucid.cpu.state import (
    EXIT_EXCEPTION, EXIT_LOOKUP, EXIT_NONE, EXIT_PENDING, EXIT_SHUTDOWN, EXIT_SMC, EXIT_STEPPED, EXIT_TRANSLATE,
    PENDING_STEP, RFLAGS_IF, RFLAGS_TF, SHADOW_MOV_SS, CodeCache, CpuState, Mailbox, Op)
from pellucid.engine.dispatch import chain_fall, chain_target, lookup, quick_lookup
from pellucid.engine.translate import step_block
from pellucid.native import atomic_and, atomic_load, atomic_or, invoke, native, ptr, rdtsc, ref, u32, u64, unlikely


@native(inline=False)
def step(s) -> u32:
    """Execute one instruction alone; the exit reason, EXIT_STEPPED when it is done."""
    traps = (s.flags & RFLAGS_TF) != 0
    try:
        ops = step_block(s, s.rip + s.cs_base)
    except Stop:
        s.step_once = 0
        s.replay_count = 0
        return s.exit_reason
    if ops == 0:
        return u32(EXIT_TRANSLATE)
    atomic_or(ref(s, "pending"), u64(PENDING_STEP))
    s.exit_reason = EXIT_NONE
    s.replay_at = 0
    s.shadow = 0
    s.alone = 1
    invoke(ptr[u64](ops)[0], s, ptr[Op](ops))
    s.alone = 0
    atomic_and(ref(s, "pending"), ~u64(PENDING_STEP))
    reason = s.exit_reason
    if reason == EXIT_PENDING or reason == EXIT_LOOKUP or reason == EXIT_STEPPED:
        s.step_once = 0
        s.replay_count = 0
        if traps and s.shadow != SHADOW_MOV_SS:
            single_step_trap(s)
            return u32(EXIT_EXCEPTION)
        return u32(EXIT_STEPPED)
    if reason == EXIT_EXCEPTION:
        s.step_once = 0
        s.replay_count = 0
    return reason


@native(inline=False)
def run_blocks(s) -> u32:
    """Execute chained blocks until one leaves; the exit reason."""
    try:
        ops = lookup(s)
    except Stop:
        return s.exit_reason
    if ops == 0:
        return u32(EXIT_TRANSLATE)
    s.exit_reason = EXIT_NONE
    invoke(ptr[u64](ops)[0], s, ptr[Op](ops))
    return s.exit_reason


@native
def run(s: ptr[CpuState]) -> u32:
    """Run the guest until Python is needed; the exit reason."""
    enter_guest_float(s)
    reason: u32 = EXIT_NONE
    box = ptr[Mailbox](s.mail)
    while True:
        if unlikely(atomic_load(ref(box, "posted")) != 0):
            if read_mail(s):
                ptr[CodeCache](s.code).flush_wanted = 1
                reason = EXIT_TRANSLATE
                break
        if s.step_once != 0 or s.replay_count != 0:
            reason = step(s)
        elif s.pending != 0:
            reason = EXIT_PENDING
            break
        elif s.irq_window != 0 and (s.flags & RFLAGS_IF) != 0:
            reason = EXIT_PENDING
            break
        elif (s.flags & RFLAGS_TF) != 0:
            reason = step(s)
        else:
            reason = run_blocks(s)
        if reason == EXIT_EXCEPTION:
            if s.trap_exceptions != 0:
                break
            if not deliver_exception(s):
                reason = EXIT_SHUTDOWN
                break
        elif reason == EXIT_SMC:
            s.step_once = 1
        elif reason != EXIT_PENDING and reason != EXIT_LOOKUP and reason != EXIT_STEPPED:
            break
    leave_guest_float(s)
    s.exit_reason = reason
    return reason


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
    select_tlb(s)


@native
def forget_code(s: ptr[CpuState], gpa: u64, size: u64):
    """Memory changed from outside: `memory_written`, on the thread of `s`, which drops its translations at once."""
    written_outside(s, gpa, size)
    if read_mail(s):
        ptr[CodeCache](s.code).flush_wanted = 1


@native
def memory_written(s: ptr[CpuState], gpa: u64, size: u64):
    """Memory changed from outside: no processor of the VM executes translations of these bytes any more.

    `s` is any of them; from any thread. Each drops them before it executes on.
    """
    written_outside(s, gpa, size)


@native
def translate_address(s: ptr[CpuState], address: u64, size: u64) -> u64:
    """1 when a read of `address` with the current privilege would succeed; s.mmio_gpa is then its place."""
    try:
        probe_read(s, address, size)
    except Stop:
        return u64(0)
    return u64(1)


@native
def interrupt(s: ptr[CpuState], vector: u32) -> u32:
    """Deliver an external interrupt; 0 is a triple fault."""
    return u32(deliver_interrupt(s, vector))


@native
def read_tsc() -> u64:
    return rdtsc()


@native
def read_rflags(s: ptr[CpuState]) -> u64:
    return get_rflags(s)


@native
def raise_pending(s: ptr[CpuState], bits: u64):
    """Make the processor leave at its next block end; from any thread."""
    atomic_or(ref(s, "pending"), bits)


@native
def drop_pending(s: ptr[CpuState], bits: u64) -> u64:
    """Clear bits of `pending`; what remains."""
    return atomic_and(ref(s, "pending"), ~bits) & ~bits


@native
def current_block(s: ptr[CpuState]) -> u64:
    """The first op of the block at RIP where it is translated and at hand, else 0."""
    return quick_lookup(s)


_S = (ptr[CpuState],)
ROOTS = {
    "run": (run, _S), "flush_all": (flush_all, _S), "flush_non_global": (flush_non_global, _S),
    "flush_one": (flush_one, (ptr[CpuState], u64)), "refresh_mode": (refresh_mode, _S),
    "forget_code": (forget_code, (ptr[CpuState], u64, u64)),
    "memory_written": (memory_written, (ptr[CpuState], u64, u64)),
    "raise_pending": (raise_pending, (ptr[CpuState], u64)), "drop_pending": (drop_pending, (ptr[CpuState], u64)),
    "current_block": (current_block, _S),
    "chain_target": (chain_target, (ptr[CpuState], ptr[Op], u64)),
    "chain_fall": (chain_fall, (ptr[CpuState], ptr[Op], u64)),
    "interrupt": (interrupt, (ptr[CpuState], u32)), "read_tsc": (read_tsc, ()), "read_rflags": (read_rflags, _S),
    "translate_address": (translate_address, (ptr[CpuState], u64, u64))}
