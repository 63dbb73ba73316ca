"""The soft backend's system and VM objects."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from pellucid.cpu.state import ADDRESS_SPACES, MAX_PROCESSORS, PAGE, TSC_FRACTION
from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine
from pellucid.kvm.api import (
    KVM_REQ_CLOCK_UPDATE, KVM_REQ_TLB_FLUSH, ClockData, InterceptIrq, IoapicState, PicState,
    PitState, RoutingEntry)
from pellucid.kvm.backends.soft.apic_table import ApicTable
from pellucid.kvm.backends.soft.clock_registers import ClockRegisterTable, PlacedRegister
from pellucid.kvm.backends.soft.pace import Turns
from pellucid.kvm.backends.soft.rate import Rate
from pellucid.kvm.backends.soft.spin import SpinWindow
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.clock import Clock, ClockValue, CountedClock, InstructionTime
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import Ioeventfd
from pellucid.kvm.irqchip.irqchip import Irqchip
from pellucid.kvm.pvclock import Kvmclock, MasterClock
from pellucid.kvm.residency import Pager, Residency

CALIBRATION_NS = 10_000_000
NS = 10**9
U64 = (1 << 64) - 1
HALT_POLL_NS = 50_000
"""How long a halted processor looks for an interrupt of another's at most, before its thread sleeps (halt_poll_ns)."""
KICK_AGAIN = 0.01
"""Seconds after which a vCPU that has not left native code is kicked again."""


class SoftHypervisor:
    """Pellucid's own engine behind the Hypervisor interface. `clock` is what guests' timers run on."""

    def __init__(self, clock: Clock, progress: Callable[[str, int, int], None] | None = None) -> None:
        self._clock = clock
        self._engine = Engine.get(progress)
        self._tsc_hz = 0

    @property
    def name(self) -> str:
        return "soft"

    def capabilities(self) -> Mapping[str, int]:
        return {"irqchip": 1, "user_memory": 1, "pit2": 1, "ioeventfd": 1, "irqfd": 1, "tsc_deadline_timer": 1,
                "x86_smm": 1, "multi_address_space": ADDRESS_SPACES,
                "nr_vcpus": os.cpu_count() or 1, "max_vcpus": MAX_PROCESSORS}

    def create_vm(self) -> SoftVm:
        return SoftVm(self._engine, self._clock, self.tsc_hz)

    @property
    def tsc_hz(self) -> int:
        """The host's TSC frequency, measured once against the monotonic clock."""
        if not self._tsc_hz:
            tsc, now = self._engine.read_tsc(), time.monotonic_ns()
            time.sleep(CALIBRATION_NS / 1e9)
            ticks = self._engine.read_tsc() - tsc
            self._tsc_hz = round(ticks * 1e9 / (time.monotonic_ns() - now) / 1e5) * 100_000
        return self._tsc_hz


