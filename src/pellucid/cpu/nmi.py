"""NMIs that one processor sends another without leaving native code, and the processor's own side of them.

Whoever sends one, native code or Python, adds to `CpuState.nmi_posted` and then sets PENDING_NMI. The processor looks
at the former before it executes on, so no NMI is lost when Python clears `pending`. What native code cannot deliver at
once (in the shadow of STI, before an SMI, with somebody looking on) it leaves to the hypervisor's loop.

A thread that goes to sleep says so in `asleep` before it looks for posted events, and a sender posts before it looks at
`asleep`: one of the two sees the other.
"""

from pellucid.cpu.exceptions import deliver_external
from pellucid.cpu.state import (
    EXIT_MMIO, EXIT_MSR, EXIT_WAKE, NMI, PAGE_MASK, PENDING_NMI, PENDING_REQUEST, REPLAY_SLOTS, CpuState)
from pellucid.native import (
    array, atomic_add, atomic_and, atomic_load, atomic_or, atomic_store, atomic_xchg, minimum, native, ptr, ref, struct,
    u32, u64)
from pellucid.native.layout import Struct

APIC_MODE, XAPIC, X2APIC = 0xC00, 0x800, 0xC00     # IA32_APIC_BASE (SDM vol. 3, table 11-5)
X2APIC_ICR, ICR, ICR_HIGH = 0x830, 0x300, 0x310
ICR_RESERVED, ICR_BUSY = 0xFFF3_2000, 1 << 12
# The parts of the ICR that decide here: delivery mode, destination mode, trigger mode, shorthand.
ICR_KIND, ICR_NMI = 0xC8F00, 0x400
BROADCAST = 0xFF

# What became of an exit, with KVM's words: the hypervisor's loop has to handle it; nothing is left to do; it has been
# handled, and the loop has other work.
EXIT_FASTPATH_NONE, EXIT_FASTPATH_REENTER_GUEST, EXIT_FASTPATH_EXIT_HANDLED = range(3)


@struct
class ApicTargets(Struct):
    """Whom a physical destination names: by APIC id the CpuState of the one processor that has it, or 0."""

    states: array[u64, 256]


@native
def post_nmi(s) -> None:
    """Send an NMI to the processor `s`; from any thread."""
    atomic_add(ref(s, "nmi_posted"), u64(1))
    atomic_or(ref(s, "pending"), u64(PENDING_NMI))


@native
def collect_nmis(s) -> None:
    """What was posted waits now: two at most, or one while the processor handles one (SDM vol. 3, 6.7.1)."""
    atomic_and(ref(s, "pending"), ~u64(PENDING_NMI))
    posted = atomic_xchg(ref(s, "nmi_posted"), u64(0))
    most: u64 = 2
    if s.nmi_blocked != 0:
        most = 1
    s.nmi_pending = minimum(s.nmi_pending + minimum(posted, u64(2)), most)


@native
def nmi_was_sent(s):
    """Whether to `collect_nmis`: also where only the bit in `pending` is left, which nothing else takes away."""
    return (s.pending & PENDING_NMI) != 0 or atomic_load(ref(s, "nmi_posted")) != 0


@native
def nmi_is_due(s):
    """Whether an NMI waits, and none is being handled."""
    return s.nmi_pending != 0 and s.nmi_blocked == 0


@native
def may_take_nmi(s):
    """Whether native code may deliver it: at this very instruction, and before nothing else."""
    return s.shadow == 0 and s.smi_due == 0


@native
def take_nmi(s) -> u32:
    """Deliver one; what deliver_exception says."""
    s.nmi_pending -= 1
    s.nmi_blocked = 1
    return deliver_external(s, u32(NMI))


@native
def leave_for_nmi(s) -> None:
    """Have the hypervisor's loop deliver it."""
    atomic_or(ref(s, "pending"), u64(PENDING_REQUEST))


@native
def fall_asleep(s) -> u64:
    """The processor's thread is about to sleep outside native code; whether it had better not."""
    atomic_store(ref(s, "asleep"), u64(1))
    return atomic_load(ref(s, "nmi_posted"))


@native
def done(s, answer) -> u32:
    """The access that the processor has left for is done."""
    s.replay[s.replay_count] = answer
    s.replay_count += 1
    return u32(EXIT_FASTPATH_REENTER_GUEST)


@native(inline=False)
def write_icr(s, icr: u64, destination: u64) -> u32:
    """Send what the ICR says where it is an NMI for one processor; else the local APIC does it (SDM vol. 3, 11.6.1)."""
    if (icr & ICR_KIND) != ICR_NMI or destination >= BROADCAST:
        return u32(EXIT_FASTPATH_NONE)
    targets = ptr[ApicTargets](s.apic_targets)
    target = ptr[CpuState](atomic_load(ref(targets.states, destination)))
    if u64(target) == 0:
        return u32(EXIT_FASTPATH_NONE)
    s.apic_icr = icr & ~u64(ICR_BUSY)
    outcome = done(s, u64(0))
    post_nmi(target)
    if atomic_load(ref(target, "asleep")) != 0:
        s.exit_reason = EXIT_WAKE
        outcome = u32(EXIT_FASTPATH_EXIT_HANDLED)
    return outcome


@native
def access_xapic(s) -> u32:
    """A doubleword of the local APIC's page."""
    offset = s.io_address - (s.apic_base & PAGE_MASK)
    low = s.io_data & 0xFFFF_FFFF
    outcome: u32 = EXIT_FASTPATH_NONE
    if offset == ICR and s.io_write != 0:
        outcome = write_icr(s, (s.apic_icr >> 32 << 32) | low, s.apic_icr >> 56)
    elif offset == ICR:
        outcome = done(s, s.apic_icr & 0xFFFF_FFFF)
    elif offset == ICR_HIGH and s.io_write != 0:
        s.apic_icr = (low >> 24 << 56) | (s.apic_icr & 0xFFFF_FFFF)
        outcome = done(s, u64(0))
    elif offset == ICR_HIGH:
        outcome = done(s, s.apic_icr >> 32)
    return outcome


@native(inline=False)
def access_icr(s, reason: u32) -> u32:
    """What becomes of an access that the processor has left for, if it is one of the ICR: EXIT_FASTPATH_*."""
    if s.apic_targets == 0 or s.replay_count >= REPLAY_SLOTS:
        return u32(EXIT_FASTPATH_NONE)
    mode = s.apic_base & APIC_MODE
    if reason == EXIT_MMIO and mode == XAPIC and s.io_size == 4:
        return access_xapic(s)
    writes_icr = reason == EXIT_MSR and mode == X2APIC and s.io_address == X2APIC_ICR and s.io_write != 0
    if writes_icr and (s.io_data & ICR_RESERVED) == 0:
        return write_icr(s, s.io_data, s.io_data >> 32)
    return u32(EXIT_FASTPATH_NONE)
