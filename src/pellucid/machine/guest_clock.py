"""The guest's clocks stand still while the machine is stopped: kvmclock and the TSC go on from where they were.

The clock that devices have stands by itself (`VirtualClock`). What the hypervisor computes from the host's TSC does
not: so it is read when the machine stops and set when it goes on, as QEMU does with KVM_GET_CLOCK and KVM_SET_CLOCK,
and the guest is told that it was stopped, which keeps its watchdogs quiet. While a guest is suspended to RAM its time
goes on.
"""

from collections.abc import Callable, Iterable

from pellucid.kvm.api import ClockData, Vcpu, Vm
from pellucid.runtime import RunState


class GuestClock:
    """Subscribes to the run state. Made while the machine is stopped; no vCPU runs during any call."""

    def __init__(self, vm: Vm, vcpus: Callable[[], Iterable[Vcpu]]) -> None:
        self._vm = vm
        self._vcpus = vcpus
        self._stopped_at: ClockData | None = vm.get_clock()

    def run_state_changed(self, running: bool, state: RunState) -> None:
        """The machine has stopped, or is about to go on."""
        if running:
            if self._stopped_at is not None:
                self._vm.set_clock(self._stopped_at)
                for vcpu in self._vcpus():
                    vcpu.kvmclock_ctrl()
            self._stopped_at = None
        elif self._stopped_at is None and state is not RunState.SUSPENDED:
            self._stopped_at = self._vm.get_clock()

    def was_reset(self) -> None:
        """The TSCs have been set anew: a stopped machine goes on from there."""
        if self._stopped_at is not None:
            self._stopped_at = self._vm.get_clock()