class SoftVm:
    """One VM: slots, chips, vCPUs."""

    def __init__(self, engine: Engine, clock: Clock, tsc_hz: int) -> None:
        self.engine, self.clock = engine, clock
        self._host_tsc_hz = self.tsc_hz = tsc_hz
        self.tsc_scale = 1 << TSC_FRACTION
        self._turns: Turns | None = None
        """Set where the guest's time is that of its instructions."""
        self.memory = SlotMemory()
        self._residencies: list[Residency] = []
        self.irqchip: Irqchip | None = None
        self.coalesced = CoalescedRing()
        self.vcpus: list[SoftVcpu] = []
        self.gate = Gate()
        self.clock_registers = ClockRegisterTable(clock, self._chip_answers)
        self.apic_table = ApicTable(lambda: {id(vcpu.lapic): vcpu.processor.address for vcpu in self.vcpus})
        self.tsc_offset = self._last_tsc_write = -self.scaled_tsc() & U64
        self.kvmclock = Kvmclock(clock, time.time_ns)
        self.master_clock = MasterClock(self.kvmclock, self.guest_tsc, tsc_hz)

    def guest_tsc(self) -> int:
        """The TSC that the VM's processors started with."""
        return int(self.scaled_tsc() + self.tsc_offset) & U64

    def scaled_tsc(self) -> int:
        """The host's TSC at the guests' frequency: what a processor adds its offset to."""
        source = self.engine.read_tsc() if self._turns is None else self.clock.now_ns()
        return int(source) * self.tsc_scale >> TSC_FRACTION

    def set_tsc_hz(self, hz: int) -> None:
        if self.vcpus:
            raise InvalidRequestError("the TSC's frequency is set before the first vCPU")
        if not 1000 <= hz < 1000 << 32:
            raise InvalidRequestError(f"a TSC of {hz} Hz is out of range: 1 kHz to 2**32 kHz")
        self.tsc_hz, self.tsc_scale = hz, (hz << TSC_FRACTION) // self._host_tsc_hz
        self.tsc_offset = self._last_tsc_write = -self.scaled_tsc() & U64
        self.master_clock = MasterClock(self.kvmclock, self.guest_tsc, hz)

    def count_instructions(self, time: InstructionTime) -> None:
        if self.vcpus:
            raise InvalidRequestError("instructions are counted from the first vCPU on")
        clock = cast(CountedClock, self.clock)
        self._turns = Turns(clock, Rate(clock, time), sleep=time.sleep)
        self._host_tsc_hz = NS  # the TSC's source is in nanoseconds now, and what the host's counter does is no matter
        self.set_tsc_hz(NS)

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        with self.stopped():
            try:
                self.memory.set_slot(slot, gpa, size, hva, readonly)
            except ValueError as error:
                raise InvalidRequestError(str(error)) from None
            for vcpu in self.vcpus:
                vcpu.processor.flush_code()

    def page_memory(self, hva: int, size: int, pager: Pager) -> Residency:
        residency = Residency(hva, size, pager, self.stopped)
        with self.stopped():
            try:
                self.memory.page(hva, size, residency.address)
            except ValueError as error:
                raise InvalidRequestError(str(error)) from None
            self._residencies.append(residency)
        return residency

    def residency_at(self, hva: int) -> tuple[Residency, int] | None:
        """The paged memory that a host address is in, and its page's number there."""
        for residency in self._residencies:
            if 0 <= hva - residency.hva < residency.size:
                return residency, (hva - residency.hva) // PAGE
        return None

    def stopped(self, *, flush: bool = True) -> _Stopped:
        """A context in which every vCPU is outside native code; with `flush` each drops its translations of addresses.

        Not within a vCPU's `run`, unless it is outside native code itself.
        """
        return _Stopped(self, flush)

    def create_vcpu(self, apic_id: int) -> SoftVcpu:
        if any(other.apic_id == apic_id for other in self.vcpus):
            raise InvalidRequestError(f"a vCPU with APIC id {apic_id} is there already")
        if len(self.vcpus) >= MAX_PROCESSORS:
            raise InvalidRequestError(f"more than {MAX_PROCESSORS} vCPUs")
        with self.stopped():
            vcpu = SoftVcpu(self, apic_id)
        if self._turns is not None:
            vcpu.pace = self._turns.add(vcpu)
            vcpu.state.apic_targets = 0  # who waits for its turn does not hear of what native code posts
        self.vcpus.append(vcpu)
        self.chips().bus.recalculate()
        if len(self.vcpus) > 1:  # alone, a processor waits for nobody
            for each in self.vcpus:
                each.spin = each.spin or SpinWindow(self._host_tsc_hz)
                each.state.pause_window = each.spin.ticks
                if self._turns is None:
                    each.state.halt_longest = HALT_POLL_NS * self._host_tsc_hz // NS
        return vcpu

    def create_irqchip(self, *, split: bool = False) -> None:
        if self.irqchip is not None:
            raise InvalidRequestError("the VM has an irqchip already")
        if self.vcpus:
            raise InvalidRequestError("the irqchip comes before the first vCPU")
        self.irqchip = Irqchip(self.clock, self.coalesced, split=split)
        bus = self.irqchip.bus
        bus.changed = lambda: self.apic_table.refresh(bus)

    def wake_sleepers(self) -> None:
        """Native code has posted an event to a vCPU whose thread sleeps."""
        for vcpu in self.vcpus:
            if vcpu.state.asleep:
                vcpu.ask_for_posted(vcpu.processor.posted())

    def carry_ioapic_messages(self, carry: Callable[[int, int], int]) -> None:
        self.chips().carry_message = carry

    def chips(self) -> Irqchip:
        """The irqchip, which must be there."""
        if self.irqchip is None:
            raise InvalidRequestError("the VM has no irqchip: call create_irqchip first")
        return self.irqchip

    def create_pit(self) -> None:
        self.chips().create_pit()
        self.clock_registers.refresh()

    def reinject_control(self, reinject: bool) -> None:
        self.chips().reinject_control(reinject)

    def irq_line(self, gsi: int, level: bool) -> None:
        self.chips().routing.set_irq(gsi, level)

    def set_gsi_routing(self, entries: Sequence[RoutingEntry]) -> None:
        self.chips().routing.set_routes(entries)

    def signal_msi(self, address: int, data: int) -> int:
        return self.chips().routing.signal_msi(address, data)

    def ioeventfd(self, fd: int, address: int, length: int, *, pio: bool = False, datamatch: int | None = None,
                  assign: bool = True) -> None:
        registry = self.chips().pio_ioeventfds if pio else self.chips().mmio_ioeventfds
        entry = Ioeventfd(fd, address, length, datamatch)
        (registry.assign if assign else registry.deassign)(entry)

    def clock_register(
        self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
    ) -> None:
        register = PlacedRegister(address, size, value, pio)
        (self.clock_registers.assign if assign else self.clock_registers.deassign)(register)

    def _chip_answers(self, register: PlacedRegister) -> bool:
        """Whether a read of it is an interrupt chip's. Local APICs, which move, are native code's to look for."""
        return self.irqchip is not None and self.irqchip.answers(register.address, register.size, pio=register.pio)

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, assign: bool = True) -> None:
        if assign:
            self.chips().irqfds.assign(fd, gsi, resamplefd)
        else:
            self.chips().irqfds.deassign(fd, gsi)

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        return self.chips().get_irqchip(chip)

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        self.chips().set_irqchip(chip, state)
        self.clock_registers.refresh()

    def get_pit(self) -> PitState:
        pit = self.chips().pit
        if pit is None:
            raise InvalidRequestError("the VM has no PIT: call create_pit first")
        return pit.get_state()

    def set_pit(self, state: PitState) -> None:
        pit = self.chips().pit
        if pit is None:
            raise InvalidRequestError("the VM has no PIT: call create_pit first")
        pit.set_state(state)

    def chip_read(self, address: int, size: int, *, pio: bool) -> int | None:
        return None if self.irqchip is None else self.irqchip.chip_read(address, size, pio=pio)

    def chip_write(self, address: int, size: int, value: int, *, pio: bool) -> bool:
        return self.irqchip is not None and self.irqchip.chip_write(address, size, value, pio=pio)

    def intercept_irqs(self, heard: InterceptIrq | None) -> None:
        self.chips().routing.intercept = heard

    def irq_statistics(self) -> Mapping[tuple[int, int], int]:
        return {} if self.irqchip is None else dict(self.irqchip.routing.raised)

    def get_clock(self) -> ClockData:
        tsc = self.guest_tsc()
        return ClockData(self.master_clock.at(tsc), tsc_stable=True, host_tsc=tsc)

    def set_clock(self, data: ClockData) -> None:
        if data.host_tsc is not None:
            self._move_tscs(data.host_tsc - self.guest_tsc())
        self.kvmclock.set_ns(data.clock)
        self.master_clock.update()
        for vcpu in self.vcpus:
            vcpu.request(KVM_REQ_CLOCK_UPDATE)

    def _move_tscs(self, ticks: int) -> None:
        with self.stopped():
            self.tsc_offset = self.tsc_offset + ticks & U64
            for vcpu in self.vcpus:
                vcpu.move_tsc(ticks)

    def synchronized_tsc_offset(self, value: int) -> int:
        """The offset with which a TSC reads `value` now; the last one given, if that is less than a second away.

        Whoever restores vCPUs writes their TSCs one after the other; they shall not differ by the time in between.
        """
        offset = value - self.scaled_tsc() & U64
        distance = offset - self._last_tsc_write & U64
        if min(distance, (1 << 64) - distance) >= self.tsc_hz:
            self._last_tsc_write = offset
        return int(self._last_tsc_write)

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Guest RAM; None where the bytes are not all in one slot."""
        host = self.memory.host_address(gpa, size)
        if host is None:
            return None
        return ctypes.string_at(host, size)

    def write_guest(self, gpa: int, content: bytes) -> bool:
        """Write guest RAM; False where the bytes are not all in one slot. Translated code there is dropped."""
        host = self.memory.host_address(gpa, len(content))
        if host is None:
            return False
        ctypes.memmove(host, content, len(content))
        self.memory_written([(host, len(content))])
        return True

    def exchange_guest(self, gpa: int, value: int) -> int | None:
        """Store a byte of guest RAM in one step with the read of what was there; None where there is no RAM."""
        host = self.memory.host_address(gpa)
        if host is None:
            return None
        old = int(self.engine.exchange_byte(host, value))
        self.memory_written([(host, 1)])
        return old

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        if self.vcpus:
            self.vcpus[0].processor.memory_written(pieces)

    # --- what hypercalls ask: see pellucid.kvm.hypercalls

    def kick_cpu(self, apic_id: int) -> None:
        for vcpu in self.vcpus:
            if vcpu.lapic.id == apic_id:
                vcpu.unhalt()

    def send_ipis(self, apic_ids: list[int], mode: int, vector: int, *, level: bool, asserted: bool) -> int:
        return self.chips().bus.deliver_to(apic_ids, mode, vector, level=level, asserted=asserted)

    def yield_cpu(self) -> None:
        os.sched_yield()

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        if self.irqchip is not None:
            self.irqchip.close()


class Gate:
    """Where vCPUs wait before native code while somebody needs all of them outside."""

    def __init__(self) -> None:
        self.closed = 0
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            self.closed += 1
            self._open.clear()

    def open(self) -> None:
        with self._lock:
            self.closed -= 1
            if not self.closed:
                self._open.set()

    def wait(self) -> None:
        """Until it is open."""
        self._open.wait()


class _Stopped:
    """Every vCPU outside native code: what a change of memory slots needs, and LOCK across two pages.

    Locks are taken in the order of the vCPUs, so that two who want this come one after the other.
    """

    def __init__(self, vm: SoftVm, flush: bool) -> None:
        self._gate, self._vcpus, self._flush = vm.gate, list(vm.vcpus), flush

    def __enter__(self) -> None:
        self._gate.close()
        for vcpu in self._vcpus:
            if self._flush:
                vcpu.request(KVM_REQ_TLB_FLUSH)
            else:
                vcpu.processor.kick()
        for vcpu in self._vcpus:
            # A kick is lost where the vCPU was between looking at its requests and native code.
            while not vcpu.guest_lock.acquire(timeout=KICK_AGAIN):
                vcpu.processor.kick()

    def __exit__(self, *_: object) -> None:
        for vcpu in self._vcpus:
            vcpu.guest_lock.release()
        self._gate.open()
