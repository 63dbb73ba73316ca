"""The Hypervisor interface: system, VM and vCPU objects, shaped like the KVM API.

The machine knows this file and nothing below it. Two backends stand behind it: `soft`, on Pellucid's own processor, and
`linux`, on /dev/kvm. Numbers are unsigned and of the architectural width; addresses called `gpa` are guest-physical,
`gva` guest-virtual, `hva` addresses in this process.

Threads: `Vcpu.run`, `complete_read` and the get/set calls belong to the vCPU's thread (or to any one thread while the
vCPU does not run); `kick`, `request`, `nmi`, `smi`, `ignore_numeric_error`, `set_a20` and all of `Vm` may be called
from any thread.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from pellucid.cpu.observe import CodeBlock, Event, Observer
from pellucid.kvm.clock import ClockValue, InstructionTime
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.kvm.events import VcpuEvents
from pellucid.kvm.exits import (
    DebugExit,
    ExclusiveExit,
    Exit,
    FailEntryExit,
    FerrExit,
    HltExit,
    InternalErrorExit,
    IntrExit,
    IoExit,
    MmioExit,
    ShutdownExit,
    SystemEvent,
    SystemEventExit,
)
from pellucid.kvm.irqchip.state import IoapicState, LapicState, PicState, PitState
from pellucid.kvm.machine_check import MachineCheck, McOutcome
from pellucid.kvm.regs import CpuidEntry, DebugRegs, DTable, Fpu, MpState, Regs, Segment, Sregs
from pellucid.kvm.residency import Pager, PageWaiter, Residency
from pellucid.kvm.routing import IrqchipRoute, MsiRoute, RoutingEntry
from pellucid.kvm.vcpu_requests import (
    KVM_REQ_APF_READY,
    KVM_REQ_CLOCK_UPDATE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_SMI,
    KVM_REQ_STEAL_UPDATE,
    KVM_REQ_TLB_FLUSH,
    KVM_REQ_TRIPLE_FAULT,
    KVM_REQ_UNBLOCK,
)
from pellucid.records import dataclass

__all__ = [
    "KVM_REQ_APF_READY",
    "KVM_REQ_CLOCK_UPDATE",
    "KVM_REQ_EVENT",
    "KVM_REQ_NMI",
    "KVM_REQ_SMI",
    "KVM_REQ_STEAL_UPDATE",
    "KVM_REQ_TLB_FLUSH",
    "KVM_REQ_TRIPLE_FAULT",
    "KVM_REQ_UNBLOCK",
    "ClockData",
    "CodeBlock",
    "CpuidEntry",
    "DTable",
    "DebugExit",
    "DebugRegs",
    "Event",
    "ExclusiveExit",
    "Exit",
    "FailEntryExit",
    "FerrExit",
    "Fpu",
    "HltExit",
    "Hypervisor",
    "InstructionTime",
    "InterceptIrq",
    "InternalErrorExit",
    "IntrExit",
    "IoExit",
    "IoapicState",
    "IrqchipRoute",
    "LapicState",
    "MmioExit",
    "MpState",
    "MsiRoute",
    "Observer",
    "PageWaiter",
    "Pager",
    "PicState",
    "PitState",
    "Regs",
    "Residency",
    "RoutingEntry",
    "Segment",
    "ShutdownExit",
    "Sregs",
    "SystemEvent",
    "SystemEventExit",
    "Vcpu",
    "VcpuEvents",
    "Vm",
]


MSR_KVM_INTERNAL_GUEST_SSP = 0x4B56_4DFF
"""The shadow-stack pointer among the MSRs of `Vcpu.get_msrs` and `set_msrs`, by KVM's number; no guest has it."""

InterceptIrq = Callable[[int, bool], None]
"""(gsi, level): hears a line in place of the interrupt chips."""


@dataclass(frozen=True, slots=True)
class ClockData:
    """The VM's kvmclock (struct kvm_clock_data): nanoseconds since the VM's boot, and the host's at that moment.

    `realtime` is nanoseconds since the Unix epoch, `host_tsc` what the guests' TSCs read then, where the guest has not
    moved them; each may be unknown.
    """

    clock: int
    tsc_stable: bool = False
    realtime: int | None = None
    host_tsc: int | None = None


