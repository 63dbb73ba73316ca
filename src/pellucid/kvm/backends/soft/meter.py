"""What performance counters count on a soft vCPU's processor, and how they reach its vCPU: see `pellucid.kvm.pmu`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.cpu.state import DEBUGCTL_FREEZE_PERFMON
from pellucid.kvm.irqchip.apicdef import PERF_ENTRY

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.system import SoftVm
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

NS = 10**9


class ProcessorMeter:
    """A `Meter`. Instructions are counted while there is something to tally, and always by the instruction clock."""

    def __init__(self, vcpu: SoftVcpu, vm: SoftVm) -> None:
        self._vcpu, self._state, self._vm = vcpu, vcpu.state, vm
        self._timer = vm.clock.timer(self._expired)
        self._armed = False

    @property
    def level(self) -> int:
        return int(self._state.cpl != 0)

    @property
    def freezes(self) -> bool:
        return bool(self._state.debugctl & DEBUGCTL_FREEZE_PERFMON)

    def tally(self) -> tuple[int, ...]:
        return tuple(self._state.tally)

    def measure(self, on: bool, *, leave_at_level: bool) -> None:
        vcpu, state = self._vcpu, self._state
        if on != bool(state.metered):
            if vcpu.pace is None:
                vcpu.processor.count_instructions(on)
            vcpu.processor.meter(on)
            vcpu.measured = on
        state.level_exit = int(leave_at_level)
        if self._armed:
            self._timer.cancel()
            self._armed = False

    def interrupt(self) -> None:
        self._vcpu.lapic.local_deliver(PERF_ENTRY)

    def alarm(self, ticks: int) -> None:
        """Ticks stand still in HLT and outside native code, so an alarm may come early; it is set again then."""
        if not self._armed:
            self._armed = True
            self._timer.arm(self._vm.clock.now_ns() + ticks * NS // self._vm.tsc_hz + 1)

    def _expired(self) -> None:
        self._armed = False
        self._vcpu.processor.kick()
