"""What performance counters count on a soft vCPU's processor, and how they reach its vCPU: see `pellucid.kvm.pmu`.

Last-branch records that tell of cycles have instructions counted, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pellucid.cpu.state import DEBUGCTL_FREEZE_LBRS, DEBUGCTL_FREEZE_PERFMON, DEBUGCTL_LBR
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
        self._armed = self._cycles = False

    @property
    def level(self) -> int:
        return int(self._state.cpl != 0)

    @property
    def freezes(self) -> bool:
        return bool(self._state.debugctl & DEBUGCTL_FREEZE_PERFMON)

    def tally(self) -> tuple[int, ...]:
        return (*self._state.tally, self._vcpu.halts)

    def measure(self, on: bool, *, leave_at_level: bool) -> None:
        if on != bool(self._state.metered):
            self._count(on or self._cycles)
            self._vcpu.processor.meter(on)
        self._state.level_exit = int(leave_at_level)
        if self._armed:
            self._timer.cancel()
            self._armed = False

    def count_cycles(self, on: bool) -> None:
        """Last-branch records are made that tell of cycles, or not; or their being made has begun or ended."""
        self._cycles = on
        self._count(on or bool(self._state.metered))
        self._vcpu.processor.refresh_mode()

    def _count(self, on: bool) -> None:
        if on != self._vcpu.measured:
            if self._vcpu.pace is None:
                self._vcpu.processor.count_instructions(on)
            self._vcpu.measured = on

    def interrupt(self) -> None:
        """With IA32_DEBUGCTL.FREEZE_LBRS_ON_PMI the request ends the recording of branches (SDM vol. 3, 17.4.7)."""
        state = self._state
        if state.debugctl & DEBUGCTL_FREEZE_LBRS and state.debugctl & DEBUGCTL_LBR:
            state.debugctl &= ~DEBUGCTL_LBR
            self._vcpu.lbr.switched(on=False)
        self._vcpu.lapic.local_deliver(PERF_ENTRY)

    def alarm(self, ticks: int) -> None:
        """Ticks stand still in HLT and outside native code, so an alarm may come early; it is set again then."""
        if not self._armed:
            self._armed = True
            self._timer.arm(self._vm.clock.now_ns() + ticks * NS // self._vm.tsc_hz + 1)

    def _expired(self) -> None:
        self._armed = False
        self._vcpu.processor.kick()
