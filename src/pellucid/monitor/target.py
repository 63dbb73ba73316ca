"""What a monitor needs of a machine."""

from dataclasses import dataclass
from typing import Protocol

from pellucid.kvm.regs import DebugRegs, Fpu, MpState, Regs, Sregs


@dataclass(frozen=True)
class CpuRegisters:
    """The registers of one vCPU, all taken between the same two of its instructions.

    interrupt_shadow: an STI or a load of SS holds interrupts off for one instruction.
    smm: the CPU is in system-management mode.
    """

    regs: Regs
    sregs: Sregs
    fpu: Fpu
    debugregs: DebugRegs
    mp_state: MpState = MpState.RUNNABLE
    interrupt_shadow: bool = False
    smm: bool = False


class MonitorTarget(Protocol):
    """A machine as the monitor sees it. Every call is made with the machine's lock held and returns soon.

    CPUs are numbered from 0. Where the machine runs, a call about a CPU's state interrupts that CPU to answer.
    """

    @property
    def cpu_count(self) -> int:
        """Number of vCPUs."""
        ...

    def cpu_registers(self, cpu: int) -> CpuRegisters:
        """The registers of vCPU `cpu` now."""
        ...

    def read_virtual(self, cpu: int, address: int, size: int) -> bytes | None:
        """`size` bytes at a linear address through the page tables of `cpu`; None when any of them is unmapped."""
        ...

    def read_physical(self, address: int, size: int) -> bytes | None:
        """`size` bytes of guest-physical memory; None when any of them is neither RAM nor ROM."""
        ...

    def mtree(self, *, flat: bool, dispatch_tree: bool, owner: bool, disabled: bool) -> str:
        """The text of `info mtree`; the flags are its -f, -d, -o and -D."""
        ...

    def ramblock(self) -> str:
        """The text of `info ramblock`."""
        ...

    def run_status(self) -> str:
        """What `info status` says after "VM status: ": "running", "paused", "paused (shutdown)", ..."""
        ...

    def stop(self) -> None:
        """Stop the guest; nothing when it is stopped."""
        ...

    def cont(self) -> None:
        """Let the guest run; nothing when it runs. PellucidError when it cannot go on without a reset."""
        ...

    def system_reset(self) -> None:
        """Ask for a reset of the machine."""
        ...

    def system_powerdown(self) -> None:
        """Press the power button."""
        ...

    def system_wakeup(self) -> None:
        """End a suspend to RAM. PellucidError when the guest is not suspended."""
        ...

    def quit(self) -> None:
        """Ask for the end of the process, with status 0."""
        ...
