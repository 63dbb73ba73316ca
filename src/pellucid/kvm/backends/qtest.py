"""A hypervisor whose processors execute nothing: `-accel qtest`, for tests that drive devices from outside.

Interrupt chips and PIT are the real ones, on the clock given, which the test steps. A vCPU keeps whatever state it is
given, and `run` waits until it is kicked. There are no local APICs: interrupts are watched on their lines.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext

from pellucid.kvm.api import (
    ClockData,
    CpuidEntry,
    DebugRegs,
    DTable,
    Exit,
    Fpu,
    InstructionTime,
    InterceptIrq,
    IntrExit,
    IoapicState,
    LapicState,
    MmioExit,
    MpState,
    Observer,
    PicState,
    PitState,
    Regs,
    RoutingEntry,
    Segment,
    Sregs,
    VcpuEvents,
)
from pellucid.kvm.clock import Clock, ClockValue
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import Ioeventfd
from pellucid.kvm.irqchip.irqchip import Irqchip
from pellucid.kvm.irqchip.state import KVM_APIC_REG_SIZE
from pellucid.kvm.machine_check import MachineCheck, McOutcome
from pellucid.kvm.residency import Pager, Residency
from pellucid.records import replace

APIC_BASE, APIC_BASE_BSP, APIC_BASE_ENABLED = 0xFEE0_0000, 1 << 8, 1 << 11


def reset_sregs(apic_base: int) -> Sregs:
    """The system registers behind RESET: SDM vol. 3, table 10-1."""
    data, table = Segment(type=3), DTable(0, 0xFFFF)
    return Sregs(
        cs=Segment(base=0xFFFF_0000, selector=0xF000, type=0xB),
        ds=data,
        es=data,
        fs=data,
        gs=data,
        ss=data,
        tr=Segment(type=0xB, s=False),
        ldt=Segment(type=2, s=False),
        gdt=table,
        idt=table,
        cr0=0x6000_0010,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=apic_base,
    )


class QtestVcpu:
    """State without execution."""

    def __init__(self, apic_id: int) -> None:
        self.a20 = True
        self.apic_id = apic_id
        self._xsave, self._xcr0 = bytes(4096), 1
        self.cpuid: tuple[CpuidEntry, ...] = ()
        self._kicked = threading.Event()
        self._regs = Regs(rip=0xFFF0)
        self._sregs = reset_sregs(APIC_BASE | APIC_BASE_ENABLED | (APIC_BASE_BSP if apic_id == 0 else 0))
        self._fpu, self._debugregs, self._events = Fpu(), DebugRegs(), VcpuEvents()
        self._lapic = LapicState(bytes(KVM_APIC_REG_SIZE))
        self._mp_state = MpState.RUNNABLE if apic_id == 0 else MpState.UNINITIALIZED
        self._msrs: dict[int, int] = {}
        self.a20 = True

    def run(self) -> Exit:
        self._kicked.wait()
        self._kicked.clear()
        return IntrExit()

    def run_exclusive(self, access: Callable[[MmioExit], None]) -> Exit | None:
        raise AssertionError("a vCPU that executes nothing has no instruction")

    def complete_read(self, value: int) -> None:
        raise AssertionError("a vCPU that executes nothing reads nothing")

    def complete_read_string(self, data: bytes) -> None:
        raise AssertionError("a vCPU that executes nothing reads nothing")

    def kick(self) -> None:
        self._kicked.set()

    def request(self, request: int) -> None:
        self._kicked.set()

    def nmi(self) -> None:
        """Nobody takes it."""

    def smi(self) -> None:
        """Nobody takes it."""

    def set_mce(self, error: MachineCheck) -> McOutcome:
        return McOutcome.NOT_SUPPORTED

    @property
    def broadcasts_mce(self) -> bool:
        return False

    def ignore_numeric_error(self) -> None:
        """Nobody computes."""

    def set_a20(self, a20: bool) -> None:
        self.a20 = a20

    def get_regs(self) -> Regs:
        return replace(self._regs)

    def set_regs(self, regs: Regs) -> None:
        self._regs = replace(regs)

    def get_sregs(self) -> Sregs:
        return replace(self._sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        self._sregs = replace(sregs)

    def get_fpu(self) -> Fpu:
        return replace(self._fpu)

    def set_fpu(self, fpu: Fpu) -> None:
        self._fpu = replace(fpu)

    def get_xsave(self) -> bytes:
        return self._xsave

    def set_xsave(self, image: bytes) -> None:
        self._xsave = image

    def get_xcr0(self) -> int:
        return self._xcr0

    def set_xcr0(self, value: int) -> None:
        self._xcr0 = value

    def set_log(self, log: Observer | None) -> None:
        """It executes nothing that could be heard."""

    def get_debugregs(self) -> DebugRegs:
        return replace(self._debugregs)

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        self._debugregs = replace(debugregs)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        return {index: self._msrs.get(index, 0) for index in indices}

    def set_msrs(self, msrs: Mapping[int, int]) -> None:
        self._msrs.update(msrs)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        self.cpuid = tuple(entries)

    def get_lapic(self) -> LapicState:
        return self._lapic

    def set_lapic(self, state: LapicState) -> None:
        self._lapic = state

    def get_mp_state(self) -> MpState:
        return self._mp_state

    def set_mp_state(self, mp_state: MpState) -> None:
        self._mp_state = mp_state

    def get_vcpu_events(self) -> VcpuEvents:
        return self._events

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        self._events = events

    def translate(self, gva: int) -> int | None:
        """Paging is off, as after RESET: no instruction ever switches it on."""
        return gva & 0xFFFF_FFFF

    def kvmclock_ctrl(self) -> None:
        """Nothing: there is no guest to tell."""

    def statistics(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        self._kicked.set()


class QtestVm:
    """Chips and state; memory slots are of no use to anybody here."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._irqchip: Irqchip | None = None
        self.coalesced = CoalescedRing()
        self._kvmclock = ClockData(0)

    @property
    def irqchip(self) -> Irqchip:
        """The chips; InvalidRequestError before create_irqchip."""
        if self._irqchip is None:
            raise InvalidRequestError("the VM has no irqchip: call create_irqchip first")
        return self._irqchip

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        pass

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        pass

    def page_memory(self, hva: int, size: int, pager: Pager) -> Residency:
        """A table that nobody looks at."""
        return Residency(hva, size, pager, nullcontext)

    def create_vcpu(self, apic_id: int) -> QtestVcpu:
        return QtestVcpu(apic_id)

    def set_tsc_hz(self, hz: int) -> None:
        """Nothing: nobody counts."""

    def count_instructions(self, time: InstructionTime) -> None:
        """Nothing: nobody executes any."""

    def create_irqchip(self, *, split: bool = False) -> None:
        if self._irqchip is not None:
            raise InvalidRequestError("the VM has an irqchip already")
        self._irqchip = Irqchip(self._clock, self.coalesced, split=split)

    def carry_ioapic_messages(self, carry: Callable[[int, int], int]) -> None:
        self.irqchip.carry_message = carry

    def create_pit(self) -> None:
        self.irqchip.create_pit()

    def reinject_control(self, reinject: bool) -> None:
        self.irqchip.reinject_control(reinject)

    def irq_line(self, gsi: int, level: bool) -> None:
        self.irqchip.routing.set_irq(gsi, level)

    def set_gsi_routing(self, entries: Sequence[RoutingEntry]) -> None:
        self.irqchip.routing.set_routes(entries)

    def signal_msi(self, address: int, data: int) -> int:
        return self.irqchip.routing.signal_msi(address, data)

    def ioeventfd(
        self,
        fd: int,
        address: int,
        length: int,
        *,
        pio: bool = False,
        datamatch: int | None = None,
        assign: bool = True,
    ) -> None:
        registry = self.irqchip.pio_ioeventfds if pio else self.irqchip.mmio_ioeventfds
        entry = Ioeventfd(fd, address, length, datamatch)
        (registry.assign if assign else registry.deassign)(entry)

    def clock_register(
        self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
    ) -> None:
        """Nothing: nobody executes the guest."""

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, assign: bool = True) -> None:
        if assign:
            self.irqchip.irqfds.assign(fd, gsi, resamplefd)
        else:
            self.irqchip.irqfds.deassign(fd, gsi)

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        return self.irqchip.get_irqchip(chip)

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        self.irqchip.set_irqchip(chip, state)

    def get_pit(self) -> PitState:
        pit = self.irqchip.pit
        if pit is None:
            raise InvalidRequestError("the VM has no PIT: call create_pit first")
        return pit.get_state()

    def set_pit(self, state: PitState) -> None:
        pit = self.irqchip.pit
        if pit is None:
            raise InvalidRequestError("the VM has no PIT: call create_pit first")
        pit.set_state(state)

    def chip_read(self, address: int, size: int, *, pio: bool) -> int | None:
        return None if self._irqchip is None else self._irqchip.chip_read(address, size, pio=pio)

    def chip_write(self, address: int, size: int, value: int, *, pio: bool) -> bool:
        return self._irqchip is not None and self._irqchip.chip_write(address, size, value, pio=pio)

    def irq_statistics(self) -> Mapping[tuple[int, int], int]:
        return {} if self._irqchip is None else dict(self._irqchip.routing.raised)

    def intercept_irqs(self, heard: InterceptIrq | None) -> None:
        self.irqchip.routing.intercept = heard

    def get_clock(self) -> ClockData:
        return self._kvmclock

    def set_clock(self, data: ClockData) -> None:
        self._kvmclock = data

    def close(self) -> None:
        if self._irqchip is not None:
            self._irqchip.close()


class QtestHypervisor:
    """The backend; `clock` is what the chips run on."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    @property
    def name(self) -> str:
        return "qtest"

    def capabilities(self) -> Mapping[str, int]:
        return {"irqchip": 1, "pit2": 1, "ioeventfd": 1, "irqfd": 1, "x86_smm": 1}

    @property
    def tsc_hz(self) -> int:
        return 0

    def create_vm(self) -> QtestVm:
        return QtestVm(self._clock)
