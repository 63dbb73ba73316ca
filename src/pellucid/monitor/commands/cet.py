"""`info cet`: control-flow enforcement, of which `info registers` says nothing, as QEMU's does not."""

from pellucid.kvm.api import MSR_KVM_INTERNAL_GUEST_SSP
from pellucid.kvm.errors import MsrAccessError
from pellucid.monitor.command import command
from pellucid.monitor.session import Session

SHADOW_STACKS = {
    "SSP": MSR_KVM_INTERNAL_GUEST_SSP, "SSP_TABLE": 0x6A8, **{f"PL{level}_SSP": 0x6A4 + level for level in range(4)}}
CONTROLS = {"U_CET": 0x6A0, "S_CET": 0x6A2}


@command(info="cet", help="show the shadow-stack pointers and the control-flow enforcement MSRs of the current CPU")
def cet(session: Session) -> str:
    """One line for each kind; what the CPU model lacks says so."""
    thread = session.thread(None)

    def line(registers: dict[str, int]) -> str:
        values = thread.run_on_cpu(lambda: thread.vcpu.get_msrs(registers.values()))
        return " ".join(f"{name}={values[index]:016x}" for name, index in registers.items()) + "\n"

    try:
        controls = line(CONTROLS)
    except MsrAccessError:
        return "this CPU model has neither shadow stacks nor branch tracking\n"
    try:
        return controls + line(SHADOW_STACKS)
    except MsrAccessError:
        return controls + "this CPU model has no shadow stacks\n"
