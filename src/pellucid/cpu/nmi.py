"""NMIs that one processor sends another without leaving native code, and the processor's own side of them.

Whoever sends one, native code or Python, adds to `CpuState.nmi_posted` and then sets PENDING_NMI. The processor looks
at the former before it executes on, so no NMI is lost when Python clears `pending`. What native code cannot deliver at
once (in the shadow of STI, before an SMI, with somebody looking on) it leaves to the hypervisor's loop.
"""

from pellucid.cpu.exceptions import deliver_external
from pellucid.cpu.state import NMI, PENDING_NMI
from pellucid.native import atomic_add, atomic_and, atomic_or, atomic_xchg, minimum, native, ref, u32, u64


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
