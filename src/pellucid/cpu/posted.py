"""Events that other threads have posted to a processor, NMIs and vectors: looking for them, and waiting for them.

A thread that goes to sleep says so in `asleep` before it looks for posted events, and a sender posts before it looks at
`asleep`: one of the two sees the other. A halt looks for events for a while before it leaves native code to sleep
(KVM's halt_poll_ns), since to wake a thread takes ten times as long as many an interrupt takes to come.
"""

from pellucid.cpu.host import relax
from pellucid.cpu.nmi import collect_nmis, nmi_is_due
from pellucid.cpu.state import PENDING_NMI, PENDING_REQUEST, PENDING_VECTOR, RFLAGS_IF
from pellucid.cpu.vectors import collect_vectors
from pellucid.native import atomic_load, atomic_or, atomic_store, native, rdtsc, ref, u64

POSTED_NMIS, POSTED_VECTORS = 1, 2
TAKEN_AWAY = 40_000      # TSC ticks between two looks, in which another thread has had the host's CPU


@native
def events_were_posted(s):
    """Whether to `collect_events`: also where only a bit in `pending` is left, which nothing else takes away."""
    told = s.pending & (PENDING_NMI | PENDING_VECTOR)
    return (told | atomic_load(ref(s, "nmi_posted")) | atomic_load(ref(s, "vectors_posted"))) != 0


@native(inline=False)
def collect_events(s) -> None:
    """What was posted waits now."""
    collect_nmis(s)
    collect_vectors(s)


@native
def leave_for_event(s) -> None:
    """Have the hypervisor's loop deliver what is due."""
    atomic_or(ref(s, "pending"), u64(PENDING_REQUEST))


@native
def posted_kinds(s) -> u64:
    """POSTED_* of what the processor has not looked at."""
    kinds: u64 = 0
    if atomic_load(ref(s, "nmi_posted")) != 0:
        kinds = u64(POSTED_NMIS)
    if atomic_load(ref(s, "vectors_posted")) != 0:
        kinds = kinds | POSTED_VECTORS
    return kinds


@native
def fall_asleep(s) -> u64:
    """The processor's thread is about to sleep outside native code; POSTED_* where it had better not."""
    atomic_store(ref(s, "asleep"), u64(1))
    return posted_kinds(s)


@native
def ends_halt(s):
    """Whether an event that native code knows of ends a halt."""
    return nmi_is_due(s) or (s.vector_due != 0 and (s.flags & RFLAGS_IF) != 0)


@native(inline=False)
def wait_halted(s) -> bool:
    """HLT: wait a while for an event that ends it; whether one has. Anything else that is asked for ends the wait, and
    so does a moment in which the host's CPU had something else to do: the thread sleeps then, and who wakes it comes
    before who only goes on.
    """
    s.shadow = 0
    now = rdtsc()
    end = now + s.halt_poll
    ended: bool = False
    while s.irq_window == 0:
        if events_were_posted(s):
            collect_events(s)
        ended = ends_halt(s)
        before = now
        now = rdtsc()
        if ended or (atomic_load(ref(s, "pending")) & PENDING_REQUEST) != 0 or now >= end or now - before > TAKEN_AWAY:
            break
        relax()
    return ended
