"""A hypervisor whose vCPU follows a script of exits instead of executing instructions."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from pellucid.kvm.api import (
    ClockData,
    CpuidEntry,
    DebugRegs,
    DTable,
    Exit,
    Fpu,
    IntrExit,
    LapicState,
    MpState,
    Observer,
    Regs,
    RoutingEntry,
    Segment,
    Sregs,
    VcpuEvents,
)
from pellucid.kvm.clock import ClockValue
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip.state import IoapicState, PicState, PitChannelState, PitState
from pellucid.kvm.machine_check import MachineCheck, McOutcome
from pellucid.records import replace

TSC = 0x10


def reset_sregs() -> Sregs:
    data = Segment(0, 0xFFFF, 0, 3)
    system = Segment(0, 0xFFFF, 0, 2, s=False)
    code = Segment(0xFFFF_0000, 0xFFFF, 0xF000, 0xB)
    table = DTable()
    return Sregs(
        code, data, data, data, data, data, system, system, table, table, 0x6000_0010, 0, 0, 0, 0, 0, 0xFEE0_0900
    )


class FakeVcpu:
    def __init__(self, apic_id: int, script: list[Exit]) -> None:
        self.apic_id = apic_id
        self.script = script
        self.reads: list[int] = []
        self.cpuid: list[CpuidEntry] = []
        self.entries: list[int] = []
        """RIP at each set_regs: every start of the guest."""
        self._regs, self._sregs = Regs(rip=0xFFF0), reset_sregs()
        self._msrs = {TSC: 0}
        self.stops_told = 0
        self.smis = self.ignored_errors = 0
        self.a20 = True
        self._kicked = threading.Event()

    def run(self) -> Exit:
        if self.script:
            return self.script.pop(0)
        self._kicked.wait()
        self._kicked.clear()
        return IntrExit()

    def complete_read(self, value: int) -> None:
        self.reads.append(value)

    def complete_read_string(self, data: bytes) -> None:
        self.reads.append(int.from_bytes(data, "little"))

    def kick(self) -> None:
        self._kicked.set()

    def request(self, request: int) -> None:
        pass

    def nmi(self) -> None:
        pass

    def smi(self) -> None:
        self.smis += 1

    @property
    def broadcasts_mce(self) -> bool:
        return False

    def set_mce(self, error: MachineCheck) -> McOutcome:
        return McOutcome.NOT_SUPPORTED

    def ignore_numeric_error(self) -> None:
        self.ignored_errors += 1

    def set_a20(self, a20: bool) -> None:
        self.a20 = a20

    def get_regs(self) -> Regs:
        return replace(self._regs)

    def set_regs(self, regs: Regs) -> None:
        self.entries.append(regs.rip)
        self._regs = replace(regs)

    def get_sregs(self) -> Sregs:
        return replace(self._sregs)

    def set_sregs(self, sregs: Sregs) -> None:
        self._sregs = replace(sregs)

    def get_fpu(self) -> Fpu:
        return Fpu()

    def set_fpu(self, fpu: Fpu) -> None:
        pass

    def get_xsave(self) -> bytes:
        return bytes(4096)

    def set_xsave(self, image: bytes) -> None:
        pass

    def get_xcr0(self) -> int:
        return 1

    def set_xcr0(self, value: int) -> None:
        pass

    def get_debugregs(self) -> DebugRegs:
        return DebugRegs()

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        pass

    def set_log(self, log: Observer | None) -> None:
        pass

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        for index in indices:
            if index not in self._msrs:
                raise MsrAccessError(index)
        return {index: self._msrs[index] for index in indices}

    def set_msrs(self, msrs: Mapping[int, int]) -> None:
        self._msrs.update(msrs)

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        self.cpuid = list(entries)

    def get_lapic(self) -> LapicState:
        return LapicState(bytes(0x400))

    def set_lapic(self, state: LapicState) -> None:
        pass

    def get_mp_state(self) -> MpState:
        return MpState.RUNNABLE if self.apic_id == 0 else MpState.UNINITIALIZED

    def set_mp_state(self, mp_state: MpState) -> None:
        pass

    def get_vcpu_events(self) -> VcpuEvents:
        return VcpuEvents()

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        pass

    def translate(self, gva: int) -> int | None:
        return gva

    def kvmclock_ctrl(self) -> None:
        self.stops_told += 1

    def close(self) -> None:
        self._kicked.set()


class FakeVm:
    def __init__(self, script: list[Exit]) -> None:
        self.script = script
        self.slots: dict[int, tuple[int, int]] = {}
        self.backed: dict[int, tuple[int, int]] = {}
        self.written: list[tuple[int, int]] = []
        """Guest addresses written by this process."""
        self.lines: list[tuple[int, bool]] = []
        self.vcpus: list[FakeVcpu] = []
        self.coalesced = CoalescedRing()
        self.chips: list[str] = []
        self.chips_put_back = 0
        self.clock = 0
        self.clock_registers: list[tuple[bool, int, int, ClockValue]] = []
        self.clocks_set: list[ClockData] = []

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        for hva, size in pieces:
            gpa = next(gpa + hva - base for base, (gpa, length) in self.backed.items() if base <= hva < base + length)
            self.written.append((gpa, size))

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        if size:
            self.slots[slot] = self.backed[hva] = (gpa, size)
        else:
            del self.slots[slot]

    def create_vcpu(self, apic_id: int) -> FakeVcpu:
        vcpu = FakeVcpu(apic_id, self.script if apic_id == 0 else [])
        self.vcpus.append(vcpu)
        return vcpu

    def set_tsc_hz(self, hz: int) -> None:
        self.chips.append(f"tsc {hz}")

    def create_irqchip(self, *, split: bool = False) -> None:
        self.chips.append("irqchip")

    def carry_ioapic_messages(self, carry: Callable[[int, int], int]) -> None:
        self.carry_message = carry

    def create_pit(self) -> None:
        self.chips.append("pit")

    def reinject_control(self, reinject: bool) -> None:
        self.chips.append(f"pit reinject {reinject}")

    def irq_line(self, gsi: int, level: bool) -> None:
        self.lines.append((gsi, level))

    def set_gsi_routing(self, entries: Sequence[RoutingEntry]) -> None:
        pass

    def signal_msi(self, address: int, data: int) -> int:
        return 0

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
        pass

    def clock_register(
        self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
    ) -> None:
        register = (pio, address, size, value)
        (self.clock_registers.append if assign else self.clock_registers.remove)(register)

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, assign: bool = True) -> None:
        pass

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        return IoapicState(redirtbl=(0,) * 24) if chip == 2 else PicState()

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        self.chips_put_back += 1

    def get_pit(self) -> PitState:
        return PitState(channels=(PitChannelState(),) * 3)

    def set_pit(self, state: PitState) -> None:
        self.chips_put_back += 1

    def get_clock(self) -> ClockData:
        return ClockData(self.clock)

    def set_clock(self, data: ClockData) -> None:
        self.clocks_set.append(data)

    def close(self) -> None:
        pass


class FakeHypervisor:
    """Gives one VM, `vm`, whose boot processor follows `script`."""

    name = "fake"
    tsc_hz = 1_000_000_000

    def __init__(self, script: Iterable[Exit] = ()) -> None:
        self.vm = FakeVm(list(script))

    def capabilities(self) -> Mapping[str, int]:
        return {"x86_smm": 1}

    def create_vm(self) -> FakeVm:
        return self.vm