class Vcpu(Protocol):
    """One virtual processor."""

    @property
    def apic_id(self) -> int:
        """The initial APIC id, which is also the vCPU's id."""
        ...

    def run(self) -> Exit:
        """Run the guest until it needs something from the machine; the reason why it stopped.

        After an exit that reads (`data is None`), `complete_read` comes first.
        """
        ...

    def run_exclusive(self, access: Callable[[MmioExit], None]) -> Exit | None:
        """After `ExclusiveExit`: execute that instruction. No other vCPU is within `run` meanwhile, nor in a device.

        `access` makes each of its accesses, with `complete_read` for a load. The result is an exit of another kind that
        the instruction ended in, if it did.
        """
        ...

    def complete_read(self, value: int) -> None:
        """Answer the last IN or MMIO load; bits above its size are ignored."""
        ...

    def complete_read_string(self, data: bytes) -> None:
        """Answer the last INS, whose exit had a `count`, with that many elements or fewer, and at least one."""
        ...

    def kick(self) -> None:
        """Make `run` return `IntrExit` soon, or at once the next time it is called. Never blocks."""
        ...

    def request(self, request: int) -> None:
        """Make a KVM_REQ_* request and have it served before the guest goes on."""
        ...

    def nmi(self) -> None:
        """Queue an NMI (KVM_NMI)."""
        ...

    def smi(self) -> None:
        """Make a system-management interrupt pending (KVM_SMI); one that comes in SMM waits for its end."""
        ...

    def set_mce(self, error: MachineCheck) -> McOutcome:
        """Report a machine-check error; #MC or a shutdown may follow before the guest goes on (KVM_X86_SET_MCE)."""
        ...

    @property
    def broadcasts_mce(self) -> bool:
        """Whether processors of its model tell a machine check to all of them: Intel's from family 6, model 14 on."""
        ...

    def ignore_numeric_error(self) -> None:
        """Assert IGNNE#, the answer to `FerrExit`, until the x87 exception is cleared. From any thread."""
        ...

    @property
    def a20(self) -> bool:
        """Whether the A20 gate is open: address bit 20 gets through. It is after power-on."""
        ...

    def set_a20(self, a20: bool) -> None:
        """Open or close the A20 gate, before the guest goes on. From any thread."""
        ...

    def get_regs(self) -> Regs:
        """The general registers."""
        ...

    def set_regs(self, regs: Regs) -> None:
        """Set the general registers; a pending exception is dropped."""
        ...

    def get_sregs(self) -> Sregs:
        """Segment, table and control registers."""
        ...

    def set_sregs(self, sregs: Sregs) -> None:
        """Set them; `StateError` when no processor can hold the combination."""
        ...

    def get_fpu(self) -> Fpu:
        """x87 and SSE registers."""
        ...

    def set_fpu(self, fpu: Fpu) -> None:
        """Set them; reserved bits of MXCSR and FCW are dropped."""
        ...

    def get_xsave(self) -> bytes:
        """x87, SSE, AVX and PKRU as XSAVE's standard format, 4096 bytes (KVM_GET_XSAVE)."""
        ...

    def set_xsave(self, image: bytes) -> None:
        """Set them; components that XSTATE_BV leaves out take their initial values. Raises InvalidRequestError."""
        ...

    def get_xcr0(self) -> int:
        """XCR0 (KVM_GET_XCRS)."""
        ...

    def set_xcr0(self, value: int) -> None:
        """Set XCR0; raises InvalidRequestError for what XSETBV would refuse."""
        ...

    def get_debugregs(self) -> DebugRegs:
        """Debug registers."""
        ...

    def set_debugregs(self, debugregs: DebugRegs) -> None:
        """Set them."""
        ...

    def set_log(self, log: Observer | None) -> None:
        """Have `log` hear what the vCPU does; None: nobody. On the vCPU's own thread, or while it does not run."""
        ...

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """The named MSRs; one that does not exist raises `MsrAccessError`."""
        ...

    def set_msrs(self, msrs: Mapping[int, int]) -> None:
        """Set MSRs in the order given; the first that does not exist or refuses its value raises `MsrAccessError`."""
        ...

    def set_cpuid(self, entries: Sequence[CpuidEntry]) -> None:
        """Define what CPUID answers; before the first `run`."""
        ...

    def get_lapic(self) -> LapicState:
        """The local APIC's registers; needs an in-kernel irqchip."""
        ...

    def set_lapic(self, state: LapicState) -> None:
        """Set the local APIC's registers; `StateError` when it could not be in this state."""
        ...

    def get_mp_state(self) -> MpState:
        """Running, halted, or waiting for INIT or SIPI."""
        ...

    def set_mp_state(self, mp_state: MpState) -> None:
        """Set it."""
        ...

    def get_vcpu_events(self) -> VcpuEvents:
        """Pending and half-delivered events."""
        ...

    def set_vcpu_events(self, events: VcpuEvents) -> None:
        """Set them."""
        ...

    def translate(self, gva: int) -> int | None:
        """The guest-physical address that `gva` maps to by the vCPU's page tables now; None when unmapped."""
        ...

    def statistics(self) -> Mapping[str, int]:
        """Counters that the backend keeps about this vCPU, by name, for people to read (KVM_GET_STATS_FD)."""
        ...

    def kvmclock_ctrl(self) -> None:
        """The guest has been stopped: its time page says so at the next entry (KVM_KVMCLOCK_CTRL)."""
        ...

    def close(self) -> None:
        """Release the vCPU; it does not run any more."""
        ...


