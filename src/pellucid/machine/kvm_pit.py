"""The timer in the hypervisor as a device that -global names, `kvm-pit`: what it does with ticks that come too fast.

`delay` gives a guest that was too slow for them every tick later; `discard` lets them go.
"""

from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import Vm
from pellucid.machine.config import GlobalOption

KVM_PIT = "kvm-pit"
PROPERTY = "lost_tick_policy"
POLICIES = {"delay": True, "discard": False}
NOT_OF_KVM = ("merge", "slew")


def set_pit_global(vm: Vm | None, chosen: GlobalOption) -> None:
    """Apply a -global to the PIT of `vm`, if it has one (None). Raises UserError in QEMU's words."""
    where = f"can't apply global {chosen}"
    if chosen.property == "iobase":
        raise NotBuiltError(f"-global {chosen}: a PIT at other ports is not built yet: leave it out")
    if chosen.property != PROPERTY:
        raise UserError(f"{where}: Property '{KVM_PIT}.{chosen.property}' not found")
    if chosen.value in NOT_OF_KVM and vm is not None:
        raise UserError(f"-global {chosen}: Lost tick policy not supported.")
    if chosen.value not in (*POLICIES, *NOT_OF_KVM):
        raise UserError(f"{where}: Parameter '{PROPERTY}' does not accept value '{chosen.value}'")
    if vm is not None:
        vm.reinject_control(POLICIES[chosen.value])
