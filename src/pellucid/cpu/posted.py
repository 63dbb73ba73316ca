"""Events that other threads have posted to a processor, NMIs and vectors: looking for them, and waiting for them.

A thread that goes to sleep outside native code says so in `asleep` before it looks for posted events, and a sender
posts before it looks at `asleep`: one of the two sees the other. A halt does not leave at once: it looks for events for
a while (KVM's halt_poll_ns, Documentation/virt/kvm/halt-polling.rst), then sleeps for a while where it is (`dozing`, by
the same rule), since native code wakes and is woken without Python, ten times as fast. Only a halt that lasts leaves.
"""

from pellucid.cpu.host import host_cpu, leave_cpu, relax, sleep_on, wake_up
from pellucid.cpu.nmi import collect_nmis, nmi_is_due
from pellucid.cpu.state import PENDING_NMI, PENDING_REQUEST, PENDING_VECTOR, RFLAGS_IF
from pellucid.cpu.vectors import collect_vectors
from pellucid.native import (
    atomic_load, atomic_or, atomic_store, atomic_xchg, maximum, minimum, monotonic_ns, native, rdtsc, ref, u32, u64)

POSTED_NMIS, POSTED_VECTORS = 1, 2
DOZE_NS, SHORT_NS = 1_000_000, 500_000
UNWATCHED = 256          # halts that do not look, after one that has looked for the longest time in vain
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


@native
def asked_for(s):
    """Whether the hypervisor's loop wants the processor."""
    return (atomic_load(ref(s, "pending")) & PENDING_REQUEST) != 0


@native
def look_for_event(s, ticks) -> bool:
    """Wait at most so long for an event that ends the halt; whether one has. Anything else that is asked for ends the
    wait, and so does a moment in which the host's CPU had something else to do: who is woken comes first then.
    """
    now = rdtsc()
    end = now + ticks
    while True:
        if events_were_posted(s):
            collect_events(s)
        ended = ends_halt(s)
        before = now
        now = rdtsc()
        if ended or asked_for(s) or now >= end or now - before > TAKEN_AWAY:
            return ended
        relax()


@native
def doze(s) -> None:
    """Sleep for a while, or until somebody who has posted something wakes it."""
    atomic_store(ref(s, "dozing"), u32(1))
    if not events_were_posted(s) and not asked_for(s):
        sleep_on(ref(s, "dozing"), u32(1), u64(DOZE_NS))
    atomic_store(ref(s, "dozing"), u32(0))


@native
def wake_dozing(s) -> bool:
    """Wake the processor where it dozes, behind what was posted or asked for; whether it did. From any thread."""
    dozed = atomic_load(ref(s, "dozing")) != 0 and atomic_xchg(ref(s, "dozing"), u32(0)) != 0
    if dozed:
        s.waker_cpu = host_cpu()
        wake_up(ref(s, "dozing"))
    return dozed


@native(inline=False)
def looked_in_vain(s) -> None:
    """The longest look did not save a short sleep. Maybe whoever sends was on the same CPU of the host, and could not
    while this looked: Linux leaves two threads there that wake each other. Move once; else do not look for a while.
    """
    cpu = host_cpu()
    if cpu == s.waker_cpu and s.left_cpu == 0:
        leave_cpu(cpu)
        s.left_cpu = 1
    else:
        s.left_cpu = 0
        s.halts_unwatched = UNWATCHED
        s.halt_poll = 0


@native
def learn_from_sleep(s, slept) -> None:
    """Look longer after a short sleep, and not at all after a long one."""
    if s.halts_unwatched != 0:
        s.halts_unwatched -= 1
    elif slept < SHORT_NS and s.halt_poll >= s.halt_longest:
        looked_in_vain(s)
    else:
        longer = minimum(maximum(s.halt_poll * 2, s.halt_longest // 8), s.halt_longest)
        s.halt_poll = longer if slept < SHORT_NS else u64(0)


@native(inline=False)
def wait_halted(s) -> bool:
    """HLT: whether an event has ended it. Before the thread sleeps the processor looks for one as long as has been
    worth it.
    """
    s.shadow = 0
    if s.irq_window != 0:
        return False
    ended = look_for_event(s, s.halt_poll)
    if not ended and s.halt_longest != 0 and not asked_for(s):
        begun = monotonic_ns()
        doze(s)
        ended = look_for_event(s, u64(0))
        slept = monotonic_ns() - begun
        s.dozed_ns += slept
        learn_from_sleep(s, slept)
    return ended