class Vm(Protocol):
    """One virtual machine: memory slots, vCPUs, interrupt chips."""

    def set_user_memory_region(self, slot: int, gpa: int, size: int, hva: int, readonly: bool = False) -> None:
        """Back guest-physical [gpa, gpa+size) with this process's memory at `hva`; size 0 deletes the slot.

        All three are multiples of 4096. Overlap with another slot raises `InvalidRequestError`. Bits 16 and up of
        `slot` are the address space (capability multi_address_space): 0, and 1 for a vCPU in SMM, which sees slots of
        space 1 only.
        """
        ...

    def page_memory(self, hva: int, size: int, pager: Pager) -> Residency:
        """Pages of this process's memory [hva, hva+size), whole ones, may be out from here on; `pager` brings them in.

        A slot is in it whole or not at all. The result says which pages are in, all at first.
        """
        ...

    def create_vcpu(self, apic_id: int) -> Vcpu:
        """A new vCPU with this APIC id, at the reset vector; id 0 is the bootstrap processor."""
        ...

    def set_tsc_hz(self, hz: int) -> None:
        """Another frequency than the host's, before the first vCPU (KVM_SET_TSC_KHZ); 1 kHz to 2**32 kHz - 1."""
        ...

    def count_instructions(self, time: InstructionTime) -> None:
        """The guest's time is that of its instructions; before the first vCPU. vCPUs then execute in turn.

        The TSC counts nanoseconds unless it is given another frequency. The backend's clock must be a `CountedClock`.
        """
        ...

    def create_irqchip(self, *, split: bool = False) -> None:
        """In-kernel PIC, IOAPIC, and a LAPIC for every vCPU made afterwards; before the first vCPU.

        `split`: the IOAPIC, of version 0x20, sends messages (KVM_CAP_SPLIT_IRQCHIP), which `carry_ioapic_messages` can
        have somebody else take to their APICs.
        """
        ...

    def carry_ioapic_messages(self, carry: Callable[[int, int], int]) -> None:
        """Give each (address, data) of a split IOAPIC to `carry`, which says how many vCPUs took it.

        It is called from any thread, with the chips' lock held: it may call `signal_msi`, and waits for nobody.
        """
        ...

    def create_pit(self) -> None:
        """In-kernel PIT with the speaker port; needs the irqchip."""
        ...

    def reinject_control(self, reinject: bool) -> None:
        """Whether the PIT makes up for ticks that a guest was too slow for, as at first (KVM_REINJECT_CONTROL)."""
        ...

    def irq_line(self, gsi: int, level: bool) -> None:
        """Set the level of a global interrupt line. True means asserted, whatever the wire's polarity."""
        ...

    def set_gsi_routing(self, entries: Sequence[RoutingEntry]) -> None:
        """Replace the routing table; `InvalidRequestError` for an entry that names no pin, and nothing changes."""
        ...

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt; the number of vCPUs that took it."""
        ...

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
        """Signal eventfd `fd` on guest writes of `length` bytes (0: any) at `address`, instead of exiting."""
        ...

    def clock_register(
        self, address: int, size: int, value: ClockValue, *, pio: bool = False, assign: bool = True
    ) -> None:
        """Guest reads of `size` bytes at `address` give `value` by the VM's clock: they need not exit.

        They may exit all the same: where an interrupt chip answers, where the clock does not go with the host's, or
        where there are more such registers than the backend has room for.
        """
        ...

    @property
    def coalesced(self) -> CoalescedRing:
        """The zones whose writes are collected, and those that were (KVM_CAP_COALESCED_MMIO and _PIO)."""
        ...

    def irqfd(self, fd: int, gsi: int, *, resamplefd: int | None = None, assign: bool = True) -> None:
        """Raise `gsi` whenever eventfd `fd` is signalled; with `resamplefd`, as a level that the guest's EOI drops."""
        ...

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        """This process wrote memory that backs a slot (DMA, a loader): what is translated from it is stale.

        A piece is an (hva, size). Call it after the write, from any thread. Hardware keeps its own instruction caches
        coherent and does nothing.
        """
        ...

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        """State of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        ...

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        """Set it; `StateError` when the chip could not be in this state."""
        ...

    def get_pit(self) -> PitState:
        """State of the PIT."""
        ...

    def set_pit(self, state: PitState) -> None:
        """Set it."""
        ...

    def chip_read(self, address: int, size: int, *, pio: bool) -> int | None:
        """A read by the machine itself, not by a vCPU, where an in-kernel chip answers guests; None: none is there.

        A backend whose chips cannot be reached but by a vCPU's instructions (Linux's) answers None.
        """
        ...

    def chip_write(self, address: int, size: int, value: int, *, pio: bool) -> bool:
        """The same for a write; whether a chip took it."""
        ...

    def intercept_irqs(self, heard: InterceptIrq | None) -> None:
        """Give every change of a wired interrupt line to `heard` instead of the chips; None gives them back.

        For tests of devices; NotBuiltError from a backend whose lines cannot be tapped.
        """
        ...

    def irq_statistics(self) -> Mapping[tuple[int, int], int]:
        """How often each pin, named by chip KVM_IRQCHIP_* and number, was raised."""
        ...

    def get_clock(self) -> ClockData:
        """kvmclock's reading, and the TSC's at the same moment: what a guest computes from its time page."""
        ...

    def set_clock(self, data: ClockData) -> None:
        """Set kvmclock; every vCPU's time page is rewritten at its next entry.

        With `host_tsc` the TSCs go on from there, together: what stopped a machine sets what it read at the stop.
        """
        ...

    def close(self) -> None:
        """Release everything the VM holds."""
        ...


class Hypervisor(Protocol):
    """A backend: what /dev/kvm is for Linux."""

    @property
    def name(self) -> str:
        """The accelerator's name for people: "soft" or "kvm"."""
        ...

    def capabilities(self) -> Mapping[str, int]:
        """What the backend can do: KVM_CAP_* names without the prefix, in lower case, with their values."""
        ...

    @property
    def tsc_hz(self) -> int:
        """The frequency of guests' time-stamp counters unless a VM is given its own; 0: nobody executes the guest."""
        ...

    def create_vm(self) -> Vm:
        """A new VM without memory or vCPUs."""
        ...
