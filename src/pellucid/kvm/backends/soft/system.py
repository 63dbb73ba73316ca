"""The soft backend's system and VM objects."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence

from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine
from pellucid.kvm.api import (
    KVM_REQ_CLOCK_UPDATE, KVM_REQ_TLB_FLUSH, ClockData, IoapicState, PicState, PitState, RoutingEntry)
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.clock import Clock
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import Ioeventfd
from pellucid.kvm.irqchip.irqchip import Irqchip
from pellucid.kvm.pvclock import Kvmclock, MasterClock

CALIBRATION_NS = 10_000_000
PAUSE_TIMEOUT = 5.0


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
                "nr_vcpus": 1, "max_vcpus": 1}

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
        self.engine, self.clock, self.tsc_hz = engine, clock, tsc_hz
        self.memory = SlotMemory()
        self.irqchip: Irqchip | None = None
        self.vcpus: list[SoftVcpu] = []
        self.tsc_offset = -engine.read_tsc() & (1 << 64) - 1
        self.kvmclock = Kvmclock(clock, time.time_ns)
        self.master_clock = MasterClock(self.kvmclock, self.guest_tsc, tsc_hz)

    def guest_tsc(self) -> int:
        """The TSC that the VM's processors started with."""
        return int(self.engine.read_tsc() + self.tsc_offset) & (1 << 64) - 1

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        with self._stopped():
            try:
                self.memory.set_slot(slot, gpa, size, hva, readonly)
            except ValueError as error:
                raise InvalidRequestError(str(error)) from None
            for vcpu in self.vcpus:
                vcpu.processor.flush_code()

    def _stopped(self) -> _Stopped:
        return _Stopped(self.vcpus)

    def create_vcpu(self, apic_id: int) -> SoftVcpu:
        if self.vcpus:
            raise InvalidRequestError("more than one vCPU is not built yet; use -smp 1")
        vcpu = SoftVcpu(self, apic_id)
        self.vcpus.append(vcpu)
        return vcpu

    def create_irqchip(self) -> None:
        if self.irqchip is not None:
            raise InvalidRequestError("the VM has an irqchip already")
        if self.vcpus:
            raise InvalidRequestError("the irqchip comes before the first vCPU")
        self.irqchip = Irqchip(self.clock)

    def chips(self) -> Irqchip:
        """The irqchip, which must be there."""
        if self.irqchip is None:
            raise InvalidRequestError("the VM has no irqchip: call create_irqchip first")
        return self.irqchip

    def create_pit(self) -> None:
        self.chips().create_pit()

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

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, assign: bool = True) -> None:
        if assign:
            self.chips().irqfds.assign(fd, gsi, resamplefd)
        else:
            self.chips().irqfds.deassign(fd, gsi)

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        return self.chips().get_irqchip(chip)

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        self.chips().set_irqchip(chip, state)

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

    def get_clock(self) -> ClockData:
        return ClockData(self.kvmclock.now_ns(), tsc_stable=True, host_tsc=self.guest_tsc())

    def set_clock(self, data: ClockData) -> None:
        self.kvmclock.set_ns(data.clock)
        self.master_clock.update()
        for vcpu in self.vcpus:
            vcpu.request(KVM_REQ_CLOCK_UPDATE)

    def read_guest(self, gpa: int, size: int) -> bytes | None:
        """Guest RAM; None where the bytes are not all in one slot."""
        host, last = self.memory.host_address(gpa), self.memory.host_address(gpa + size - 1)
        if host is None or last != host + size - 1:
            return None
        return ctypes.string_at(host, size)

    def write_guest(self, gpa: int, content: bytes) -> bool:
        """Write guest RAM; False where the bytes are not all in one slot. Translated code there is dropped."""
        host, last = self.memory.host_address(gpa), self.memory.host_address(gpa + len(content) - 1)
        if host is None or last != host + len(content) - 1:
            return False
        ctypes.memmove(host, content, len(content))
        for vcpu in self.vcpus:
            vcpu.forget_code(gpa, len(content))
        return True

    def memory_written(self, hva: int, size: int) -> None:
        for gpa, length in self.memory.translated(hva, size):
            for vcpu in self.vcpus:
                vcpu.drop_code(gpa, length)

    def close(self) -> None:
        for vcpu in self.vcpus:
            vcpu.close()
        if self.irqchip is not None:
            self.irqchip.close()


class _Stopped:
    """Every vCPU outside native code: what a change of memory slots needs."""

    def __init__(self, vcpus: list[SoftVcpu]) -> None:
        self._vcpus = vcpus

    def __enter__(self) -> None:
        for vcpu in self._vcpus:
            vcpu.request(KVM_REQ_TLB_FLUSH)
            vcpu.guest_lock.acquire()

    def __exit__(self, *_: object) -> None:
        for vcpu in self._vcpus:
            vcpu.guest_lock.release()
