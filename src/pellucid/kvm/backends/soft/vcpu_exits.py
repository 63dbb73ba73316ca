"""What a vCPU does about each reason for which native code is left: the exit handlers of its loop.

Accesses to the in-kernel chips are answered here; what nobody here answers becomes a typed exit of `run`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from pellucid.cpu.state import (
    COUNTERS, CR0_PG, EXIT_BUDGET, EXIT_EXCLUSIVE, EXIT_FERR, EXIT_HLT, EXIT_HYPERCALL, EXIT_IO, EXIT_MMIO,
    EXIT_MSR, EXIT_PAGER, EXIT_PAUSE, EXIT_PENDING, EXIT_RSM, EXIT_SHUTDOWN, EXIT_WAIT, EXIT_WAKE, PENDING_REQUEST,
    RFLAGS_IF)
from pellucid.kvm.api import (
    KVM_REQ_EVENT, KVM_REQ_NMI, KVM_REQ_SMI, KVM_REQ_STEAL_UPDATE, KVM_REQ_TLB_FLUSH, ExclusiveExit, Exit, FerrExit,
    IoExit, MmioExit, ShutdownExit)
from pellucid.kvm.backends.soft import report
from pellucid.kvm.backends.soft.hypercall_exit import answer
from pellucid.kvm.backends.soft.vcpu_state import VcpuState
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.events import PendingEvents
from pellucid.kvm.pmu import Pmu
from pellucid.kvm.steal_time import StealTime
from pellucid.kvm.vcpu_requests import VcpuRequests

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.pace import Pace
    from pellucid.kvm.backends.soft.spin import SpinWindow
    from pellucid.kvm.backends.soft.system import SoftVm
    from pellucid.kvm.irqchip.irqchip import Irqchip

LINE_SECONDS, LONGEST_SLEEP = 200e-6, 1.0
"""How long TPAUSE and UMWAIT sleep at a time, with and without a line to look at."""
LONGEST_LINE_SECONDS = 2e-3
"""How long MWAIT does at most."""

ExitHandler = Callable[[], Exit | None]
"""None: the guest goes on."""


class VcpuExits(VcpuState):
    """The handlers; the vCPU that this is a part of makes what they lie in."""

    _vm: SoftVm
    guest_lock: threading.Lock
    chips: Irqchip
    requests: VcpuRequests
    _events: PendingEvents
    _handlers: dict[int, ExitHandler]
    _kicked: bool
    _halted: bool
    _frozen: Callable[[], bool] | None
    _wake: threading.Event
    steal_time: StealTime
    pace: Pace | None
    spin: SpinWindow | None
    pmu: Pmu
    halts: int
    """How often its waits in HLT and MWAIT have ended."""

    def request(self, request: int) -> None:
        """Make a request and kick the vCPU."""
        raise NotImplementedError

    def guest_tsc(self) -> int:
        """What RDTSC gives now."""
        raise NotImplementedError

    def _sleep(self, seconds: float | None = None) -> None:
        """Sleep until a request or kick, at most so long."""
        raise NotImplementedError

    def exit_handlers(self) -> dict[int, ExitHandler]:
        """By exit reason of native code."""
        return {
            EXIT_PENDING: self._on_pending, EXIT_MMIO: self._on_mmio, EXIT_IO: self._on_io, EXIT_MSR: self._on_msr,
            EXIT_HLT: self._on_hlt, EXIT_SHUTDOWN: self._on_shutdown, EXIT_FERR: self._on_ferr,
            EXIT_RSM: self._on_rsm, EXIT_EXCLUSIVE: self._on_exclusive,
            EXIT_HYPERCALL: lambda: answer(self.state, self._vm),
            EXIT_PAUSE: self._on_pause, EXIT_WAIT: self._on_wait,
            EXIT_PAGER: self._on_pager, EXIT_BUDGET: lambda: None, EXIT_WAKE: lambda: self._vm.wake_sleepers()}

    def _on_rsm(self) -> Exit | None:
        resumed = self.processor.leave_smm()
        if resumed.refused is not None:
            return ShutdownExit(f"{resumed.refused}\n{report.triple_fault(self)}")
        self._halted = resumed.halted
        self.request(KVM_REQ_EVENT)  # what was blocked: SMI, INIT, NMIs, interrupts
        return None

    def _on_pending(self) -> Exit | None:
        state = self.state
        if state.irq_window or state.vector_due or state.nmi_pending and not state.nmi_blocked:
            self.requests.make(KVM_REQ_EVENT)  # IF was set, TPR lowered, or IRET let NMIs through again
        return None

    def _on_mmio(self) -> Exit | None:
        state, lapic = self.state, self.lapic
        gpa, size = state.io_address, state.io_size
        if state.io_write:
            data = state.io_data & (1 << size * 8) - 1
            if self.chips.mmio_write(lapic, gpa, size, data):
                state.cr8 = lapic.cr8
                self.processor.complete(0)
                return None
            self.processor.complete(0)
            return MmioExit(gpa, size, True, data, bool(state.smm))
        value = self.chips.mmio_read(lapic, gpa, size)
        if value is None:
            return MmioExit(gpa, size, False, None, bool(state.smm))
        self.processor.complete(value)
        return None

    def _on_io(self) -> Exit | None:
        state = self.state
        port, size = state.io_address, state.io_size
        if state.io_write:
            data = state.io_data & (1 << size * 8) - 1
            self.processor.complete(0)
            if self.chips.pio_bus.write(port, size, data):
                return None
            return IoExit(port, size, True, data)
        value = self.chips.pio_bus.read(port, size)
        if value is None:
            return IoExit(port, size, False, None, max(state.io_count, 1))
        self.processor.complete(value)
        return None

    def complete_read(self, value: int) -> None:
        self.processor.complete(value & (1 << self.state.io_size * 8) - 1)

    def complete_read_string(self, data: bytes) -> None:
        self.processor.complete_string(data)

    def _on_msr(self) -> Exit | None:
        state, index = self.state, self.state.io_address
        try:
            if index >= COUNTERS:
                self.processor.complete(self.pmu.read_counter(index - COUNTERS))
            elif state.io_write:
                self.msrs.write(index, state.io_data)
                state.cr8 = self.lapic.cr8
                self.processor.complete(0)
            else:
                self.processor.complete(self.msrs.read(index))
        except MsrAccessError as error:
            if index < COUNTERS:
                report.refused_msr(error)
            self.processor.fail_msr()
        return None

    def _on_hlt(self) -> Exit | None:
        self._halted = True
        self.state.shadow = 0
        self.requests.make(KVM_REQ_EVENT)
        return None

    def _on_wait(self) -> Exit | None:
        """TPAUSE and UMWAIT: sleep to the deadline, an event, or a store to the monitored line, which is looked at."""
        if self.state.io_write:
            return self._on_mwait()
        state, line = self.state, self.state.io_address
        longest = LINE_SECONDS if line else LONGEST_SLEEP
        while not self.requests.word and not self._kicked:
            left = (state.io_data - self.guest_tsc()) / self._vm.tsc_hz
            if left <= 0 or line and self._vm.read_guest(line - 1, 64) != bytes(state.monitor_line):
                break
            self._sleep(min(left, longest))
            self._wake.clear()
        if self.requests.word or self._kicked:
            state.pending = PENDING_REQUEST
        self.processor.complete(0)
        return None

    def _on_pager(self) -> Exit | None:
        """The instruction, or the delivery of an event, met a page that is out: it starts over when that has come.

        Meanwhile the guest does something else, where it said that it can; else it is as if halted, and takes
        interrupts. Where it could not even take those, nothing happens at all (KVM's kvm_can_do_async_pf).
        """
        found = self._vm.residency_at(self.state.io_address)
        if found is None or found[0].ask(found[1], self.async_pf):
            return None
        residency, page = found
        state = self.state
        half_done = state.replay_count or state.delivering or state.smm or state.shadow or self.pace is not None
        takes_interrupts = not half_done and bool(state.flags & RFLAGS_IF)
        takes_faults = takes_interrupts and bool(state.cr0 & CR0_PG) and self.async_pf.takes_at(state.cpl)
        token = self.async_pf.begin(residency, page, takes_faults)
        if token is not None:
            self.processor.raise_page_fault(token)
        elif takes_interrupts:
            self._frozen = lambda: residency.is_present(page)
        else:
            self.idle(lambda: self._stand_still(lambda: residency.is_present(page)))
        return None

    def idle(self, wait: Callable[[], object]) -> None:
        """Wait, as far as the guest's record of its time is concerned."""
        self.steal_time.idle(wait)
        if self.steal_time.enabled:
            self.requests.make(KVM_REQ_STEAL_UPDATE)

    def _stand_still(self, over: Callable[[], bool]) -> None:
        """Until `over`, or a kick; requests wait."""
        while not over() and not self._kicked:
            self._wake.wait()
            self._wake.clear()
        if self.requests.word or self._kicked:
            self.state.pending = PENDING_REQUEST

    def _on_pause(self) -> Exit | None:
        """It waits for another processor, which may need the turn, or the host's CPU."""
        if self.pace is not None:
            self.pace.relax()
        elif self.spin is not None:
            self.spin.yield_cpu()
            self.state.pause_window = self.spin.ticks
        return None

    def _on_mwait(self) -> Exit | None:
        """MWAIT: likewise, but only an event that would also end a halt ends it; others are served in between.

        The line is looked at less often the longer nothing happens. By the instruction clock another has its turn, and
        the wait ends at once, as the manual lets it.
        """
        state, longest = self.state, LINE_SECONDS
        while not self._ends_mwait():
            if self.requests.word or self._kicked:
                return None
            if self.pace is not None:
                self.pace.relax()
                break
            self._sleep(longest)
            self._wake.clear()
            longest = min(longest * 2, LONGEST_LINE_SECONDS)
        self.halts += 1
        if self.requests.word or self._kicked:
            state.pending = PENDING_REQUEST
        self.processor.complete(0)
        return None

    def _ends_mwait(self) -> bool:
        """A store to the line, an interrupt that is taken or that ECX lets end the wait, an NMI, an SMI."""
        state, word = self.state, self.requests.word
        if word & (1 << KVM_REQ_NMI | 1 << KVM_REQ_SMI) or state.nmi_pending and not state.nmi_blocked:
            return True
        if (state.flags & RFLAGS_IF or state.gpr[1] & 1) and self.chips.has_interrupt(self.lapic):
            return True
        return self._vm.read_guest(state.io_address - 1, 64) != bytes(state.monitor_line)

    def _on_exclusive(self) -> Exit | None:
        """LOCK across two pages: the instruction is executed while all other vCPUs are outside native code.

        Where it meets a device, whoever has the devices must take their lock before that.
        """
        with self._vm.stopped(flush=False):
            reason = self._execute_alone()
        if reason == EXIT_MMIO:
            return ExclusiveExit()
        return None if reason == EXIT_EXCLUSIVE else self._handlers[reason]()

    def _execute_alone(self) -> int:
        """The instruction at RIP; all other vCPUs are outside native code."""
        state = self.state
        state.exclusive = state.step_once = 1
        state.pending = PENDING_REQUEST  # nothing behind that instruction
        reason = self.processor.run()
        state.exclusive = 0
        return reason

    def run_exclusive(self, access: Callable[[MmioExit], None]) -> Exit | None:
        while True:
            with self.guest_lock:
                if self.requests.word & 1 << KVM_REQ_TLB_FLUSH:  # the device changed what memory is where
                    self.processor.flush_tlb()
                reason = self._execute_alone()
            if reason != EXIT_MMIO:
                break
            exit = self._on_mmio()
            if isinstance(exit, MmioExit):
                access(exit)
        return None if reason == EXIT_PAGER else self._handlers[reason]()  # it meets that page again, without the lock

    def _on_ferr(self) -> Exit:
        """Before a waiting x87 instruction: FERR# is asserted, and the processor waits (SDM vol. 1, D.2.1.1)."""
        self._frozen = lambda: bool(self.state.ignne)
        self.state.step_once = self.state.replay_count = 0
        self.requests.make(KVM_REQ_EVENT)
        return FerrExit()

    def _on_shutdown(self) -> Exit:
        return ShutdownExit(report.triple_fault(self))
