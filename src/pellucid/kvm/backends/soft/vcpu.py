"""A vCPU on Pellucid's processor: the loop that KVM calls vcpu_enter_guest.

One turn: serve requests, inject the event that has priority, run native code, handle the exit (`vcpu_exits`). Other
threads reach the vCPU through requests and `kick`, both of which set the processor's `pending` word.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from pellucid.cpu import state as cpu_state
from pellucid.cpu.posted import POSTED_NMIS, POSTED_VECTORS
from pellucid.cpu.state import CR4_MCE, RFLAGS_IF, slot_of
from pellucid.engine.processor import Processor
from pellucid.kvm.api import (
    KVM_REQ_APF_READY, KVM_REQ_CLOCK_UPDATE, KVM_REQ_EVENT, KVM_REQ_NMI, KVM_REQ_SMI, KVM_REQ_STEAL_UPDATE,
    KVM_REQ_TLB_FLUSH, KVM_REQ_UNBLOCK, CpuidEntry, Exit, InternalErrorExit, IntrExit, MpState, Observer, VcpuEvents)
from pellucid.kvm.async_pf import AsyncPf
from pellucid.kvm.backends.soft import event_state, registers, report
from pellucid.kvm.backends.soft.cpuid import install_cpuid
from pellucid.kvm.backends.soft.meter import ProcessorMeter
from pellucid.kvm.backends.soft.msrs import Msrs
from pellucid.kvm.backends.soft.vcpu_exits import VcpuExits
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.events import MC_VECTOR, EventKind, PendingEvents, accept_apic_events
from pellucid.kvm.irqchip.lapic import Lapic
from pellucid.kvm.irqchip.lapic_hooks import LapicHooks
from pellucid.kvm.irqchip.lapic_vectors import VECTORS_AT, VECTORS_BYTES
from pellucid.kvm.lbr import LastBranches
from pellucid.kvm.machine_check import IA32_MCG_CAP, SHUTDOWNS, MachineCheck, McOutcome
from pellucid.kvm.pmu import FARTHEST, Pmu
from pellucid.kvm.pv_eoi import PvEoi
from pellucid.kvm.pvclock import PvclockVcpu
from pellucid.kvm.steal_time import StealTime
from pellucid.kvm.vcpu_requests import VcpuRequests

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.pace import Pace
    from pellucid.kvm.backends.soft.spin import SpinWindow
    from pellucid.kvm.backends.soft.system import SoftVm

NS, U64 = 10**9, (1 << 64) - 1
A20 = 1 << 20
NMI_VECTOR = 2
NOT_EVENTS = ~(1 << KVM_REQ_EVENT | 1 << KVM_REQ_NMI | 1 << KVM_REQ_SMI)


class SoftVcpu(VcpuExits):
    """One virtual processor of a `SoftVm`."""

    def __init__(self, vm: SoftVm, apic_id: int) -> None:
        self._vm = vm
        self._apic_id = apic_id
        self.processor = Processor(vm.engine, vm.memory)
        self.state = self.processor.state
        self.guest_lock = threading.Lock()
        self.requests, self._events = VcpuRequests(), PendingEvents()
        self._kicked = self._halted = self._unhalted = self._closed = False
        self._frozen: Callable[[], bool] | None = None
        """It waits before its instruction, and goes on when this holds: FERR# is asserted, or a page is out."""
        self._wake, self._thread = threading.Event(), 0
        self._mp_state = MpState.RUNNABLE if apic_id == 0 else MpState.UNINITIALIZED
        self.a20 = True
        self._log: Observer | None = None
        self.cpuid_table: object = None
        self.has_lapic = vm.irqchip is not None
        if vm.irqchip is None:
            raise InvalidRequestError("a vCPU without an in-kernel irqchip is not built yet; call create_irqchip first")
        self.chips = vm.irqchip
        icr = (ctypes.c_uint64 * 1).from_address(self.processor.address + slot_of("apic_icr"))
        vectors = (ctypes.c_uint8 * VECTORS_BYTES).from_address(self.processor.address + VECTORS_AT)
        hooks = LapicHooks(lambda: self.request(KVM_REQ_EVENT), self.nmi, self.smi,
                           lambda: self.request(KVM_REQ_APF_READY), self.processor.take_posted)
        self.lapic: Lapic = self.chips.create_lapic(apic_id, hooks, self._tsc_to_ns, is_bsp=apic_id == 0, icr=icr,
                                                    vectors=memoryview(vectors).cast("B"))
        self.pvclock = PvclockVcpu(vm.kvmclock, vm.master_clock, vm.write_guest, vm.read_guest,
                                   lambda: self.request(KVM_REQ_CLOCK_UPDATE), self._tsc_moved_by)
        self.pv_eoi = PvEoi(self.lapic, vm.write_guest, vm.read_guest)
        self.steal_time = StealTime(vm.write_guest, vm.read_guest, vm.exchange_guest, self.processor.flush_tlb,
                                    slept_ns=self._take_dozed_ns)
        self.async_pf = AsyncPf(apic_id, self.lapic, vm.write_guest, vm.read_guest,
                                lambda: self.request(KVM_REQ_APF_READY))
        self.pace: Pace | None = None
        """Set where the guest's time is that of its instructions."""
        self.spin: SpinWindow | None = None
        """Set where there are other vCPUs to wait for."""
        self.state.tsc_offset, self.state.tsc_scale = vm.tsc_offset, vm.tsc_scale
        self.state.clock_registers, self.state.apic_targets = vm.clock_registers.address, vm.apic_table.address
        self.measured, self.halts = False, 0
        meter = ProcessorMeter(self, vm)
        self.pmu = Pmu(meter)
        self.lbr = LastBranches(self.state, lambda address: self.msrs.is_canonical(address), meter.count_cycles)
        self.msrs = Msrs(self)
        registers.reset(self.processor)
        self.state.apic_base = self.lapic.apic_base
        self._handlers = self.exit_handlers()

    @property
    def apic_id(self) -> int:
        return self._apic_id

    # --- time --------------------------------------------------------------------------------------------

    def guest_tsc(self) -> int:
        """What RDTSC gives now."""
        if self.pace is not None:  # native code knows the time of the vCPU that has the turn alone
            return int(self._vm.scaled_tsc() + self.state.tsc_offset) & U64
        return int(self._vm.engine.guest_tsc(self.processor.address))

    def _tsc_to_ns(self, tsc: int) -> int:
        """The clock's time at which this vCPU's TSC reads `tsc`."""
        ahead = tsc - self.guest_tsc()
        return int(self._vm.clock.now_ns() + ahead * NS // self._vm.tsc_hz)

    def _tsc_moved_by(self) -> int:
        return int(self.state.tsc_offset - self._vm.tsc_offset) & U64

    def move_tsc(self, ticks: int) -> None:
        """Add to the TSC. While the vCPU does not run, or on its own thread."""
        self.state.tsc_offset = self.state.tsc_offset + ticks & U64
        self.lapic.tsc_changed()

    def set_tsc(self, value: int) -> None:
        """Restore the TSC from outside the guest, in step with what the VM's other vCPUs are given."""
        self.move_tsc(self._vm.synchronized_tsc_offset(value) - self.state.tsc_offset)
        self.tsc_moved()

    def kvmclock_ctrl(self) -> None:
        self.pvclock.mark_guest_stopped()
        self.steal_time.forget()

    def tsc_moved(self) -> None:
        """The guest wrote its TSC: the time page follows."""
        self.request(KVM_REQ_CLOCK_UPDATE)

    # --- requests from any thread ------------------------------------------------------------------------

    def request(self, request: int) -> None:
        self.requests.make(request)
        self.processor.kick()
        self.wake()
        if self.pace is not None:
            self.pace.stir()

    def kick(self) -> None:
        self._kicked = True
        self.processor.kick()
        self._wake.set()

    def look_again(self) -> None:
        """A deadline of the instruction clock has changed: count anew up to it."""
        self.processor.kick()
        self.wake()

    def wake(self) -> None:
        """End its sleep. Its own thread does not sleep."""
        if threading.get_ident() != self._thread:
            self._wake.set()

    def forget_wake(self) -> None:
        """Sleep again, next time; what was asked for is looked at behind this."""
        self._wake.clear()

    @property
    def is_kicked(self) -> bool:
        """Whether `run` is to return without executing on."""
        return self._kicked

    @property
    def has_work(self) -> bool:
        """Whether it would do something, were it to run now."""
        waits = self._halted or self._frozen is not None or self._mp_state is not MpState.RUNNABLE
        ends = self._halted and self._unhalted or self._frozen is not None and self._frozen()
        return not waits or ends or self.requests.word != 0

    @property
    def between_instructions(self) -> bool:
        """Whether none is half done."""
        return self.state.replay_count == 0 and not self.state.delivering

    def wait_for_wake(self, seconds: float | None) -> bool:
        """Sleep until a request or kick, at most so long; whether there was one."""
        return self._wake.wait(seconds)

    def ask_for_posted(self, posted: int) -> None:
        """Other processors' native code has posted events to this one, which sleeps or is about to: POSTED_*."""
        if posted & POSTED_NMIS:
            self.request(KVM_REQ_NMI)
        if posted & POSTED_VECTORS:
            self.request(KVM_REQ_EVENT)

    def nmi(self) -> None:
        self.processor.send_nmi()
        self.request(KVM_REQ_NMI)

    def smi(self) -> None:
        self.request(KVM_REQ_SMI)

    def set_mce(self, error: MachineCheck) -> McOutcome:
        if IA32_MCG_CAP in self.msrs.absent:
            return McOutcome.NOT_SUPPORTED
        with self._vm.stopped(flush=False):
            outcome = self.msrs.machine_check.report(error, bool(self.state.cr4 & CR4_MCE))
        if outcome is McOutcome.RAISED or outcome in SHUTDOWNS:
            self._events.machine_check = outcome is McOutcome.RAISED
            self._events.triple_fault |= outcome in SHUTDOWNS
            self.request(KVM_REQ_EVENT)
        return outcome

    def ignore_numeric_error(self) -> None:
        self.state.ignne = 1
        self.request(KVM_REQ_UNBLOCK)

    def set_a20(self, a20: bool) -> None:
        if a20 != self.a20:
            self.a20 = a20
            self.request(KVM_REQ_TLB_FLUSH)

    def unhalt(self) -> None:
        """End its HLT without an interrupt; where it does not halt now, the next one does not wait (pv_unhalted)."""
        self._unhalted = True
        self.request(KVM_REQ_UNBLOCK)

    # --- the loop ----------------------------------------------------------------------------------------

    def run(self) -> Exit:
        self._thread = threading.get_ident()
        handlers, processor, gate, pv_eoi = self._handlers, self.processor, self._vm.gate, self.pv_eoi
        state, requests, guest_lock, runnable = self.state, self.requests, self.guest_lock, MpState.RUNNABLE
        while True:
            state.pending = 0
            if self.measured or self.pace is not None:
                self._grant()
            if self._kicked:
                self._kicked = False
                return IntrExit()
            if requests.word and (stop := self._serve_requests()) is not None:
                return stop
            if self._halted or self._frozen is not None or self._mp_state is not runnable:
                if not self._wait():
                    continue
            if gate.closed:
                gate.wait()
            with guest_lock:
                if gate.closed:
                    continue
                if pv_eoi.enabled and pv_eoi.offer():
                    state.eoi_offered = 1
                reason = processor.run()
                if pv_eoi.offered:
                    pv_eoi.collect()
                    state.eoi_offered = 0
            handler = handlers.get(reason)
            if handler is None:
                return InternalErrorExit(f"the processor stopped for an unknown reason, {reason}")
            exit = handler()
            if exit is not None:
                return exit

    def _take_dozed_ns(self) -> int:
        """How long it has slept in native code since this was asked last."""
        dozed, self.state.dozed_ns = self.state.dozed_ns, 0
        return int(dozed)

    def _grant(self) -> None:
        """Let happen what falls between the last instruction and the next, and grant those up to what comes then."""
        limit = self.pmu.update() if self.measured else FARTHEST
        if self.pace is not None:
            self.pace.advance(limit)
        else:
            self.processor.grant(limit)

    def _serve_requests(self) -> Exit | None:
        requests = self.requests
        if requests.word & NOT_EVENTS:
            self._serve_rare_requests(requests)
        if self.steal_time.enabled and self.steal_time.is_due():
            self.steal_time.update()
        self._collect_events()
        if requests.check(KVM_REQ_EVENT):
            self._accept_apic_events()
            if self._mp_state is not MpState.RUNNABLE:
                return None  # it waits for SIPI: an interrupt stays in the local APIC, an NMI is held back
            if self.state.replay_count == 0 and not self.state.delivering:
                return self._inject()
            self._inject_later()
        return None

    def _inject_later(self) -> None:
        """An instruction is half done. An interrupt waits for IF, which native code looks at behind it; anything else
        is looked at again right behind it.
        """
        state = self.state
        if not (state.delivering or self._events.any_pending):
            self.lapic.get_interrupt()
            state.irq_window = int(self.chips.has_extint(self.lapic))
            return
        state.smi_due = int(self._events.smi_pending and not state.smm)
        self.requests.make(KVM_REQ_EVENT)
        state.pending = 1

    def _serve_rare_requests(self, requests: VcpuRequests) -> None:
        requests.check(KVM_REQ_UNBLOCK)  # its work was to end a wait
        if requests.check(KVM_REQ_TLB_FLUSH):
            self.state.a20_mask = U64 if self.a20 else U64 & ~A20
            self.processor.flush_tlb()
        if requests.check(KVM_REQ_CLOCK_UPDATE):
            self.pvclock.update()
        if requests.check(KVM_REQ_STEAL_UPDATE):
            self.steal_time.update()
        if requests.check(KVM_REQ_APF_READY):
            self.async_pf.serve()

    def _collect_events(self) -> None:
        """KVM_REQ_NMI and KVM_REQ_SMI: what was asked for becomes pending."""
        if self.requests.check(KVM_REQ_NMI):
            self.processor.take_posted()
            self.requests.make(KVM_REQ_EVENT)
        if self.requests.check(KVM_REQ_SMI):
            self._events.queue_smi()
            self.requests.make(KVM_REQ_EVENT)

    def _accept_apic_events(self) -> None:
        if not (self.lapic.init_pending or self.lapic.sipi_pending):
            return
        latched = bool(self.state.smm)
        init = self.lapic.init_pending if latched else self.lapic.take_init()
        sipi = self.lapic.take_sipi()
        outcome = accept_apic_events(init, sipi is not None, self._mp_state, self._apic_id == 0, latched)
        if outcome.reset:
            self._init_reset()
        if outcome.start and sipi is not None:
            self.state.seg_selector[cpu_state.CS] = sipi << 8
            self.state.seg_base[cpu_state.CS] = sipi << 12
            self.state.rip = 0
            self.processor.refresh_mode()
        self._mp_state = outcome.mp_state

    def set_log(self, log: Observer | None) -> None:
        self._log = log
        with self.guest_lock:
            self.processor.observe(log)

    def _init_reset(self) -> None:
        if self._log is not None:
            self._log.reset()
        registers.reset(self.processor, init=True)
        self.lapic.init_reset()
        self.pv_eoi.reset()
        self.async_pf.reset()
        self._halted = self._unhalted = False
        self._frozen = None

    def _inject(self) -> Exit | None:
        """KVM_REQ_EVENT: deliver the event with priority, or ask to be told when one can be. A vector of the local APIC
        that has to wait is native code's.
        """
        state = self.state
        state.irq_window = state.smi_due = 0
        has_interrupt = self.chips.has_interrupt(self.lapic)
        if self._events.triple_fault:
            self._events.triple_fault = False
            return self._on_shutdown()
        if self._events.machine_check:  # before all else, whatever is masked (SDM vol. 3, table 6-2)
            self._events.machine_check = False
            self.requests.make(KVM_REQ_EVENT)  # what waits may come behind it
            return self._deliver(MC_VECTOR)
        if self._events.smi_pending and not state.smm:
            self._take_smi()
            state.irq_window = int(self.chips.has_extint(self.lapic))
            return None
        has_nmi = state.nmi_pending > 0 and not state.nmi_blocked
        if not has_interrupt and not has_nmi:
            return None
        state.irq_window = int(self.chips.has_extint(self.lapic))
        if state.shadow:
            if has_nmi:  # one instruction runs in the shadow of STI or MOV SS; then the request is served again
                state.step_once = 1
                self.requests.make(KVM_REQ_EVENT)
                state.pending = 1
            return None
        if has_nmi:
            state.nmi_pending -= 1
            state.nmi_blocked = 1
            return self._deliver(NMI_VECTOR)
        if not state.flags & RFLAGS_IF:
            return None
        vector = self.chips.take_interrupt(self.lapic)
        stop = self._deliver(vector) if vector is not None else None
        state.irq_window = int(self.chips.has_extint(self.lapic))
        return stop

    def _take_smi(self) -> None:
        """An SMI comes before NMIs and interrupts, and no shadow delays it (SDM vol. 3, table 6-2 and 31.3)."""
        self._events.begin(EventKind.SMI)
        self.state.smi_count += 1
        self.processor.enter_smm(halted=self._halted)
        self._end_halt()

    def _end_halt(self) -> None:
        """It executes on, where it halted; one of its counters may count that."""
        if self._halted:
            self.halts += 1
            if self.measured:
                self.processor.kick()  # so that they are looked at before the next instruction
        self._halted, self._frozen = False, None

    def _deliver(self, vector: int) -> Exit | None:
        self._end_halt()
        if not self.processor.deliver_interrupt(vector):
            return self._on_shutdown()
        return None

    def _wait(self) -> bool:
        """Sleep in HLT, wait-for-SIPI or frozen until a request or kick; whether the guest may run now."""
        if self._frozen is not None and self._frozen():
            self._frozen = None
            return not self._halted and self._mp_state is MpState.RUNNABLE
        if self._halted and self._unhalted:
            self._end_halt()
            self._unhalted = False
            return False
        if not self.requests.word and not self._kicked:
            if self.pace is not None:
                self.pace.idle()
            else:
                self.idle(self._sleep)
        self._wake.clear()
        if self.requests.word:
            self.state.pending = 1
        return False

    def _sleep(self, seconds: float | None = None) -> None:
        """Sleep until a request or kick, at most so long; not at all where something was posted to it."""
        posted = self.processor.sleep(lambda: self._wake.wait(seconds))
        if posted:
            self.ask_for_posted(posted)

    # --- state -------------------------------------------------------------------------------------------

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        install_cpuid(self, entries)

    def get_mp_state(self) -> MpState:
        return MpState.HALTED if self._halted else self._mp_state

    def set_mp_state(self, mp_state: MpState) -> None:
        self._halted, self._frozen = mp_state is MpState.HALTED, None
        self._mp_state = MpState.RUNNABLE if self._halted else mp_state
        self.request(KVM_REQ_EVENT)

    def get_vcpu_events(self) -> VcpuEvents:
        self._collect_events()
        self.processor.take_posted()
        return event_state.get_events(self, self._events)

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        self._events = event_state.set_events(self, events)
        self.request(KVM_REQ_EVENT)

    def translate(self, gva: int) -> int | None:
        with self.guest_lock:
            return self.processor.translate(gva)

    def statistics(self) -> Mapping[str, int]:
        return report.statistics(self)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.processor.close()
            self.chips.destroy_lapic(self.lapic)
